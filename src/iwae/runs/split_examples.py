"""The examples of a split of a run as the model sees them, with the draws of their pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from iwae.data import Dataset, choose, draw
from iwae.data.rows import Examples, convert_rows, rows_in_memory


def split_examples(dataset: Dataset, split: str, count: int | None = None) -> Examples:
    """Examples of a split in the model's units; training pixels are drawn once with a fixed key.

    Args:
        count: size of a fixed random subset in memory (all examples, if there are fewer).
    """
    raw = dataset.examples(split)
    if count is not None:
        raw = raw[np.sort(choose(len(raw), count))] if count < len(raw) else rows_in_memory(raw)
    if split != "train" or dataset.binarization != "dynamic":
        return raw
    if isinstance(raw, np.ndarray):
        return np.asarray(_draw_all(raw, _fixed_keys(len(raw)), dataset.binarization))
    keys = jax.random.key_data(_fixed_keys(len(raw)))

    def drawn(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        some = jax.random.wrap_key_data(keys[places])
        return np.asarray(_draw_all(rows, some, dataset.binarization))

    return convert_rows(raw, drawn, np.uint8)


def _fixed_keys(n: int) -> Key[Array, " n"]:
    """The keys of the fixed draws of n examples, `[n]`."""
    return jax.random.split(jax.random.key(0), n)


@partial(jax.jit, static_argnums=2)
def _draw_all(raw: jax.Array, keys: Key[Array, " n"], binarization: str) -> jax.Array:
    pixels = jax.vmap(lambda row, key: draw(row, key, binarization=binarization))(raw, keys)
    return pixels.astype(jnp.uint8)

"""Binarisation on the device, one example at a time: the only part of the data that needs JAX."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from iwae.data.splits import BINARIZATIONS
from iwae.errors import UserError
from iwae.typing import PRNGKey


def draw(
    raw: Shaped[Array, "*d"] | Shaped[np.ndarray, "*d"], key: PRNGKey, *, binarization: str
) -> Float[Array, "*d"]:
    """What a model sees of one stored example: float32, drawn afresh where that is `dynamic`.

    `raw` is grey, uint8 0..255 or floating point in [0, 1], under `dynamic`, where each value is 1
    with that probability (0 never, 255 or 1.0 always); otherwise it is only cast. Jit and vmap it.
    """
    if binarization not in BINARIZATIONS:
        raise UserError(
            f"unknown binarization {binarization!r}: it is one of {', '.join(BINARIZATIONS)}"
        )
    raw = jnp.asarray(raw)
    if binarization != "dynamic":
        return raw.astype(jnp.float32)
    scale = 255.0 if raw.dtype == jnp.uint8 else 1.0
    probability = raw.astype(jnp.float32) / scale
    uniform = jax.random.uniform(key, raw.shape, jnp.float32)
    return (uniform < probability).astype(jnp.float32)

"""Binarisation on the device, one example at a time; nothing else in `iwae.data` needs JAX."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from iwae.data.binarisation import BINARIZATIONS
from iwae.errors import UserError
from iwae.typing import PRNGKey


def draw(
    raw: Shaped[Array, "*d"] | Shaped[np.ndarray, "*d"], key: PRNGKey, *, binarization: str
) -> Float[Array, "*d"]:
    """Convert one stored example to a model's float32 input, drawn afresh under `dynamic`.

    Under `dynamic`, `raw` is grey (uint8 0..255 or floating point in [0, 1]), and each value is 1
    with that probability (0 never, 255 or 1.0 always). Otherwise `raw` is only cast. Works under
    `jit` and `vmap`.
    """
    if binarization not in BINARIZATIONS:
        raise UserError(f"unknown binarization {binarization!r}; known: {', '.join(BINARIZATIONS)}")
    raw = jnp.asarray(raw)
    if binarization != "dynamic":
        return raw.astype(jnp.float32)
    scale = 255.0 if raw.dtype == jnp.uint8 else 1.0
    probability = raw.astype(jnp.float32) / scale
    uniform = jax.random.uniform(key, raw.shape, jnp.float32)
    return (uniform < probability).astype(jnp.float32)

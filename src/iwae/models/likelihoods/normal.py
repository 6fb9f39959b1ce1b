"""The standard normal distribution function Phi, exact in float32 even far from 0."""

import math

import jax.numpy as jnp
from jax.scipy.special import erfc
from jaxtyping import Array, Float

LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)

MILLS_FROM, MILLS_TERMS = 3.0, 16
"""Where the continued fraction takes over, and its length: exact in float32 from there on."""


def mills(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 - Phi(a)) / phi(a) for a >= 0, by Laplace's continued fraction where a is large."""
    far = a >= MILLS_FROM
    near_a, far_a = jnp.where(far, 0.0, a), jnp.where(far, a, MILLS_FROM)
    fraction = far_a
    for term in range(MILLS_TERMS, 0, -1):
        fraction = far_a + term / fraction
    near = math.sqrt(math.pi / 2) * jnp.exp(near_a**2 / 2) * erfc(near_a / math.sqrt(2))
    return jnp.where(far, 1 / fraction, near)


def log_phi(b: Float[Array, "..."]) -> Float[Array, "..."]:
    """log Phi(b), with a gradient that is exact even far below 0."""
    below, above = jnp.where(b < 0, -b, 0.0), jnp.where(b < 0, 0.0, b)
    return jnp.where(
        b < 0,
        -(below**2) / 2 - LOG_ROOT_2PI + jnp.log(mills(below)),
        jnp.log1p(-erfc(above / math.sqrt(2)) / 2),
    )

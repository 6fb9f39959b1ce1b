"""Limits of the parameters of likelihoods, with a gradient at the limit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def limit_below(log_scale: Float[Array, "..."], floor: float) -> Float[Array, "..."]:
    """Raise a log scale to the floor if it is below, and leave it unchanged otherwise, bit for bit.

    At the floor, the gradient is that of the density there, so that a scale can leave it again.
    """
    return log_scale - jax.lax.stop_gradient(jnp.minimum(log_scale - floor, 0.0))


def limit_between(a: Float[Array, "..."], low: float, high: float) -> Float[Array, "..."]:
    """Values limited to an interval, with the gradient of `limit_below` at both ends."""
    return -limit_below(-limit_below(a, low), -high)

"""Maximum-likelihood constant outputs of kinds of data without a closed form."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

STEPS = 40
AT_ONCE = 64
"""Dimensions fitted together: enough to keep a core busy, few enough for its memory."""


def fit_likelihood_outputs(
    log_probs: Callable[[Float[Array, " p"]], Float[Array, " v"]],
    start: Float[np.ndarray, "d p"],
    shares: Float[np.ndarray, "d v"],
) -> Float[np.ndarray, "d p"]:
    """The maximum-likelihood outputs of each dimension, near a starting point.

    By Newton's method with Levenberg's damping; a step that does not improve is undone.

    Args:
        log_probs: the log probabilities of all v values, for the outputs of one dimension.
        start: the initial outputs of each dimension.
        shares: the relative frequency of each value in each dimension.
    """

    def fit(one: tuple[Float[Array, " p"], Float[Array, " v"]]) -> Float[Array, " p"]:
        outputs, share = one

        def mean(outputs: Float[Array, " p"]) -> Float[Array, ""]:
            return jnp.dot(share, log_probs(outputs))

        def step(_: Int[Array, ""], carry: tuple[Any, ...]) -> tuple[Any, ...]:
            outputs, best, damping = carry
            slope, curvature = jax.grad(mean)(outputs), -jax.hessian(mean)(outputs)
            damped = curvature + damping * jnp.eye(len(outputs))
            tried = outputs + jnp.linalg.solve(damped, slope)
            value = mean(tried)
            better = value > best  # a nan is not
            return (
                jnp.where(better, tried, outputs),
                jnp.where(better, value, best),
                jnp.where(better, damping / 10, damping * 10),
            )

        first = (outputs, mean(outputs), jnp.float32(1e-2))
        return jax.lax.fori_loop(0, STEPS, step, first)[0]

    arrays = jnp.asarray(start, jnp.float32), jnp.asarray(shares, jnp.float32)
    return np.asarray(jax.jit(lambda both: jax.lax.map(fit, both, batch_size=AT_ONCE))(arrays))

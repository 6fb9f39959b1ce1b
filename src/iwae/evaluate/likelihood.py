"""Log-likelihoods: importance weighted bounds at any k, in constant memory."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae._types import Example, LogWeights, PRNGKey, Scalar
from iwae.evaluate.examples import (
    ROWS,
    SLAB_ROWS,
    ExampleFn,
    check_positive,
    gather,
    map_examples,
)
from iwae.model import AbstractLatentModel
from iwae.particles import importance_particles


@lru_cache
def streamed_bound(k: int, chunk: int, sampler: Callable = importance_particles) -> ExampleFn:
    """L_k of one example and the effective sample size, from chunks of particles.

    The running maximum, sum and sum of squares of the weights are all that is kept, so memory
    does not grow with k. Particle i has the same key whatever the chunk.

    Returns:
        A function of (model, x, key) whose result has `log_likelihood` (nats) and `ess`.
    """

    def fn(model: AbstractLatentModel, x: Example, key: PRNGKey) -> dict[str, Scalar]:
        def add(i: Array, sums: tuple[Scalar, Scalar, Scalar]) -> tuple[Scalar, Scalar, Scalar]:
            log_w = sampler(model, x, key, chunk, first=i * chunk)[0].log_w
            kept = jnp.where(i * chunk + jnp.arange(chunk) < k, log_w, -jnp.inf)
            return _add_weights(sums, kept)

        start = (jnp.float32(-jnp.inf), jnp.float32(0), jnp.float32(0))
        top, total, squares = jax.lax.fori_loop(0, -(-k // chunk), add, start)
        return {
            "log_likelihood": top + jnp.log(total) - jnp.log(jnp.float32(k)),
            "ess": jnp.where(squares > 0, total**2 / squares, 0.0),
        }

    return fn


def _add_weights(
    sums: tuple[Scalar, Scalar, Scalar], log_w: LogWeights
) -> tuple[Scalar, Scalar, Scalar]:
    """Fold weights into (max log w, sum w / max, sum (w / max)^2)."""
    top, total, squares = sums
    new_top = jnp.maximum(top, jnp.max(log_w))
    shift = jnp.where(jnp.isneginf(new_top), 0.0, new_top)  # all weights zero so far
    scale, w = jnp.exp(top - shift), jnp.exp(log_w - shift)
    return new_top, total * scale + jnp.sum(w), squares * scale**2 + jnp.sum(w**2)


def log_likelihood_slabs(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    sampler: Callable = importance_particles,
) -> Iterator[dict[str, np.ndarray]]:
    """`log_likelihoods` slab by slab, with the effective sample sizes, for progress bars."""
    longest = ROWS // 4 if chunk_size is None else chunk_size
    check_positive("k", k)
    check_positive("chunk_size", longest)
    chunk = -(-k // -(-k // longest))  # chunks of equal length waste the fewest particles
    batch = max(1, ROWS // chunk) if batch_size is None else batch_size
    slab = max(1, SLAB_ROWS // k) * jax.device_count()
    fn = streamed_bound(k, chunk, sampler)
    slabs = map_examples(fn, model, examples, key, batch_size=batch, slab_size=slab)
    return _refuse_nan(slabs)


def _refuse_nan(slabs: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    done = 0
    for slab in slabs:
        bad = np.flatnonzero(np.isnan(slab["log_likelihood"]))
        if bad.size:
            raise FloatingPointError(
                f"the log-likelihood of example {done + bad[0]} is not a number (nan): look for "
                "a parameter of the model or a value of this example that is not finite"
            )
        done += len(slab["log_likelihood"])
        yield slab


def log_likelihoods(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    sampler: Callable = importance_particles,
) -> Float[np.ndarray, " n"]:
    """The importance weighted bound L_k of each example (Burda et al. 2016, eq. 8).

    Its expectation is a lower bound of log p(x) that rises with k.

    Args:
        examples: `[n, ...]`, in the model's units (binary pixels as 0 and 1).
        k: importance samples per example; memory does not depend on it.
        batch_size, chunk_size: examples and particles at a time; they change the speed, not
            the numbers (beyond float32 rounding).
        sampler: a function (model, x, key, k, first=) -> (Particles, info).

    Returns:
        `[n]` float64, nats.

    Raises:
        UserError: if there are no examples, or k or a size is not positive.
        FloatingPointError: if a number is nan; `-inf` is an example that the model rules out.
    """
    slabs = log_likelihood_slabs(
        model,
        examples,
        key,
        k=k,
        batch_size=batch_size,
        chunk_size=chunk_size,
        sampler=sampler,
    )
    return gather(slabs)["log_likelihood"]

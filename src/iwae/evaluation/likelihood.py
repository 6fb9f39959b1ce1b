"""Log-likelihoods from importance samples or annealed chains, in constant memory."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.data.rows import Examples
from iwae.errors import UserError, require_positive
from iwae.evaluation.examples import (
    ROWS,
    ExampleFn,
    check_examples,
    gather_examples,
    map_examples_by_cost,
    map_examples_with_chains,
    refuse_nan_examples,
)
from iwae.evaluation.standard_errors import (
    BATCHES,
    jackknife_error,
    jackknife_error_of_weights,
    jackknife_error_sums,
)
from iwae.inference.annealing import annealed_particles
from iwae.inference.kernels import pareto_k
from iwae.inference.log_weights import effective_sample_size, log_mean_exp
from iwae.inference.particles import Sampler, importance_particles
from iwae.inference.temperatures import checked_temperatures
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, LogWeights, PRNGKey, Scalar

KHAT_WEIGHTS = 5000
"""Number of weights of an example, from the first, whose tail is examined whatever k is."""


@lru_cache
def streamed_log_likelihood(
    k: int, chunk: int, sampler: Sampler = importance_particles
) -> ExampleFn:
    """L_k of one example and diagnostics of its weights, from chunks of particles.

    Memory does not grow with k: it holds the running maximum, sums and sum of squares of the
    weights, and the first `KHAT_WEIGHTS` of them. The key of particle i does not depend on the
    chunk.

    Returns:
        A function of (model, x, key) whose result has `log_likelihood` (nats), its
        `monte_carlo_error` (nats; nan for k = 1), `ess`, the effective sample size, and `pareto_k`,
        k-hat (nan for fewer than 25 weights).
    """
    examined = min(k, KHAT_WEIGHTS)
    slots = -(-examined // chunk)  # chunks that are kept; an extra slot takes all others

    def fn(model: AbstractLatentModel, x: Example, key: PRNGKey) -> dict[str, Scalar]:
        model, x = model.condition(x)

        def add(i: Array, carry: tuple[Sums, LogWeights]) -> tuple[Sums, LogWeights]:
            sums, kept = carry
            log_w = sampler(model, x, key, chunk, first=i * chunk)[0].log_w
            log_w = jnp.where(i * chunk + jnp.arange(chunk) < k, log_w, -jnp.inf)
            place = jnp.minimum(i, slots) * chunk
            kept = jax.lax.dynamic_update_slice(kept, log_w, (place,))
            return _add_weights(sums, log_w, i * chunk), kept

        zero = jnp.float32(0)
        start = (jnp.float32(-jnp.inf), zero, zero, jnp.zeros(BATCHES, jnp.float32))
        kept = jnp.zeros((slots + 1) * chunk, jnp.float32)
        sums, kept = jax.lax.fori_loop(0, -(-k // chunk), add, (start, kept))
        top, total, squares, batches = sums
        return {
            "log_likelihood": top + jnp.log(total) - jnp.log(jnp.float32(k)),
            "monte_carlo_error": jackknife_error(batches, k),
            "ess": jnp.where(squares > 0, total**2 / squares, 0.0),
            "pareto_k": pareto_k(kept[:examined]),
        }

    return fn


def likelihood_chunk_length(k: int, longest: int | None = None) -> int:
    """Particles at a time out of k: chunks of equal length, which waste the fewest particles.

    Raises:
        UserError: if k or a length is not positive, or k is beyond 32 bits.
    """
    longest = ROWS // 4 if longest is None else longest
    require_positive("k", k)
    require_positive("chunk_size", longest)
    chunk = -(-k // -(-k // longest))
    if k + chunk > 2**31:
        raise UserError(f"k is {k}; particles are counted in 32 bits: give at most {2**31 - chunk}")
    return chunk


Sums = tuple[Scalar, Scalar, Scalar, Float[Array, " b"]]


def _add_weights(sums: Sums, log_w: LogWeights, first: Array) -> Sums:
    """Add weights to (max log w, sum w / max, sum (w / max)^2, sums of batches / max)."""
    top, total, squares, batches = sums
    new_top = jnp.maximum(top, jnp.max(log_w))
    shift = jnp.where(jnp.isneginf(new_top), 0.0, new_top)  # all weights zero so far
    scale, w = jnp.exp(top - shift), jnp.exp(log_w - shift)
    batches = batches * scale + jackknife_error_sums(w, first)
    return new_top, total * scale + jnp.sum(w), squares * scale**2 + jnp.sum(w**2), batches


def log_likelihood_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    sampler: Sampler = importance_particles,
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """`log_likelihoods` from example `first` on, slab by slab, with weight diagnostics."""
    check_examples(model, examples)
    chunk = likelihood_chunk_length(k, chunk_size)
    slabs = map_examples_by_cost(
        streamed_log_likelihood(k, chunk, sampler),
        model,
        examples,
        key,
        rows=k,
        at_once=chunk,
        batch_size=batch_size,
        first=first,
    )
    return refuse_nan_examples(slabs, first)


def log_likelihoods(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    sampler: Sampler = importance_particles,
) -> Float[np.ndarray, " n"]:
    """The importance weighted bound L_k of each example (Burda et al. 2016, eq. 8).

    Its expectation is a lower bound on log p(x) that rises with k.

    Args:
        examples: `[n, ...]`, in the model's units (binary pixels as 0 and 1).
        k: importance samples per example; memory does not depend on it.
        batch_size, chunk_size: examples and particles at a time; they change the speed, not
            the numbers (beyond float32 rounding).
        sampler: a function (model, x, key, k, first=) -> (Particles, info).

    Returns:
        `[n]` float64, nats.

    Raises:
        UserError: if there are no examples, k or a size is not positive, k is beyond 32 bits, or
            values are invalid for the model's kind of data.
        FloatingPointError: if a number is nan; `-inf` means that the model rules the example out.
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
    return gather_examples(slabs)["log_likelihood"]


def annealed_log_likelihood_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    chains: int,
    batch_size: int | None = None,
    first: int = 0,
    **path: Any,
) -> Iterator[dict[str, np.ndarray]]:
    """Log-likelihoods by annealed importance sampling from example `first` on, slab by slab.

    Args:
        chains: number of chains per example.
        batch_size: examples at a time on each device; changes the speed, not the numbers.
        path: `betas`, `step_size`, `n_leapfrog` and `start` of `annealed_particles`.

    Yields:
        As `log_likelihood_slabs` does, and the mean `acceptance` of each example.
    """
    check_examples(model, examples)
    fn = annealed_likelihood(chains=chains, **path)
    slabs = map_examples_with_chains(
        fn, model, examples, key, chains=chains, batch_size=batch_size, first=first
    )
    return refuse_nan_examples(slabs, first)


Estimates = Callable[[LogWeights], dict[str, Scalar]]


def _likelihood(log_w: LogWeights) -> dict[str, Scalar]:
    return {"log_likelihood": log_mean_exp(log_w)}


def annealed_likelihood(
    estimates: Estimates = _likelihood, *, chains: int, **path: Any
) -> ExampleFn:
    """A function of one example: estimates from annealed chains and diagnostics of the weights.

    Args:
        estimates: log weights -> estimates, nats.
        path: as for `annealed_log_likelihood_slabs`.
    """
    return eqx.Partial(
        _annealed_estimates, estimates, **checked_temperatures(chains=chains, **path)
    )


def _annealed_estimates(
    estimates: Estimates,
    model: AbstractLatentModel,
    x: Example,
    key: PRNGKey,
    *,
    k: int,
    **path: Any,
) -> dict[str, Scalar]:
    model, x = model.condition(x)
    (_, log_w), info = annealed_particles(model, x, key, k, **path)
    found = {**estimates(log_w), **likelihood_diagnostics(log_w)}
    return {**found, "acceptance": jnp.mean(info["acceptance"])}


def likelihood_diagnostics(log_w: LogWeights) -> dict[str, Scalar]:
    """Monte Carlo error (nats), effective sample size and k-hat of one example's weights.

    k-hat is nan for fewer than 25 weights, such as those of 16 chains: their tail is too short.
    """
    return {
        "monte_carlo_error": jackknife_error_of_weights(log_w),
        "ess": effective_sample_size(log_w),
        "pareto_k": pareto_k(log_w),
    }

"""Bounds from both sides on the log-likelihood of real examples, from one set of weights.

With unbiased weights, E[w] = p(x), and any c > 0, log p(x) <= E[w] / c + log c - 1, since
log a <= a - 1; equality holds at c = p(x). c may be random if it is independent of w, as the mean
of the other weights is. No draw from the true posterior is needed.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.data.rows import Examples
from iwae.errors import UserError
from iwae.evaluation.convergence import Convergence
from iwae.evaluation.differences import STANDARD_ERRORS
from iwae.evaluation.examples import (
    check_examples,
    map_examples_by_cost,
    map_examples_with_chains,
    refuse_nan_examples,
)
from iwae.evaluation.likelihood import KHAT_WEIGHTS, annealed_likelihood, likelihood_chunk_length
from iwae.evaluation.standard_errors import jackknife_error_of_weights, standard_error
from iwae.evaluation.tails import tail_doubt
from iwae.inference.kernels import pareto_k
from iwae.inference.log_weights import effective_sample_size, log_mean_exp, log_sum_of_other_weights
from iwae.inference.particles import importance_particles
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, LogWeights, PRNGKey, Scalar

SIDES = ("lower", "upper")


def two_sided(log_w: LogWeights) -> dict[str, Scalar]:
    """Bounds on log p(x), nats, from k >= 2 independent weights of expectation p(x).

    With c_i the mean of all weights but w_i,

        lower = log mean_i w_i,    upper = mean_i (w_i / c_i + log c_i - 1).

    Each holds in expectation, and upper >= lower for any weights, with equality if all are equal.
    (Two halves of the weights that swap roles would be the same with k = 2 weights, the means of
    the halves; c from all other weights is closer to p(x).)

    Returns:
        `lower` (-inf if all weights are zero), `upper` (inf if fewer than two are not), and
        `ratio`, mean_i w_i / c_i, whose expectation is at least 1.
    """
    log_c = log_sum_of_other_weights(log_w) - jnp.log(float(log_w.size - 1))
    ratio = jnp.where(jnp.isneginf(log_c), jnp.inf, jnp.exp(log_w - log_c))
    upper = jnp.where(jnp.isneginf(log_c), jnp.inf, ratio + log_c - 1)
    return {"lower": log_mean_exp(log_w), "upper": jnp.mean(upper), "ratio": jnp.mean(ratio)}


def annealed_two_sided_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    chains: int,
    batch_size: int | None = None,
    first: int = 0,
    **path: Any,
) -> Iterator[dict[str, np.ndarray]]:
    """`two_sided` bounds of each example by annealing, slab by slab.

    The chains, and so the lower bounds, are those of `annealed_log_likelihood_slabs` with this key.

    Args:
        chains: per example, at least two.
        path: `betas`, `step_size`, `n_leapfrog` and `start` of `annealed_particles`; step sizes
            from a pilot on other examples with another key.

    Yields:
        `lower`, `upper`, `ratio`, `monte_carlo_error` of the lower bound, `ess`, `pareto_k` and
        the mean `acceptance` of each example.

    Raises:
        UserError: if there are fewer than two chains, or the schedule is not valid.
        FloatingPointError: if a bound is nan.
    """
    _check_two("chains", chains)
    check_examples(model, examples)
    fn = annealed_likelihood(two_sided, chains=chains, **path)
    slabs = map_examples_with_chains(
        fn, model, examples, key, chains=chains, batch_size=batch_size, first=first
    )
    return refuse_nan_examples(slabs, first, names=SIDES)


def two_sided_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """`two_sided` bounds of each example by k importance samples, slab by slab.

    The samples, and so the lower bounds, are those of `likelihood.log_likelihoods` with this key.
    The k weights of an example are in memory together.

    Yields:
        `lower`, `upper`, `ratio`, `monte_carlo_error`, `ess` and `pareto_k` of each example.

    Raises:
        UserError: if k is less than two.
        FloatingPointError: if a bound is nan.
    """
    _check_two("k", k)
    check_examples(model, examples)
    chunk = likelihood_chunk_length(k)
    fn = eqx.Partial(_importance_sandwich, k=k, chunk=chunk)
    slabs = map_examples_by_cost(
        fn, model, examples, key, rows=k, at_once=chunk, batch_size=batch_size, first=first
    )
    return refuse_nan_examples(slabs, first, names=SIDES)


def _importance_sandwich(
    model: AbstractLatentModel, x: Example, key: PRNGKey, *, k: int, chunk: int
) -> dict[str, Scalar]:
    model, x = model.condition(x)

    def weights(i: Array) -> LogWeights:
        return importance_particles(model, x, key, chunk, first=i * chunk)[0].log_w

    log_w = jax.lax.map(weights, jnp.arange(-(-k // chunk))).ravel()[:k]
    return {
        **two_sided(log_w),
        "monte_carlo_error": jackknife_error_of_weights(log_w),
        "ess": effective_sample_size(log_w),
        "pareto_k": pareto_k(log_w[:KHAT_WEIGHTS]),
    }


def _check_two(name: str, value: int) -> None:
    if value < 2:
        raise UserError(f"{name} is {value}; c comes from the other weights: give 2 or more")


# --- how far to trust the upper side --------------------------------------------------------


class Tightness(NamedTuple):
    """Whether bounds from both sides determine the mean log-likelihood to within the tolerance.

    Attributes:
        status: undecided if the tail of the ratios is too heavy or unknown, so that the upper side
            cannot be trusted.
        reason: the explanation.
    """

    status: Convergence
    reason: str


def two_sided_verdict(gap: Float[np.ndarray, " n"], tail: float, tolerance: float) -> Tightness:
    """Judge the gap of real examples: its mean plus three standard errors must be small.

    Args:
        gap: upper minus lower bound of each example, nats.
        tail: from `ratio_tail`. A heavy tail does not excuse a gap that is too large.
        tolerance: nats.
    """
    if not np.isfinite(gap).all():
        infinite = np.count_nonzero(~np.isfinite(gap))
        return Tightness(Convergence.NOT_CONVERGED, f"the gap of {infinite} examples is infinite")
    mean, error = float(np.mean(gap)), standard_error(gap)
    words = f"the gap is {mean:.3f} +- {error:.3f} nats"
    if not mean + STANDARD_ERRORS * error <= tolerance:
        return Tightness(Convergence.NOT_CONVERGED, f"{words}, not reliably below {tolerance:g}")
    if (doubt := tail_doubt(tail, len(gap))) is not None:
        return Tightness(Convergence.UNDECIDED, f"{words}, but {doubt}")
    return Tightness(Convergence.CONVERGED, words)

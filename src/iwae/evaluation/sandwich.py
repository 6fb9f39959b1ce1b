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
from iwae.evaluation.diagnostics import STANDARD_ERRORS, tail_doubt, test_sample_error
from iwae.evaluation.examples import map_by_cost, map_chains, refuse_nan
from iwae.evaluation.jackknife import weights_error
from iwae.evaluation.likelihood import KHAT_WEIGHTS, annealed_bound, chunk_length
from iwae.inference.kernels import ROUNDING, pareto_k
from iwae.inference.particles import (
    effective_sample_size,
    importance_particles,
    log_mean_exp,
    log_sum_of_others,
)
from iwae.models.conditional import check_examples
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
    log_c = log_sum_of_others(log_w) - jnp.log(float(log_w.size - 1))
    ratio = jnp.where(jnp.isneginf(log_c), jnp.inf, jnp.exp(log_w - log_c))
    upper = jnp.where(jnp.isneginf(log_c), jnp.inf, ratio + log_c - 1)
    return {"lower": log_mean_exp(log_w), "upper": jnp.mean(upper), "ratio": jnp.mean(ratio)}


def annealed_sandwich_slabs(
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

    The chains, and so the lower bounds, are those of `likelihood.annealed_slabs` with this key.

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
    fn = annealed_bound(two_sided, chains=chains, **path)
    slabs = map_chains(fn, model, examples, key, chains=chains, batch_size=batch_size, first=first)
    return refuse_nan(slabs, first, names=SIDES)


def sandwich_slabs(
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
    chunk = chunk_length(k)
    fn = eqx.Partial(_importance_sandwich, k=k, chunk=chunk)
    slabs = map_by_cost(
        fn, model, examples, key, rows=k, at_once=chunk, batch_size=batch_size, first=first
    )
    return refuse_nan(slabs, first, names=SIDES)


def _importance_sandwich(
    model: AbstractLatentModel, x: Example, key: PRNGKey, *, k: int, chunk: int
) -> dict[str, Scalar]:
    model, x = model.condition(x)

    def weights(i: Array) -> LogWeights:
        return importance_particles(model, x, key, chunk, first=i * chunk)[0].log_w

    log_w = jax.lax.map(weights, jnp.arange(-(-k // chunk))).ravel()[:k]
    return {
        **two_sided(log_w),
        "monte_carlo_error": weights_error(log_w),
        "ess": effective_sample_size(log_w),
        "pareto_k": pareto_k(log_w[:KHAT_WEIGHTS]),
    }


def _check_two(name: str, value: int) -> None:
    if value < 2:
        raise UserError(f"{name} is {value}; c comes from the other weights: give 2 or more")


# --- how far to trust the upper side --------------------------------------------------------


def ratio_tail(ratio: Float[np.ndarray, " n"], lower: Float[np.ndarray, " n"]) -> float:
    """k-hat of the ratios w / c over examples; above `pareto_threshold`, their mean may be too low.

    A sample mean understates an expectation dominated by rare large values. 0 if the ratios differ
    by no more than the rounding of log-likelihoods such as `lower`; nan for fewer than 25 examples.
    """
    if not np.isfinite([ratio, lower]).all():
        return float("inf")
    log_ratio = np.log(ratio)
    if np.ptp(log_ratio) <= ROUNDING * np.abs(lower).max():
        return 0.0
    return float(jax.jit(pareto_k)(jnp.asarray(log_ratio, jnp.float32)))


class Tightness(NamedTuple):
    """Whether bounds from both sides determine the mean log-likelihood to within the tolerance.

    Attributes:
        word: "converged", "not converged", or "undecided" if the tail of the ratios is too heavy
            (or unknown) to trust the upper side.
        reason: the explanation.
    """

    word: str
    reason: str


def tightness(gap: Float[np.ndarray, " n"], tail: float, tolerance: float) -> Tightness:
    """Judge the gap of real examples: its mean plus three standard errors must be small.

    Args:
        gap: upper minus lower bound of each example, nats.
        tail: from `ratio_tail`. A heavy tail does not excuse a gap that is too large.
        tolerance: nats.
    """
    if not np.isfinite(gap).all():
        infinite = np.count_nonzero(~np.isfinite(gap))
        return Tightness("not converged", f"the gap of {infinite} examples is infinite")
    mean, error = float(np.mean(gap)), test_sample_error(gap)
    words = f"the gap is {mean:.3f} +- {error:.3f} nats"
    if not mean + STANDARD_ERRORS * error <= tolerance:
        return Tightness("not converged", f"{words}, not reliably below {tolerance:g}")
    if (doubt := tail_doubt(tail, len(gap))) is not None:
        return Tightness("undecided", f"{words}, but {doubt}")
    return Tightness("converged", words)

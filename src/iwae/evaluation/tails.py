"""The tail of importance weights: Pareto k-hat, and what it says about an estimate."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from iwae.inference.kernels import ROUNDING, pareto_k


def pareto_threshold(k: int) -> float:
    """k-hat above which k weights are unreliable: min(1 - 1/log10 k, 0.7) (Vehtari et al. 2024)."""
    return min(1 - 1 / float(np.log10(k)), 0.7) if k > 1 else float("nan")


def tail_doubt(tail: float, n: int) -> str | None:
    """The reason to doubt a mean over n ratios w/c, given their k-hat; None if there is none."""
    if np.isnan(tail):
        return "too few examples to know the tail of w/c"
    if tail > pareto_threshold(n):
        return f"the tail of w/c is heavy (k-hat {tail:.2f}): the upper side may be too low"
    return None


def heavy_tailed_share(khat: Float[np.ndarray, " n"], k: int) -> float:
    """The share of examples whose k-hat is above the threshold; nan if none is known."""
    known = khat[~np.isnan(khat)]
    return float(np.mean(known > pareto_threshold(k))) if known.size else float("nan")


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

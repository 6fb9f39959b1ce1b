"""Differences of log-likelihoods of the same examples, and their standard errors."""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iwae.errors import UserError
from iwae.evaluation.standard_errors import standard_error

STANDARD_ERRORS = 3.0
"""Two numbers agree if they are no further apart than this many standard errors."""

ROUNDING = 1e-6
"""Relative rounding error of a float32 log-likelihood over thousands of terms."""


class Difference(NamedTuple):
    """Mean of a - b over the same examples, and its standard error, nats.

    The error is that of the per-example differences, in which common variation cancels.
    `rounding` bounds the rounding error of float32 in the difference.
    """

    mean: float
    stderr: float
    rounding: float = 0.0

    @property
    def significant(self) -> bool:
        """Whether it is further from zero than chance and rounding explain."""
        return abs(self.mean) > STANDARD_ERRORS * self.stderr + self.rounding


def paired_difference(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"]) -> Difference:
    """The mean of a - b and its standard error; UserError unless n = m."""
    if a.shape != b.shape:
        raise UserError(f"{len(a)} and {len(b)} examples: a paired comparison needs the same ones")
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    rounding = ROUNDING * float(np.abs(a).mean()) if np.isfinite(a).all() else 0.0
    return Difference(float(d.mean()), standard_error(d), rounding)


def reversed_differences(bounds: Mapping[str, Float[np.ndarray, " n"]]) -> list[str]:
    """Describe violations of L_1 <= L_50 <= L_5000 <= AIS; empty if there are none.

    More samples cannot loosen the bound. If an L_k lies below one of fewer samples by more than
    three standard errors of their paired difference, something is broken. If annealing lies below
    L_k, it may also be too short.

    Args:
        bounds: name -> per-example values, loosest first; all of the same examples.
    """
    violations = []
    for (low, a), (high, b) in combinations(bounds.items(), 2):
        difference = paired_difference(b, a)
        if difference.mean < 0 and difference.significant:
            reason = (
                "the annealing is too short (give more temperatures), or something is broken"
                if high.startswith("AIS")
                else "something is broken"
            )
            violations.append(
                f"{high} is {-difference.mean:.3f} +- {difference.stderr:.3f} nats below {low}, "
                f"but should be above it: {reason}; trust neither until this is explained"
            )
    return violations

"""Simultaneous confidence bands for the distribution function of uniform ranks."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln
from scipy.stats import binom

from iwae.errors import UserError

GRID = 100
"""Intervals of (0, 1), at whose ends the distribution of ranks is compared with the uniform one."""

BISECTIONS = 12
"""Bisections of the range of the log critical tail: to one part in a thousand."""


class Bands(NamedTuple):
    """Simultaneous bands for the distribution function of n uniform numbers.

    Säilynoja, Bürkner & Vehtari (2022), with the exact probability by recursion over the points.

    Attributes:
        points: `[m]`, inside (0, 1).
        tails: `[n+1, m]`, twice the smaller tail probability of a count at a point.
        critical: a count whose tail is not above this is outside the bands.
        lower, upper: `[m]`, the smallest and largest share of numbers below a point that is inside
            the bands.
    """

    points: Float[np.ndarray, " m"]
    tails: Float[np.ndarray, "n1 m"]
    critical: float
    lower: Float[np.ndarray, " m"]
    upper: Float[np.ndarray, " m"]

    def smallest_tail(self, ranks: Float[np.ndarray, "n units"]) -> Float[np.ndarray, " units"]:
        """The smallest tail of each unit over all points; outside if it is not above `critical`."""
        counts = ecdf_counts(ranks, self.points)
        return np.asarray(self.tails[counts, np.arange(len(self.points))].min(axis=1))

    def p_value(self, tail: float) -> float:
        """The probability that n uniform numbers have a smallest tail as small as this."""
        return max(0.0, 1 - _inside_probability(self.tails, self.points, tail))


def ecdf_counts(
    ranks: Float[np.ndarray, "n units"], points: Float[np.ndarray, " m"]
) -> Int[np.ndarray, "units m"]:
    """The number of ranks of each unit below each point."""
    return np.stack([np.searchsorted(np.sort(column), points) for column in ranks.T])


def uniform_bands(n: int, level: float = 0.95, points: int = GRID) -> Bands:
    """Bands that contain n uniform numbers at all points with at least the given probability.

    Args:
        n: number of ranks.
        level: probability that uniform numbers stay inside.
        points: number of intervals of (0, 1), at whose inner ends the bands are computed.
    """
    if n < 1:
        raise UserError("there are no ranks to compare with uniform ones")
    z = np.arange(1, points) / points
    counts = np.arange(n + 1)[:, None]
    below, above = binom.cdf(counts, n, z[None]), binom.sf(counts - 1, n, z[None])
    tails = np.minimum(1.0, 2 * np.minimum(below, above))
    low, high = (1 - level) / points, 1 - level  # by the union bound, and for a single point
    for _ in range(BISECTIONS):
        middle = float(np.sqrt(low * high))
        inside = _inside_probability(tails, z, middle) >= level
        low, high = (middle, high) if inside else (low, middle)
    allowed = tails > low
    first = allowed.argmax(axis=0)
    last = n - allowed[::-1].argmax(axis=0)
    return Bands(z, tails, low, first / n, last / n)


def _inside_probability(
    tails: Float[np.ndarray, "n1 m"], points: Float[np.ndarray, " m"], critical: float
) -> float:
    """The probability that counts of n uniform numbers have tails above `critical` at all points.

    The count below the next point is binomial given the count below the last one.
    """
    n, log_factorial = len(tails) - 1, gammaln(np.arange(len(tails)) + 1.0)
    counts, probability, last = np.zeros(1, int), np.ones(1), 0.0
    for i, point in enumerate(points):
        following = np.flatnonzero(tails[:, i] > critical)
        more = following[:, None] - counts[None]  # numbers in between; negative is impossible
        rest = n - following[:, None]
        p = (point - last) / (1 - last)
        log_step = (
            log_factorial[n - counts][None]
            - log_factorial[np.maximum(more, 0)]
            - log_factorial[rest]
            + more * np.log(p)
            + rest * np.log1p(-p)
        )
        step = np.where(more >= 0, np.exp(np.where(more >= 0, log_step, 0.0)), 0.0)
        counts, probability, last = following, step @ probability, point
    return float(probability.sum())

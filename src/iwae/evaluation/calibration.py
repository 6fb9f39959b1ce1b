"""Calibration of q(z|x): where true latents lie among its draws, on pairs that the model makes.

For (z, x) ~ p and k draws of q(z|x), the rank of each unit of z among its draws is uniform if q is
the posterior (Cook, Gelman & Rubin 2006; Talts et al. 2018).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int
from scipy.special import gammaln
from scipy.stats import binom

from iwae.evaluation.examples import ExampleFn, check_positive, map_by_cost, refuse_nan
from iwae.inference.particles import importance_particles
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey

GRID = 100
"""Intervals of (0, 1) at whose ends the distribution of ranks is compared with the uniform one."""

BISECTIONS = 12
"""Halvings of the range of log tails that the bands are looked for in: to a part in 1,000."""

KINDS = ("q", "snis")
"""Distributions that are ranked in: draws of q(z|x), and the same draws with their weights."""

# --- ranks ----------------------------------------------------------------------------------


def rank_slabs(
    model: AbstractLatentModel,
    key: PRNGKey,
    *,
    n_examples: int,
    k: int,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Relative ranks of true latents among k draws of q(z|x), slab by slab.

    Example i, its latents and all draws depend only on `fold_in(key, i)`. For a conditional model,
    the label is drawn with x. The k draws of an example are in memory together.

    Yields:
        `q` `[n, units]`, the ranks among the draws: uniform on (0, 1) for every unit if q is the
        posterior, continuous or discrete, as ties are broken at random; and `snis`, those in the
        distribution of the draws with self-normalised weights, nearly uniform for k large enough.

    Raises:
        UserError: if a number is not positive.
        FloatingPointError: if a rank is nan.
    """
    check_positive("examples", n_examples)
    check_positive("k", k)
    nothing = np.zeros((n_examples, 1), np.uint8)
    fn = _ranks(k)
    slabs = map_by_cost(fn, model, nothing, key, rows=k, batch_size=batch_size, first=first)
    return refuse_nan(slabs, first, "rank", KINDS)


@lru_cache
def _ranks(k: int) -> ExampleFn:
    def fn(model: AbstractLatentModel, nothing: Example, key: PRNGKey) -> dict[str, Array]:  # noqa: ARG001
        model_key, q_key, tie_key = jax.random.split(key, 3)
        z, x = model.sample(model_key)
        model, x = model.condition(x)
        particles, _ = importance_particles(model, x, q_key, k)
        truth = ravel_pytree(z)[0]
        draws = jax.vmap(lambda z: ravel_pytree(z)[0])(particles.z)
        v = jax.random.uniform(tie_key, truth.shape)
        equal, weighted = jnp.full(k, 1 / k), jax.nn.softmax(particles.log_w)
        return {
            name: relative_rank(truth, draws, weights, v)
            for name, weights in zip(KINDS, (equal, weighted), strict=True)
        }

    return fn


def relative_rank(
    truth: Float[Array, " units"],
    draws: Float[Array, "k units"],
    weights: Float[Array, " k"],
    v: Float[Array, " units"],
) -> Float[Array, " units"]:
    """The place of the truth in a weighted sample, between 0 and 1.

    With equal weights it is (number of draws below + v (number of equal ones + 1)) / (k + 1):
    uniform if truth and draws are exchangeable.

    Args:
        weights: sum to 1.
        v: uniform on (0, 1), to break ties.
    """
    k = float(len(weights))
    below = weights @ (draws < truth[None]).astype(draws.dtype)
    equal = weights @ (draws == truth[None]).astype(draws.dtype)
    return (k * (below + v * equal) + v) / (k + 1)


def coverage(ranks: Float[np.ndarray, "n units"], level: float) -> Float[np.ndarray, " n"]:
    """The share of each example's units whose truth is in the central interval of this level."""
    return np.asarray((np.abs(ranks - 0.5) <= level / 2).mean(axis=1))


# --- simultaneous bands ---------------------------------------------------------------------


class Bands(NamedTuple):
    """Bands that hold the distribution function of n uniform numbers at all points at once.

    Säilynoja, Bürkner & Vehtari (2022), with the exact probability by recursion over the points.

    Attributes:
        points: `[m]`, inside (0, 1).
        tails: `[n+1, m]`, twice the smaller tail probability of a count at a point.
        critical: the tail below which a count is outside.
        lower, upper: `[m]`, the smallest and largest share of numbers below a point inside.
    """

    points: Float[np.ndarray, " m"]
    tails: Float[np.ndarray, "n1 m"]
    critical: float
    lower: Float[np.ndarray, " m"]
    upper: Float[np.ndarray, " m"]

    def smallest_tail(self, ranks: Float[np.ndarray, "n units"]) -> Float[np.ndarray, " units"]:
        """The smallest tail of each unit over all points; outside if not above `critical`."""
        counts = counts_below(ranks, self.points)
        return np.asarray(self.tails[counts, np.arange(len(self.points))].min(axis=1))

    def p_value(self, tail: float) -> float:
        """The probability that n uniform numbers have a smallest tail as small as this."""
        return max(0.0, 1 - _inside_probability(self.tails, self.points, tail))


def counts_below(
    ranks: Float[np.ndarray, "n units"], points: Float[np.ndarray, " m"]
) -> Int[np.ndarray, "units m"]:
    """How many of each unit's ranks are below each point."""
    return np.stack([np.searchsorted(np.sort(column), points) for column in ranks.T])


def uniform_bands(n: int, level: float = 0.95, points: int = GRID) -> Bands:
    """Bands for n numbers that all hold at once with at least the given probability.

    Args:
        n: how many numbers.
        level: probability that uniform numbers stay inside.
        points: intervals of (0, 1), at whose inner ends the bands are.
    """
    check_positive("n", n)
    z = np.arange(1, points) / points
    counts = np.arange(n + 1)[:, None]
    below, above = binom.cdf(counts, n, z[None]), binom.sf(counts - 1, n, z[None])
    tails = np.minimum(1.0, 2 * np.minimum(below, above))
    low, high = (1 - level) / points, 1 - level  # by the union bound, and of one point alone
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
    """The probability that counts of n uniform numbers have larger tails than this everywhere.

    Numbers below the next point are binomial given those below the last one.
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

"""Levels 0 to 255: a continuous distribution, integrated over 256 bins.

Level x is the bin from x - 1/2 to x + 1/2. The bin of 0 has no lower edge and that of 255 no upper
edge, so that the probabilities sum to one. Locations and scales refer to levels mapped to [-1, 1].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import erf, ndtr
from jaxtyping import Array, Float

from iwae.data import Kind
from iwae.data.kinds import LEVELS
from iwae.models.likelihoods.fitting import fit_likelihood_outputs
from iwae.models.likelihoods.gaussian import LOG_ROOT_2PI, gaussian_log_cdf, gaussian_mills_ratio
from iwae.models.likelihoods.limits import limit_between
from iwae.models.likelihoods.observation import Encoding, Observation, Rows
from iwae.typing import PRNGKey

HALF = (LEVELS - 1) / 2

LEAST_LOG_SCALE = -7.0
"""The smallest log scale on [-1, 1]: about a ninth of a level (PixelCNN++, Salimans 2017)."""

MOST_LOG_SCALE = 10.0
"""The largest log scale: beyond it, float32 cannot tell the levels between the ends apart."""


class Levels(dist.Distribution):
    """Integer levels `[d]` as float32: a continuous variable on [-1, 1] and beyond, rounded."""

    support = dist.constraints.integer_interval(0, LEVELS - 1)

    def draw(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "*d"]:
        """Draw values of the continuous variable, before rounding."""
        raise NotImplementedError

    def above(self, edge: Float[Array, ""]) -> Float[Array, " d"]:
        """The probability that the continuous variable is above an edge on [-1, 1]."""
        raise NotImplementedError

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """Levels, as float32."""
        u = self.draw(key, sample_shape + self.batch_shape)
        return jnp.clip(jnp.rint(HALF * (1 + u)), 0, LEVELS - 1)

    @property
    def mean(self) -> Float[Array, " d"]:
        """E[x] = sum over levels of P(x above the level); one level at a time saves memory."""
        edges = _unit(jnp.arange(0.5, LEVELS - 1))
        zeros = jnp.zeros(self.batch_shape, jnp.float32)
        return jax.lax.scan(lambda sum_, edge: (sum_ + self.above(edge), None), zeros, edges)[0]


def _unit(level: Float[Array, "..."]) -> Float[Array, "..."]:
    """Map levels 0 to 255 to -1 to 1."""
    return level / HALF - 1


TRACE = 0.01
"""Total weight of the pseudo-counts that every level gets in the initial fit."""


# --- mixtures of logistics ------------------------------------------------------------------


class LogisticMixture(Levels):
    """An independent mixture of M logistics for each dimension; all parameters are `[M, d]`."""

    arg_constraints = dict.fromkeys(("logits", "loc", "log_scale"), dist.constraints.real_matrix)

    def __init__(
        self,
        logits: Float[Array, "m d"],
        loc: Float[Array, "m d"],
        log_scale: Float[Array, "m d"],
    ):
        self.logits, self.loc = logits, loc
        self.log_scale = limit_between(log_scale, LEAST_LOG_SCALE, MOST_LOG_SCALE)
        super().__init__(batch_shape=jnp.shape(loc)[-1:])

    def draw(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "*d"]:
        """Draw from a logistic chosen by its weight."""
        which_key, key = jax.random.split(key)
        which = jax.random.categorical(which_key, self.logits, axis=0, shape=shape)
        columns = jnp.arange(shape[-1])
        scale = jnp.exp(self.log_scale[which, columns])
        return self.loc[which, columns] + scale * jax.random.logistic(key, shape, jnp.float32)

    def above(self, edge: Float[Array, ""]) -> Float[Array, " d"]:
        """The weighted average over the logistics."""
        each = jax.nn.sigmoid((self.loc - edge) * jnp.exp(-self.log_scale))
        return jnp.sum(jax.nn.softmax(self.logits, axis=0) * each, axis=0)

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """The log of the mixture of the bins' probabilities."""
        each = _log_logistic_bin(value[None], self.loc, self.log_scale)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits, axis=0) + each, axis=0)


def _log_logistic_bin(
    x: Float[Array, "1 d"], loc: Float[Array, "m d"], log_scale: Float[Array, "m d"]
) -> Float[Array, "m d"]:
    """log[s(b) - s(a)] with the sigmoid s and the edges a < b, where s(-inf) = 0 and s(inf) = 1.

    Computed as log s(b) + log s(-a) + log(1 - exp(a - b)), without cancellation.
    """
    sharpness = jnp.exp(-log_scale)
    lower, upper = ((_unit(x + half) - loc) * sharpness for half in (-0.5, 0.5))
    width = sharpness / HALF
    open_below, open_above = x < 1, x > LEVELS - 2
    return (
        jnp.where(open_above, 0.0, jax.nn.log_sigmoid(upper))
        + jnp.where(open_below, 0.0, jax.nn.log_sigmoid(-lower))
        + jnp.where(open_above | open_below, 0.0, jnp.log(-jnp.expm1(-width)))
    )


def logistic_mixture(kind: Kind, d: int) -> Observation:
    """The logits, locations and log scales of M logistics for each dimension."""
    m = kind.mixtures
    assert m is not None  # noqa: S101 - by `make_kind`

    def distribution(outputs: Float[Array, " o"]) -> dist.Distribution:
        return LogisticMixture(*outputs.reshape(3, m, -1)).to_event(1)

    def start(rows: Rows) -> np.ndarray:
        shares = _shares(rows)
        quantiles = (np.arange(m) + 0.5) / m
        cumulated = shares.cumsum(axis=1)
        loc = np.stack([(cumulated < q).sum(axis=1) for q in quantiles], axis=1) / HALF - 1
        scale = np.maximum(_deviation(shares) * math.sqrt(3) / math.pi / m, 0.5 / HALF)
        logits, log_scale = np.zeros_like(loc), np.repeat(np.log(scale)[:, None], m, axis=1)
        return _fitted(distribution, np.concatenate([logits, loc, log_scale], axis=1), shares)

    return Observation(3 * m * d, distribution, start, encoding=Encoding(d, lambda x, _: _unit(x)))


# --- Gaussians ------------------------------------------------------------------------------


class DiscretisedGaussian(Levels):
    """An independent rounded Gaussian for each dimension; both parameters are `[d]`."""

    arg_constraints = dict.fromkeys(("loc", "log_scale"), dist.constraints.real_vector)

    def __init__(self, loc: Float[Array, " d"], log_scale: Float[Array, " d"]):
        self.loc, self.log_scale = loc, limit_between(log_scale, LEAST_LOG_SCALE, MOST_LOG_SCALE)
        super().__init__(batch_shape=jnp.shape(loc))

    def draw(self, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "*d"]:
        """Draw from the Gaussian."""
        return self.loc + jnp.exp(self.log_scale) * jax.random.normal(key, shape, jnp.float32)

    def above(self, edge: Float[Array, ""]) -> Float[Array, " d"]:
        """The upper tail probability of the Gaussian."""
        return ndtr((self.loc - edge) * jnp.exp(-self.log_scale))

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """log[Phi(b) - Phi(a)] at the edges of the level."""
        sharpness = jnp.exp(-self.log_scale)
        lower, upper = ((_unit(value + half) - self.loc) * sharpness for half in (-0.5, 0.5))
        middle = (_unit(value) - self.loc) * sharpness
        inside = _log_phi_between(middle, sharpness / HALF)
        tail = jnp.where(value < 1, gaussian_log_cdf(upper), gaussian_log_cdf(-lower))
        return jnp.where((value < 1) | (value > LEVELS - 2), tail, inside)


def _log_phi_between(
    middle: Float[Array, "..."], width: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The log of the standard normal probability of an interval, without cancellation.

    By three-point Gauss quadrature for a narrow interval, by Mills' ratios for a wide one on one
    side of 0, and by the error function for a wide one across 0.
    """
    m = jnp.abs(middle)
    narrow, across = width * (1 + m) < 0.5, m < width / 2
    beside = ~narrow & ~across
    across = ~narrow & across

    m0, w0 = jnp.where(narrow, m, 0.0), jnp.where(narrow, width, 0.1)
    steps = [(w0 * node / 2, weight) for node, weight in GAUSS]
    average = sum(weight * jnp.exp(-m0 * t - t**2 / 2) for t, weight in steps)
    of_narrow = -(m0**2) / 2 - LOG_ROOT_2PI + jnp.log(w0) + jnp.log(average)

    m1, w1 = jnp.where(beside, m, 2.0), jnp.where(beside, width, 1.0)
    a = m1 - w1 / 2
    ratio = gaussian_mills_ratio(a) - jnp.exp(-m1 * w1) * gaussian_mills_ratio(a + w1)
    of_beside = -(a**2) / 2 - LOG_ROOT_2PI + jnp.log(ratio)

    m2, w2 = jnp.where(across, m, 0.0), jnp.where(across, width, 1.0)
    upper, lower = ((m2 + sign * w2 / 2) / math.sqrt(2) for sign in (1, -1))
    of_across = jnp.log((erf(upper) - erf(lower)) / 2)
    return jnp.where(narrow, of_narrow, jnp.where(beside, of_beside, of_across))


GAUSS = ((0.0, 4 / 9), (math.sqrt(0.6), 5 / 18), (-math.sqrt(0.6), 5 / 18))
"""Gauss-Legendre nodes on [-1, 1] and their weights, which sum to one."""


def discretised_gaussian(kind: Kind, d: int) -> Observation:  # noqa: ARG001
    """A location and a log scale for each dimension; the scale starts at half a level or more."""

    def distribution(outputs: Float[Array, " o"]) -> dist.Distribution:
        return DiscretisedGaussian(*jnp.split(outputs, 2)).to_event(1)

    def start(rows: Rows) -> np.ndarray:
        shares = _shares(rows)
        loc = shares @ np.arange(LEVELS) / HALF - 1
        scale = np.maximum(_deviation(shares), 0.5 / HALF)
        fitted = _fitted(distribution, np.stack([loc, np.log(scale)], axis=1), shares)
        return np.concatenate([fitted[:d], np.maximum(fitted[d:], math.log(0.5 / HALF))])

    return Observation(2 * d, distribution, start, encoding=Encoding(d, lambda x, _: _unit(x)))


# --- shared by both -------------------------------------------------------------------------


def _shares(rows: Rows) -> Float[np.ndarray, "d 256"]:
    """The relative frequency of each level, smoothed by `TRACE` for levels that never occur."""
    columns = [column[~np.isnan(column)] for column in np.ascontiguousarray(rows.T)]
    counts = np.stack([np.bincount(c.astype(np.intp), minlength=LEVELS) for c in columns])
    return (counts + TRACE / LEVELS) / (counts.sum(axis=1, keepdims=True) + TRACE)


def _deviation(shares: Float[np.ndarray, "d 256"]) -> Float[np.ndarray, " d"]:
    """The standard deviation on [-1, 1]."""
    level = np.arange(LEVELS)
    variance = shares @ level**2 - (shares @ level) ** 2
    return np.sqrt(np.maximum(variance, 0)) / HALF


def _fitted(
    distribution: Callable[[Float[Array, " o"]], dist.Distribution],
    start: Float[np.ndarray, "d p"],
    shares: Float[np.ndarray, "d 256"],
) -> Float[np.ndarray, " o"]:
    """The maximum-likelihood outputs of each dimension, near a starting point."""
    levels = jnp.arange(LEVELS, dtype=jnp.float32)

    def log_probs(outputs: Float[Array, " p"]) -> Float[Array, " 256"]:
        everywhere = jnp.repeat(outputs, LEVELS)  # the same outputs for each of 256 dimensions
        return distribution(everywhere).base_dist.log_prob(levels)

    return fit_likelihood_outputs(log_probs, start, shares).T.ravel()

"""Counts 0, 1, 2 ...: Poisson and negative binomial.

Log probabilities follow Loader (2000, "Fast and accurate computation of binomial probabilities"),
where no large numbers cancel: the usual formulas lose a nat in float32 at a count of a million.
"""

import math

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from jaxtyping import Array, Float
from scipy.special import digamma

from iwae.data import Kind
from iwae.models.likelihoods.limits import limit_between
from iwae.models.likelihoods.observation import Observation, Rows, standardised_observation
from iwae.typing import PRNGKey

MOST_LOG_MEAN = 60.0
"""Means lie between exp(-60) and exp(60), so that neither they nor their products overflow."""

LOG_SIZES = (-10.0, 15.0)
"""Floor and ceiling of the log size of a negative binomial.

Its variance is mean + mean^2 / size: at the ceiling, it is in effect a Poisson."""


class Poisson(dist.Poisson):
    """NumPyro's distribution, parameterised by its log mean; draws are float32."""

    arg_constraints = {"log_mean": dist.constraints.real}  # noqa: RUF012 - as NumPyro does
    pytree_data_fields = ("rate",)

    def __init__(self, log_mean: Float[Array, " d"]):
        self.log_mean = limit_between(log_mean, -MOST_LOG_MEAN, MOST_LOG_MEAN)
        super().__init__(jnp.exp(self.log_mean))

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """Counts, as float32."""
        return super().sample(key, sample_shape).astype(jnp.float32)

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """-log sqrt(2 pi x) - stirling(x) - x D(mean / x), and -mean at x = 0."""
        x = jnp.where(value > 0, value, 1.0)
        lost = x * _divergence(self.rate / x - 1, self.log_mean - jnp.log(x))
        some = -0.5 * jnp.log(2 * math.pi * x) - _stirling_error(x) - lost
        return jnp.where(value > 0, some, -self.rate)


class NegativeBinomial(dist.NegativeBinomial2):
    """NumPyro's distribution, parameterised by its log mean and log size; draws are float32."""

    arg_constraints = dict.fromkeys(("log_mean", "log_size"), dist.constraints.real)
    pytree_data_fields = ("concentration", "rate", "_gamma")

    def __init__(self, log_mean: Float[Array, " d"], log_size: Float[Array, " d"]):
        self.log_mean = limit_between(log_mean, -MOST_LOG_MEAN, MOST_LOG_MEAN)
        self.log_size = limit_between(log_size, *LOG_SIZES)
        super().__init__(jnp.exp(self.log_mean), jnp.exp(self.log_size))

    @property
    def mean(self) -> Float[Array, " d"]:
        """E[x]."""
        return jnp.exp(self.log_mean)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """Counts, as float32."""
        return super().sample(key, sample_shape).astype(jnp.float32)

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """With r the size, n = x + r and p = r / (r + mean): the binomial of r out of n."""
        mean, r = jnp.exp(self.log_mean), jnp.exp(self.log_size)
        x = jnp.where(value > 0, value, 1.0)
        n, log_odds = x + r, self.log_mean - self.log_size
        log_p, log_q = -jnp.logaddexp(0.0, log_odds), -jnp.logaddexp(0.0, -log_odds)
        lost_r = r * _divergence((x - mean) / (r + mean), jnp.log1p(x / r) + log_p)
        lost_x = x * _divergence((mean / x - 1) * jnp.exp(log_p), jnp.log1p(r / x) + log_q)
        some = (
            0.5 * (self.log_size - jnp.log(2 * math.pi * x) - jnp.log(n))
            + _stirling_error(n)
            - _stirling_error(r)
            - _stirling_error(x)
            - lost_r
            - lost_x
        )
        return jnp.where(value > 0, some, r * log_p)


def _divergence(t: Float[Array, " d"], log_1_t: Float[Array, " d"]) -> Float[Array, " d"]:
    """t - log(1 + t), from t alone if it is small and from both arguments otherwise."""
    small = jnp.abs(t) < 0.5
    near = jnp.where(small, t, 0.0)
    return jnp.where(small, near - jnp.log1p(near), t - log_1_t)


STIRLING_FROM = 8.0
"""From here on, three terms of the series are exact in float32."""


def _stirling_error(n: Float[Array, " d"]) -> Float[Array, " d"]:
    """log Gamma(n + 1) - log[sqrt(2 pi n) (n / e)^n] for n > 0."""
    far = n >= STIRLING_FROM
    few, many = jnp.where(far, 1.0, n), jnp.where(far, n, STIRLING_FROM)
    exact = gammaln(few + 1) - (few + 0.5) * jnp.log(few) + few - 0.5 * math.log(2 * math.pi)
    inverse = 1 / many
    series = inverse / 12 - inverse**3 / 360 + inverse**5 / 1260
    return jnp.where(far, series, exact)


def poisson(kind: Kind, d: int) -> Observation:  # noqa: ARG001
    """A log mean for each dimension."""
    encoding = standardised_observation(d, jnp.log1p, np.log1p)
    return Observation(d, lambda o: Poisson(o).to_event(1), _log_mean, encoding=encoding)


def negative_binomial(kind: Kind, d: int) -> Observation:  # noqa: ARG001
    """A log mean and a log size for each dimension."""

    def distribution(outputs: Float[Array, " o"]) -> dist.Distribution:
        return NegativeBinomial(*jnp.split(outputs, 2)).to_event(1)

    def start(rows: Rows) -> np.ndarray:
        log_mean = _log_mean(rows)
        each = zip(np.ascontiguousarray(rows.T), np.exp(log_mean), strict=True)
        return np.concatenate([log_mean, [_log_size(column, mean) for column, mean in each]])

    return Observation(
        2 * d, distribution, start, encoding=standardised_observation(d, jnp.log1p, np.log1p)
    )


def _log_mean(rows: Rows) -> np.ndarray:
    """Log means; for a column of zeros, the log of a mean below one count in all rows."""
    mean = np.nanmean(rows, axis=0, dtype=np.float64)
    return np.log(np.maximum(mean, 1 / (np.sum(~np.isnan(rows), axis=0) + 1)))


def _log_size(column: np.ndarray, mean: float) -> float:
    """The maximum-likelihood log size: the root of the score, or the limit nearest to it."""
    from scipy.optimize import brentq

    x, counts = np.unique(np.asarray(column[~np.isnan(column)], np.float64), return_counts=True)

    def slope(log_size: float) -> float:
        r = math.exp(log_size)
        return float(counts @ (digamma(x + r) - digamma(r)) - counts.sum() * math.log1p(mean / r))

    low, high = LOG_SIZES[0] + 2, LOG_SIZES[1] - 5
    if slope(high) >= 0:
        return high
    return low if slope(low) <= 0 else float(brentq(slope, low, high))

"""Self-masking: real values that go missing depending on their own value, by a probit.

    p(missing_j | x_j) = Phi(b_j + a_j x_j)

with Phi the standard normal distribution function, and b_j, a_j learned for each column j. This is
the not-at-random bound of Ipsen, Mattei & Frellsen (2021), who draw the missing values and score
them by a logistic function. With a probit, the missing values can be integrated out in closed form:

    E[Phi(b + a x)] = Phi((b + a mu) / sqrt(1 + a^2 sigma^2)),    x ~ N(mu, sigma^2)

so that the latents and the weights are those of the model without missing values, and drawing
missing values adds no noise. (Phi(u) is a logistic function of 1.7 u to within 0.01.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, PyTree
from scipy.special import ndtri as quantile

from iwae.models.likelihoods.gaussian import LOG_ROOT_2PI, gaussian_log_cdf, gaussian_mills_ratio
from iwae.models.likelihoods.missing import Incomplete, likelihood_missing_at_random
from iwae.models.likelihoods.observation import Observation, Rows, observation_moments
from iwae.models.likelihoods.table import Columns
from iwae.typing import PRNGKey

FIRST_LOG_SLOPE = -2.0
"""The initial log slope if its sign is known, per standard deviation of the column."""

SIGNS: dict[str, Callable[[Float[Array, " d"]], Float[Array, " d"]]] = {
    "not-at-random": lambda a: a,
    "not-at-random-high": jnp.exp,
    "not-at-random-low": lambda a: -jnp.exp(a),
}
"""Free parameter -> slope: of unknown sign, for missing high values, for missing low ones."""


class SelfMasked(dist.Distribution):
    """p(x_obs, s|z): the density of the observed values and the probability of the mask s.

    Args:
        values: the distribution of the values if all were observed: a Gaussian.
        intercept: b `[d]`.
        slope: a `[d]`.
    """

    pytree_data_fields = ("values", "intercept", "slope")

    def __init__(
        self, values: Incomplete, intercept: Float[Array, " d"], slope: Float[Array, " d"]
    ):
        self.values, self.intercept, self.slope = values, intercept, slope
        super().__init__(event_shape=values.event_shape)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """An example with its missing values as NaN."""
        x_key, s_key = jax.random.split(key)
        x = self.values.sample(x_key, sample_shape)
        noise = jax.random.normal(s_key, x.shape)
        return jnp.where(noise < self.intercept + self.slope * x, jnp.nan, x)

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, ""]:
        """log p(x_obs|z) + log p(s|x_obs, z), nats, with the missing values integrated out."""
        missing = jnp.isnan(value)
        x = jnp.where(missing, 0.0, value)
        each = jnp.where(
            missing,
            gaussian_log_cdf(self._eta()),
            gaussian_log_cdf(-self.intercept - self.slope * x),
        )
        return self.values.log_prob(value) + jnp.sum(each)

    @property
    def mean(self) -> Float[Array, " d"]:
        """The mean of the values, missing or not."""
        return self.values.mean

    def averages(self) -> PyTree:
        """E[x|z] of missing values: mu + a sigma^2 phi(eta) / (spread Phi(eta))."""
        shift = self.slope * self._scale**2 / self._spread()
        return self._loc + shift * _hazard(self._eta())

    def guess(self, averages: PyTree) -> Float[Array, " d"]:
        """The averages themselves."""
        return averages

    def fill(self, x: Float[Array, " d"], key: PRNGKey) -> Float[Array, " d"]:
        """The example with its missing values drawn from p(x_mis|z, s).

        A value x is missing if t < b + a x with t ~ N(0, 1), that is, if v = t - a x is below b.
        Hence v is drawn from its normal distribution truncated at b, and x from its normal
        distribution given v.
        """
        v_key, x_key = jax.random.split(key)
        uniform = jax.random.uniform(v_key, x.shape, minval=jnp.finfo(jnp.float32).tiny)
        v = _below(self._eta(), uniform)  # standardised
        spread = self._spread()
        loc = self._loc - self.slope * self._scale**2 / spread * v
        drawn = loc + self._scale / spread * jax.random.normal(x_key, x.shape)
        return jnp.where(jnp.isnan(x), drawn, x)

    @property
    def _loc(self) -> Float[Array, " d"]:
        return self.values.complete.base_dist.loc

    @property
    def _scale(self) -> Float[Array, " d"]:
        return self.values.complete.base_dist.scale

    def _spread(self) -> Float[Array, " d"]:
        """The standard deviation of t - a x given z."""
        return jnp.sqrt(1 + (self.slope * self._scale) ** 2)

    def _eta(self) -> Float[Array, " d"]:
        """The probit of the probability of being missing given z."""
        return (self.intercept + self.slope * self._loc) / self._spread()


def _hazard(eta: Float[Array, " d"]) -> Float[Array, " d"]:
    """phi(eta) / Phi(eta), which is -E[v | v < eta] for v ~ N(0, 1)."""
    below, above = jnp.where(eta < 0, -eta, 0.0), jnp.where(eta < 0, 0.0, eta)
    density = jnp.exp(-(above**2) / 2 - LOG_ROOT_2PI)
    return jnp.where(eta < 0, 1 / gaussian_mills_ratio(below), density / ndtr(above))


TAIL, NEWTON_STEPS = -4.0, 8
"""Below TAIL, draws take NEWTON_STEPS steps of Newton's method, exact in float32."""


def _below(eta: Float[Array, " d"], u: Float[Array, " d"]) -> Float[Array, " d"]:
    """Draws of v ~ N(0, 1) given v < eta, from uniform u: log Phi(v) = log u + log Phi(eta)."""
    far = jnp.where(eta < TAIL, eta, TAIL)
    target, v = jnp.log(u) + gaussian_log_cdf(far), far
    for _ in range(NEWTON_STEPS):  # from below, as log Phi is concave
        v = v + (target - gaussian_log_cdf(v)) / _hazard(v)
    return jnp.where(eta < TAIL, v, ndtri(u * ndtr(jnp.maximum(eta, TAIL))))


def self_masking(data: Observation, d: int, missing: str) -> Observation:
    """A Gaussian kind of data with values that go missing depending on themselves.

    The intercepts and slopes are free parameters, which follow those of the kind. Initially, the
    slope is zero, or near zero if its sign is known, and the intercept reproduces each column's
    share of missing values.

    Args:
        missing: a name in `SIGNS`.
    """
    ignorable, slope = likelihood_missing_at_random(data, d), SIGNS[missing]

    def distribution(outputs: Float[Array, " o"]) -> dist.Distribution:
        own, intercept, raw = jnp.split(outputs, [outputs.size - 2 * d, outputs.size - d])
        values = ignorable.distribution(own)
        assert isinstance(values, Incomplete)  # noqa: S101 - by `likelihood_missing_at_random`
        return SelfMasked(values, intercept, slope(raw))

    def start(rows: Rows) -> np.ndarray:
        count = np.isnan(rows).sum(axis=0)
        share = (count + 0.5) / (len(rows) + 1)  # positive even for a column without gaps
        mean, log_scale = np.split(observation_moments(rows), 2)
        raw = np.zeros(d) if missing == "not-at-random" else FIRST_LOG_SLOPE - log_scale
        a = np.asarray(slope(jnp.asarray(raw, jnp.float32)), np.float64)
        intercept = quantile(share) * np.hypot(1, a * np.exp(log_scale)) - a * mean
        return np.concatenate([ignorable.initial_output(rows), intercept, raw])

    n_free = data.n_free + 2 * d
    return ignorable._replace(distribution=distribution, initial_output=start, n_free=n_free)


def without_masking(p: dist.Distribution) -> dist.Distribution:
    """The distribution of a whole example, none of whose values is missing."""
    if isinstance(p, Columns):
        return Columns(tuple(map(without_masking, p.each)), p.places)
    p = p.values if isinstance(p, SelfMasked) else p
    return p.complete if isinstance(p, Incomplete) else p

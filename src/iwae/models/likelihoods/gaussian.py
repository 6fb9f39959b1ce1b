"""Real values: Gaussians whose scale is an output, a parameter or fixed; the function Phi."""

import math

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import erfc
from jaxtyping import Array, Float

from iwae.data import Kind
from iwae.models.likelihoods.limits import limit_below
from iwae.models.likelihoods.observation import Observation, Rows

LEAST_SCALE = 1e-4
"""The floor of a learned scale, which keeps densities bounded (on a repeated value, say).

In the units of the data: rescale values that vary by less."""

LEAST_INITIAL_SCALE = 1e-3
"""The smallest initial scale, for constant columns."""


def gaussian(kind: Kind, d: int) -> Observation:  # noqa: ARG001
    """A mean and a log scale for each dimension."""
    return Observation(2 * d, _normal, _mean_and_log_scale)


def gaussian_shared(kind: Kind, d: int) -> Observation:  # noqa: ARG001
    """A mean for each dimension; its log scale is a free parameter."""
    return Observation(d, _normal, _mean_and_log_scale, n_free=d)


def gaussian_fixed(kind: Kind, d: int) -> Observation:
    """A mean for each dimension; the scale is fixed."""
    scale = kind.scale
    assert scale is not None  # noqa: S101 - by `make_kind`

    def distribution(outputs: Float[Array, " d"]) -> dist.Distribution:
        return dist.Normal(outputs, jnp.full_like(outputs, scale)).to_event(1)

    return Observation(d, distribution, _means)


def _normal(outputs: Float[Array, " o"]) -> dist.Distribution:
    loc, log_scale = jnp.split(outputs, 2)
    return dist.Normal(loc, jnp.exp(limit_below(log_scale, math.log(LEAST_SCALE)))).to_event(1)


def _mean_and_log_scale(rows: Rows) -> np.ndarray:
    """Means and log standard deviations."""
    scale = np.nanstd(np.asarray(rows, np.float64), axis=0)
    return np.concatenate([_means(rows), np.log(np.maximum(scale, LEAST_INITIAL_SCALE))])


def _means(rows: Rows) -> np.ndarray:
    return np.asarray(np.nanmean(rows, axis=0, dtype=np.float64))


# --- the standard normal distribution function Phi, exact in float32 even far from 0 -----------

LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)

MILLS_FROM, MILLS_TERMS = 3.0, 16
"""From where on the continued fraction is used, and its length: exact in float32 from there on."""


def gaussian_mills_ratio(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 - Phi(a)) / phi(a) for a >= 0, by Laplace's continued fraction where a is large."""
    far = a >= MILLS_FROM
    near_a, far_a = jnp.where(far, 0.0, a), jnp.where(far, a, MILLS_FROM)
    fraction = far_a
    for term in range(MILLS_TERMS, 0, -1):
        fraction = far_a + term / fraction
    near = math.sqrt(math.pi / 2) * jnp.exp(near_a**2 / 2) * erfc(near_a / math.sqrt(2))
    return jnp.where(far, 1 / fraction, near)


def gaussian_log_cdf(b: Float[Array, "..."]) -> Float[Array, "..."]:
    """log Phi(b), with a gradient that is exact even far below 0."""
    below, above = jnp.where(b < 0, -b, 0.0), jnp.where(b < 0, 0.0, b)
    return jnp.where(
        b < 0,
        -(below**2) / 2 - LOG_ROOT_2PI + jnp.log(gaussian_mills_ratio(below)),
        jnp.log1p(-erfc(above / math.sqrt(2)) / 2),
    )

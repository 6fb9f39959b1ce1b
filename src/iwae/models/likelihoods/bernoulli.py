"""Binary values: Bernoulli."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.data import Kind
from iwae.models.likelihoods.observation import Observation, Rows
from iwae.typing import PRNGKey

MEAN_CLIP = 0.001
"""Pixel means are clipped to [0.001, 0.999] before the logit, as in the authors' code."""


class BernoulliFromLogits(dist.BernoulliLogits):
    """NumPyro's distribution in float32, with a log density for finite logits only.

    NumPyro's handling of infinite ones costs extra passes over all pixels of all samples.
    """

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """Zeros and ones, in the dtype of the logits."""
        shape = sample_shape + self.batch_shape
        return jax.random.bernoulli(key, self.probs, shape).astype(self.logits.dtype)

    def log_prob(self, value: Float[Array, "*d"]) -> Float[Array, "*d"]:
        """value * logits - log(1 + exp(logits)), without overflow."""
        return value * self.logits - _softplus(self.logits)


@jax.custom_jvp
def _softplus(a: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """log(1 + exp(a)), to within 6e-8 and rounding; cheaper than log1p.

    The derivative is given explicitly because automatic differentiation of |a| is wrong at 0.
    """
    return jnp.maximum(a, 0) + jnp.log(1 + jnp.exp(-jnp.abs(a)))


@_softplus.defjvp
def _softplus_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, ...]:
    (a,), (da,) = primals, tangents
    return _softplus(a), jax.nn.sigmoid(a) * da


def bernoulli(kind: Kind, d: int) -> Observation:  # noqa: ARG001
    """One logit for each dimension."""
    return Observation(d, lambda a: BernoulliFromLogits(a).to_event(1), _logits_of_means)


def _logits_of_means(rows: Rows) -> np.ndarray:
    """Logits of the clipped means of the columns."""
    mean = np.clip(np.nanmean(rows, axis=0, dtype=np.float64), MEAN_CLIP, 1 - MEAN_CLIP)
    return np.log(mean) - np.log1p(-mean)

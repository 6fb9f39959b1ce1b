"""Kinds of data: what the decoder's last layer means, as a NumPyro distribution over one example.

An `Observation` turns the `n_outputs * d` numbers that the decoder puts out for an example of `d`
dimensions into a distribution whose event is the whole example, and says which constant output
describes the training data best: the initial bias of that layer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae._types import PRNGKey, UserError

MEAN_CLIP = 0.001
"""Pixel means are clipped to [0.001, 0.999] before the logit, as in the authors' code."""

SCALE_FLOOR = 1e-3
"""The smallest initial scale of a Gaussian output, for columns that are constant."""


class Observation(NamedTuple):
    """A kind of data.

    Attributes:
        n_outputs: decoder outputs for each dimension of the data.
        distribution: outputs `[n_outputs * d]` -> distribution over `x [d]` (event rank 1).
        initial_output: mean and standard deviation of the training data, `[d]` each ->
            outputs `[n_outputs * d]` of the best constant decoder.
    """

    n_outputs: int
    distribution: Callable[[Float[Array, " o"]], dist.Distribution]
    initial_output: Callable[[np.ndarray, np.ndarray], np.ndarray]


class BernoulliFromLogits(dist.BernoulliLogits):
    """NumPyro's distribution in float32, with a log density for finite logits only.

    Without NumPyro's care for infinite ones, a training step with k = 50 is a quarter faster.
    Values between 0 and 1 (grey pixels) are scored by the same formula, the cross-entropy.
    """

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """Zeros and ones, in the type of the logits."""
        shape = sample_shape + self.batch_shape
        return jax.random.bernoulli(key, self.probs, shape).astype(self.logits.dtype)

    def log_prob(self, value: Float[Array, "*d"]) -> Float[Array, "*d"]:
        """value * logits - log(1 + exp(logits)), without overflow."""
        return value * self.logits - _softplus(self.logits)


@jax.custom_jvp
def _softplus(a: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """log(1 + exp(a)); the derivative is given because that of |a| is wrong at 0."""
    return jnp.maximum(a, 0) + jnp.log1p(jnp.exp(-jnp.abs(a)))


@_softplus.defjvp
def _softplus_jvp(primals: tuple, tangents: tuple) -> tuple:
    (a,), (da,) = primals, tangents
    return _softplus(a), jax.nn.sigmoid(a) * da


def _bernoulli(outputs: Float[Array, " d"]) -> dist.Distribution:
    return BernoulliFromLogits(outputs).to_event(1)


def _bernoulli_bias(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:  # noqa: ARG001
    mean = np.clip(mean, MEAN_CLIP, 1 - MEAN_CLIP)
    return np.log(mean) - np.log1p(-mean)


def _gaussian(outputs: Float[Array, " o"]) -> dist.Distribution:
    loc, log_scale = jnp.split(outputs, 2)
    return dist.Normal(loc, jnp.exp(log_scale)).to_event(1)


def _gaussian_bias(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return np.concatenate([mean, np.log(np.maximum(sd, SCALE_FLOOR))])


OBSERVATIONS = {
    "bernoulli": Observation(1, _bernoulli, _bernoulli_bias),
    "gaussian": Observation(2, _gaussian, _gaussian_bias),
}


def observation(name: str) -> Observation:
    """The kind of data called `name`.

    Raises:
        UserError: if there is none; the message lists those there are.
    """
    if name not in OBSERVATIONS:
        raise UserError(f"no observation {name!r}; known: {', '.join(OBSERVATIONS)}")
    return OBSERVATIONS[name]

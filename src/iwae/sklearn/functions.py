"""Functions of (model, one row, its key) that an estimator maps over rows."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.evaluation.examples import ExampleFn
from iwae.evaluation.posterior import snis_mean
from iwae.evaluation.scores import encoder_moments
from iwae.inference.particles import importance_particles
from iwae.models.likelihoods import complete, typical
from iwae.models.vae import VAE
from iwae.typing import Example, PRNGKey, Scalar


class Likelihood(eqx.Module):
    """The log-likelihood alone, out of a bound's results for a row."""

    bound: Callable[..., Any]

    def __call__(self, model: VAE, x: Example, key: PRNGKey) -> Scalar:
        """The log-likelihood of a row, nats."""
        return self.bound(model, x, key)["log_likelihood"]


def q_mean(model: VAE, x: Example, key: PRNGKey) -> Float[Array, " m"]:
    """E_q[z|x], as `encode` has it."""
    return encoder_moments(model, x, key)[0]


@lru_cache
def weighted_mean(k: int) -> ExampleFn:
    """E[z|x] from k self-normalised importance samples."""

    def fn(model: VAE, x: Example, key: PRNGKey) -> Float[Array, " m"]:
        return snis_mean(importance_particles(model, x, key, k)[0])[0]

    return fn


def decoded(model: VAE, z: Example, key: PRNGKey) -> Float[Array, " d"]:  # noqa: ARG001
    """A typical x of p(x|z): its mean, or the most likely category."""
    return typical(model.decode((z,)))


def drawn(model: VAE, place: Example, key: PRNGKey) -> Float[Array, " d"]:  # noqa: ARG001
    """A draw from the model, with no missing value."""
    z_key, x_key = jax.random.split(key)
    z, _ = model.sample(z_key)
    return jnp.asarray(complete(model.decode(z)).sample(x_key), jnp.float32)

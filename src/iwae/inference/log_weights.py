"""Log weights of particles: of a model, and their sums, means and effective sample size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.inference.particles import importance_particles
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, LogWeights, PRNGKey, Scalar


def log_weights(model: AbstractLatentModel, x: Example, key: PRNGKey, k: int) -> LogWeights:
    """log p(x, z_i) - log q(z_i|x) of k importance samples, nats, `[k]`."""
    return importance_particles(model, x, key, k)[0].log_w


def log_mean_exp(log_w: LogWeights) -> Scalar:
    """log(mean(exp(log_w))), nats; `-inf` is a weight of zero."""
    return jax.nn.logsumexp(log_w) - jnp.log(float(log_w.size))


def effective_sample_size(log_w: LogWeights) -> Float[Array, ""]:
    """(sum w)^2 / sum w^2, between 1 and k; 0 if every weight is zero."""
    w = jnp.exp(log_w - jnp.maximum(jnp.max(log_w), jnp.finfo(log_w.dtype).min))
    return jnp.sum(w) ** 2 / jnp.maximum(jnp.sum(w**2), jnp.finfo(log_w.dtype).tiny)


def log_sum_of_other_weights(log_w: LogWeights) -> LogWeights:
    """log of the sum of all weights but the i-th, nats, `[k]`, without cancellation."""
    nothing = jnp.full(1, -jnp.inf, log_w.dtype)
    before = jnp.concatenate([nothing, jax.lax.cumlogsumexp(log_w)[:-1]])
    after = jnp.concatenate([jax.lax.cumlogsumexp(log_w, reverse=True)[1:], nothing])
    return jnp.logaddexp(before, after)


def log_share_of_others(log_w: LogWeights) -> LogWeights:
    """log(1 - w_i) with w normalised, `[k]`, accurate for small weights and for large ones."""
    w = jax.nn.softmax(log_w)
    of_others = log_sum_of_other_weights(log_w) - jax.nn.logsumexp(log_w)
    return jnp.where(w < 0.5, jnp.log1p(-jnp.minimum(w, 0.5)), of_others)

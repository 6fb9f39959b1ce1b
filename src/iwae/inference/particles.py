"""Properly weighted particles, and statistics of their weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, Latents, LogWeights, PRNGKey, Scalar


class Particles(NamedTuple):
    """Properly weighted: E[exp(log_w) f(z)] = p(x) E[f(z) | x] for every f.

    Attributes:
        z: leaves `[k, ...]`, one leaf per stochastic layer.
        log_w: `[k]`, nats, unnormalised.
    """

    z: Latents
    log_w: LogWeights


Info = dict[str, Any]
Sampler = Callable[..., tuple[Particles, Info]]
"""A function (model, x, key, k) -> (Particles, info)."""


def particle_keys(key: PRNGKey, indices: Int[Array, " k"]) -> Key[Array, " k"]:
    """The key of each particle, a function of its index alone, whatever the chunks."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def importance_particles(
    model: AbstractLatentModel, x: Example, key: PRNGKey, k: int, *, first: int | Int[Array, ""] = 0
) -> tuple[Particles, Info]:
    """k draws z_i ~ q(z|x) with weights p(x, z_i) / q(z_i|x) (Burda et al. 2016, eq. 7).

    Args:
        first: index of the first particle; particles `first ... first + k - 1` of this `key` do
            not depend on the chunks in which they are drawn.

    Returns:
        Particles and an empty info.
    """
    posterior = model.posterior(x)

    def particle(key: PRNGKey) -> tuple[Latents, Scalar]:
        z = posterior.sample(key)
        return z, model.log_joint(x, z) - posterior.log_prob(z)

    return Particles(*jax.vmap(particle)(particle_keys(key, first + jnp.arange(k)))), {}


def log_weights(model: AbstractLatentModel, x: Example, key: PRNGKey, k: int) -> LogWeights:
    """log p(x, z_i) - log q(z_i|x) of k importance samples, nats, `[k]`."""
    return importance_particles(model, x, key, k)[0].log_w


def log_mean_exp(log_w: LogWeights) -> Scalar:
    """log(mean(exp(log_w))), nats; `-inf` is a weight of zero."""
    return jax.nn.logsumexp(log_w) - jnp.log(float(log_w.size))


def log_sum_of_others(log_w: LogWeights) -> LogWeights:
    """log of the sum of all weights but the i-th, nats, `[k]`, without cancellation."""
    nothing = jnp.full(1, -jnp.inf, log_w.dtype)
    before = jnp.concatenate([nothing, jax.lax.cumlogsumexp(log_w)[:-1]])
    after = jnp.concatenate([jax.lax.cumlogsumexp(log_w, reverse=True)[1:], nothing])
    return jnp.logaddexp(before, after)


def effective_sample_size(log_w: LogWeights) -> Float[Array, ""]:
    """(sum w)^2 / sum w^2, between 1 and k; 0 if every weight is zero."""
    w = jnp.exp(log_w - jnp.maximum(jnp.max(log_w), jnp.finfo(log_w.dtype).min))
    return jnp.sum(w) ** 2 / jnp.maximum(jnp.sum(w**2), jnp.finfo(log_w.dtype).tiny)

"""Properly weighted particles from importance sampling, and functions mapped over particles."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, Latents, LogWeights, PRNGKey, Scalar

Tree = TypeVar("Tree")


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


def map_particles(
    function: Callable[[PyTree], Tree], keys: PyTree[Key[Array, " k"]], chunk: int | None
) -> Tree:
    """Map a function over the keys of particles, `chunk` particles at a time.

    The backward pass recomputes each chunk, so that memory does not grow with k. Values and
    gradients do not depend on the chunks.
    """
    if chunk is None or chunk >= len(jax.tree.leaves(keys)[0]):
        return jax.vmap(function)(keys)

    # Raw data, because JAX's key-reuse checker would refuse the recomputation of a chunk.
    impl = jax.random.key_impl(jax.tree.leaves(keys)[0])

    def of_data(data: PyTree) -> Tree:
        return function(jax.tree.map(partial(jax.random.wrap_key_data, impl=impl), data))

    data = jax.tree.map(jax.random.key_data, keys)
    return jax.lax.map(jax.checkpoint(of_data), data, batch_size=chunk)

"""Moments of the latents of examples, under q(z|x) or p(z|x)."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.data.rows import Examples
from iwae.errors import UserError, require_positive
from iwae.evaluation.examples import (
    ExampleFn,
    check_examples,
    gather_examples,
    map_examples_by_cost,
)
from iwae.evaluation.posterior import snis_mean
from iwae.inference.particles import importance_particles
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.typing import Example, PRNGKey


class Latent(NamedTuple):
    """The first stochastic layer of each example given its values.

    Attributes:
        mean: `[n, d_1]`.
        scale: `[n, d_1]`, standard deviations.
    """

    mean: Float[np.ndarray, "n m"]
    scale: Float[np.ndarray, "n m"]


def encode(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int | None = None,
    batch_size: int | None = None,
) -> Latent:
    """Mean and standard deviation of h_1 given each example.

    Args:
        examples: `[n, ...]` in the model's units.
        k: importance samples per example for the moments of the true posterior p(h_1|x), biased by
            1/k; None for the moments of the encoder's q(h_1|x) (for a flow, from 1,000 draws).
        batch_size: examples at a time on each device; changes the speed, not the numbers.

    Raises:
        UserError: if the model is not a VAE, there are no examples, or a value is invalid.
        FloatingPointError: if a number is nan.
    """
    return gather_examples(encode_slabs(model, examples, key, k=k, batch_size=batch_size))


def encode_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int | None = None,
    batch_size: int | None = None,
) -> Iterator[Latent]:
    """`encode`, slab by slab."""
    check_examples(model, examples)
    if k is not None:
        require_positive("k", k)
    fn, done = encoder_moments if k is None else _posterior_moments(k), 0
    for slab in map_examples_by_cost(fn, model, examples, key, rows=k or 1, batch_size=batch_size):
        mean, second = gather_examples(iter([slab]))
        scale = second if k is None else np.sqrt(np.maximum(second, 0.0))
        bad = np.isnan(mean).any(axis=1) | np.isnan(scale).any(axis=1)
        if bad.any():
            raise FloatingPointError(
                f"the latents of example {done + bad.argmax()} are not numbers (nan)"
            )
        done += len(mean)
        yield Latent(mean, scale)


DRAWS = 1000
"""Draws for the moments of a posterior without closed form, such as a flow."""


def encoder_moments(
    model: AbstractLatentModel,
    x: Example,
    key: PRNGKey,
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Mean and standard deviation of q(h_1|x), from `DRAWS` draws if there is no closed form."""
    given, x = model.condition(x)
    if not isinstance(given, VAE):
        raise UserError(f"a {type(given).__name__} has no encoder to read: give k")
    first: Any = given.posterior(x).first
    if hasattr(first, "variance"):
        return first.mean, jnp.sqrt(first.variance)
    draws = jax.vmap(first.sample)(jax.random.split(key, DRAWS))
    return jnp.mean(draws, axis=0), jnp.std(draws, axis=0)


@lru_cache
def _posterior_moments(k: int) -> ExampleFn:
    """Mean and variance of h_1 under p(z|x), by self-normalised importance sampling."""

    def fn(
        model: AbstractLatentModel, x: Example, key: PRNGKey
    ) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        given, x = model.condition(x)
        particles, _ = importance_particles(given, x, key, k)
        mean = snis_mean(particles, lambda z: z[0])
        return mean, snis_mean(particles, lambda z: (z[0] - mean) ** 2)

    return fn

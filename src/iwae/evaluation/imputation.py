"""Missing values, imputed: by their expectation given what is observed, or by draws.

A model of examples with missing values (NaN) has particles of p(z|x_obs) as any other model has,
and p(x_mis|z) is known. From the two follow both kinds of imputation (Mattei & Frellsen 2019).
"""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from iwae.errors import UserError
from iwae.evaluation.examples import (
    ROWS,
    SLAB_ROWS,
    ExampleFn,
    check_positive,
    gather,
    map_examples,
)
from iwae.evaluation.posterior import sir, snis_mean
from iwae.inference.particles import importance_particles
from iwae.models.likelihoods import Columns, Imputing
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, Latents, PRNGKey


def impute(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    k: int = 1000,
    batch_size: int | None = None,
    sampler: Callable = importance_particles,
) -> Shaped[np.ndarray, "n d"]:
    """Each missing value's expectation given what is observed; of categories, the likeliest.

    E[x_mis|x_obs] by self-normalised importance sampling, biased by 1/k (Mattei & Frellsen 2019).
    No other value has a smaller squared error. As data such values vary too little: for what is to
    be computed from a filled table, use `multiple_imputations`.

    Args:
        model: one whose `decode(z)` is `iwae.models.likelihoods.Imputing`, such as
            `VAE(..., missing="at-random")`.
        examples: `[n, d]` in the model's units, NaN where a value is missing.
        k: particles of each example.
        batch_size: examples at a time on each device; changes the speed, not the numbers.
        sampler: a function (model, x, key, k) -> (Particles, info).

    Returns:
        `[n, d]`: the examples, in their own type, with numbers in the place of NaN.

    Raises:
        UserError: if there are no examples, k or a size is not positive, or the model does not say
            what missing values are.
        FloatingPointError: if what a value is imputed by is nan.
    """
    check_positive("k", k)
    filled = _over(expected_values(k, sampler), model, examples, key, k, batch_size)
    return _completed(examples, filled)


def multiple_imputations(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    draws: int,
    k: int = 1000,
    batch_size: int | None = None,
    sampler: Callable = importance_particles,
) -> Shaped[np.ndarray, "draws n d"]:
    """Draws of the missing values given what is observed, a whole data set each.

    z by sampling importance resampling, and x_mis from p(x_mis|z) (Mattei & Frellsen 2019). They
    are draws from p(x_mis|x_obs) as k grows; where one particle has nearly all the weight, they
    vary too little. What is computed from each data set differs among them by what the missing
    values leave open (Rubin 1987).

    Args:
        draws: how many.
        model, examples, k, batch_size, sampler: as for `impute`, which says what is raised too.

    Returns:
        `[draws, n, d]`: the examples, in their own type, with numbers in the place of NaN.
    """
    check_positive("draws", draws)
    check_positive("k", k)
    filled = _over(drawn_values(k, draws, sampler), model, examples, key, max(k, draws), batch_size)
    return np.stack([_completed(examples, filled[:, i]) for i in range(draws)])


@lru_cache
def expected_values(k: int, sampler: Callable = importance_particles) -> ExampleFn:
    """An example with the expectations of its missing values."""

    def fn(model: AbstractLatentModel, x: Example, key: PRNGKey) -> Float[Array, " d"]:
        particles, _ = sampler(model, x, key, k)
        average = snis_mean(particles, lambda z: decoder(model, z).averages())
        first = jax.tree.map(lambda leaf: leaf[0], particles.z)  # all of them guess alike
        return jnp.where(jnp.isnan(x), decoder(model, first).guess(average), x)

    return fn


@lru_cache
def drawn_values(k: int, draws: int, sampler: Callable = importance_particles) -> ExampleFn:
    """An example with draws of its missing values, `[draws, d]`."""

    def fn(model: AbstractLatentModel, x: Example, key: PRNGKey) -> Float[Array, "draws d"]:
        particle_key, chosen_key, fill_key = jax.random.split(key, 3)
        particles, _ = sampler(model, x, particle_key, k)
        chosen = sir(particles, chosen_key, draws)
        keys = jax.random.split(fill_key, draws)
        return jax.vmap(lambda z, key: decoder(model, z).fill(x, key))(chosen, keys)

    return fn


def decoder(model: AbstractLatentModel, z: Latents) -> Imputing:
    """p(x|z) as what it says of missing values.

    Raises:
        UserError: if it says nothing.
    """
    p = model.decode(z) if hasattr(model, "decode") else None
    parts = p.each if isinstance(p, Columns) else (p,)
    if p is None or not all(isinstance(part, Imputing) for part in parts):
        raise UserError(
            f"this {type(model).__name__} was not made for missing values: train one with missing "
            "'at-random', or 'not-at-random' if values are missing for what they are"
        )
    return p


def _over(
    fn: ExampleFn,
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    rows: int,
    batch_size: int | None,
) -> Float[np.ndarray, "n *more"]:
    """The function of every example, which evaluates the decoder for so many latents."""
    slabs = map_examples(
        fn,
        model,
        examples,
        key,
        batch_size=max(1, ROWS // rows) if batch_size is None else batch_size,
        slab_size=max(1, SLAB_ROWS // rows) * jax.local_device_count(),
    )
    return gather(slabs)


def _completed(
    examples: Shaped[np.ndarray, "n d"], filled: Float[np.ndarray, "n d"]
) -> Shaped[np.ndarray, "n d"]:
    """The examples with what they are filled with, but for what they have themselves."""
    if np.isnan(filled).any():
        row, column = np.argwhere(np.isnan(filled))[0]
        raise FloatingPointError(
            f"what is missing in row {row + 1}, column {column + 1} cannot be imputed: the model "
            "gives no number (nan) for it; look for a parameter that is not finite, or for a value "
            "of this row that is beyond anything in the training data"
        )
    return np.where(np.isnan(examples), filled, examples).astype(examples.dtype)

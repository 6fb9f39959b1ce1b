"""Scores of single examples: latents, log-likelihoods with their errors, outlier p-values."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.data.rows import Examples
from iwae.errors import UserError
from iwae.evaluation.examples import ExampleFn, check_positive, gather, map_by_cost
from iwae.evaluation.likelihood import log_likelihood_slabs
from iwae.evaluation.posterior import snis_mean
from iwae.inference.particles import importance_particles
from iwae.models.conditional import check_examples
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
    return gather(encode_slabs(model, examples, key, k=k, batch_size=batch_size))


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
        check_positive("k", k)
    fn, done = encoder_moments if k is None else posterior_moments(k), 0
    for slab in map_by_cost(fn, model, examples, key, rows=k or 1, batch_size=batch_size):
        mean, second = gather(iter([slab]))
        scale = second if k is None else np.sqrt(np.maximum(second, 0.0))
        bad = np.isnan(mean).any(axis=1) | np.isnan(scale).any(axis=1)
        if bad.any():
            raise FloatingPointError(
                f"the latents of example {done + bad.argmax()} are not numbers (nan)"
            )
        done += len(mean)
        yield Latent(mean, scale)


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


DRAWS = 1000
"""Draws for the moments of a posterior without closed form, such as a flow."""


@lru_cache
def posterior_moments(k: int) -> ExampleFn:
    """Mean and variance of h_1 under p(z|x), by self-normalised importance sampling."""

    def fn(
        model: AbstractLatentModel, x: Example, key: PRNGKey
    ) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        given, x = model.condition(x)
        particles, _ = importance_particles(given, x, key, k)
        mean = snis_mean(particles, lambda z: z[0])
        return mean, snis_mean(particles, lambda z: (z[0] - mean) ** 2)

    return fn


class Scores(NamedTuple):
    """The log-likelihood of each example, nats.

    Attributes:
        log_likelihood: `[n]`, L_k: a lower bound in expectation.
        error: `[n]`, its Monte Carlo error; a lower limit of it if `pareto_k` is above
            `iwae.evaluation.diagnostics.pareto_threshold` of k.
        pareto_k: `[n]`, k-hat of the weights; nan for fewer than 25.
    """

    log_likelihood: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    pareto_k: Float[np.ndarray, " n"]


def score(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
) -> Scores:
    """Log-likelihoods with their errors; arguments and exceptions as for `log_likelihoods`."""
    return gather(score_slabs(model, examples, key, k=k, batch_size=batch_size))


def score_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
) -> Iterator[Scores]:
    """`score`, slab by slab."""
    for slab in log_likelihood_slabs(model, examples, key, k=k, batch_size=batch_size):
        found = gather(iter([slab]))
        yield Scores(found["log_likelihood"], found["monte_carlo_error"], found["pareto_k"])


def outlier_p_values(
    scores: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    """The share of reference examples that are at most as likely: small for outliers.

    (1 + #{reference <= score}) / (m + 1), a conformal p-value (Vovk et al. 2005): for an example
    from the distribution of the reference, it is at most p with a probability of at most p.

    Args:
        scores: log-likelihoods, nats.
        reference: those of examples that were held out from training.
    """
    return cross_p_values([scores], [reference])


def cross_p_values(
    scores: Sequence[Float[np.ndarray, " n"]], references: Sequence[Float[np.ndarray, " _"]]
) -> Float[np.ndarray, " n"]:
    """`outlier_p_values` by several models, each with its own held-out examples.

    Each model compares the examples with those held out from its training; m is the total number of
    these (Vovk 2015, "Cross-conformal predictors").

    Args:
        scores: log-likelihoods by each model, nats.
        references: for each model, the log-likelihoods of the examples held out from its training.
    """
    below = np.zeros(np.shape(scores[0]), int)
    for one, held_out in zip(scores, references, strict=True):
        below += np.searchsorted(np.sort(held_out), one, side="right")
    return np.asarray((1 + below) / (sum(map(len, references)) + 1))

"""Active latent units of a VAE, layer by layer, and the means of its units."""

from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from iwae.data.rows import Examples
from iwae.errors import require_positive
from iwae.evaluation.examples import ExampleFn, gather_examples, map_examples_by_cost
from iwae.inference.particles import particle_keys
from iwae.models.priors import LabelPrior
from iwae.models.vae import AbstractLatentModel, as_vae
from iwae.typing import Example, PRNGKey

ACTIVE_THRESHOLD = 0.01
"""A unit is active if its posterior mean varies more than this (Burda et al. 2016, sec. 5.2)."""

AUTHORS_EXAMPLES = 500
"""Training examples from which the paper's published code finds the active units."""


class ActiveUnits(NamedTuple):
    """Variance of each latent unit's posterior mean over examples.

    Attributes:
        variances: for each layer l, the variance of E_q[h_l|x] over examples, `[d_l]` float64; for
            a unit with categories, that of the probability that varies most.
        means: for each layer l, the mean of E_q[h_l|x] over examples, `[d_l]` float64, or `[d_l C]`
            for categories.
        n: number of examples.
        samples: ancestral draws per example.
        threshold: variance above which a unit is active.
    """

    variances: tuple[Float[np.ndarray, " _"], ...]
    means: tuple[Float[np.ndarray, " _"], ...]
    n: int
    samples: int
    threshold: float

    @property
    def masks(self) -> tuple[Bool[np.ndarray, " _"], ...]:
        """For each layer, the mask of the active units."""
        return tuple(variance > self.threshold for variance in self.variances)

    @property
    def counts(self) -> tuple[int, ...]:
        """For each layer, the number of active units."""
        return tuple(int(mask.sum()) for mask in self.masks)


def active_units(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    samples: int = 16,
    threshold: float = ACTIVE_THRESHOLD,
) -> ActiveUnits:
    """The variance over examples of each unit's posterior mean (Burda et al. 2016, sec. 5.2).

    For the first layer, the mean E_q[h_1|x] is known exactly. For a higher layer, it is estimated
    by the average of E[h_l|h_{l-1}] over `samples` ancestral draws of the layers below. The noise
    of this average adds to the variance; its contribution is estimated from the draws and
    subtracted (the result is at least zero). A single draw does not reveal its noise: with
    `samples=1` nothing is subtracted, and noise counts as activity.

    If a conditional model learns a Gaussian p(h_L|y) for each label, the units of h_L are first
    standardised by it. Such a unit is inactive if q(h_L|x, y) equals p(h_L|y), with a KL divergence
    of zero, although its mean differs between labels.

    The variance divides by n, not n - 1. Memory does not grow with the number of examples.

    Args:
        examples: `[n, ...]` in the model's units: a whole split.
        samples: ancestral draws per example.

    Raises:
        UserError: if the model is not a VAE, there are no examples, or `samples` is not positive.
    """
    require_positive("samples", samples)
    fn = _posterior_means(samples, standardised=True)
    slabs = map_examples_by_cost(fn, model, examples, key, rows=samples)
    sums = reduce(partial(jax.tree.map, np.add), map(_moment_sums, slabs))
    n = len(examples)
    variances = tuple(
        np.maximum(square / n - (first / n) ** 2 - (1 - 1 / n) * noise / n, 0.0)
        for first, square, noise in zip(*sums, strict=True)
    )
    of_units = tuple(variance.max(axis=-1) for variance in variances)
    means = tuple((first / n).ravel() for first in sums[0])
    return ActiveUnits(of_units, means, n, samples, threshold)


def unit_means(
    model: AbstractLatentModel, examples: Examples, key: PRNGKey, *, samples: int = 16
) -> tuple[Float[np.ndarray, "n _"], ...]:
    """E_q[h_l|x] of each example, `[n, d_l]` float64 for each layer l; see `active_units`.

    For a unit with categories, it is the probability that varies most over the examples.

    Args:
        examples: `[n, ...]` in the model's units.
        samples: ancestral draws per example, for all layers but the first.

    Raises:
        UserError: if the model is not a VAE, there are no examples, or `samples` is not positive.
    """
    require_positive("samples", samples)
    means, _ = gather_examples(
        map_examples_by_cost(_posterior_means(samples), model, examples, key, rows=samples)
    )
    return tuple(map(_most_varying, means))


def _most_varying(means: Float[np.ndarray, "n d width"]) -> Float[np.ndarray, "n d"]:
    """For each unit, the number that varies most over the examples."""
    most = means.var(axis=0).argmax(axis=-1)
    return np.asarray(np.take_along_axis(means, most[None, :, None], axis=-1)[..., 0])


def authors_active_units(
    model: AbstractLatentModel, train_examples: Examples, key: PRNGKey
) -> ActiveUnits:
    """Active units as the paper's published code counts them: 500 examples, one ancestral draw.

    Args:
        train_examples: the training data in the model's units, so pixels already binarised;
            only the first 500 are used.
    """
    return active_units(model, train_examples[:AUTHORS_EXAMPLES], key, samples=1)


@lru_cache
def _posterior_means(samples: int, *, standardised: bool = False) -> ExampleFn:
    """For each layer, the estimate of E_q[h_l|x] and the variance of its noise, `[d_l width]`.

    Args:
        standardised: whether to standardise the top layer by the Gaussian prior of the label.
    """

    def fn(model: AbstractLatentModel, x: Example, key: PRNGKey) -> tuple[list[Any], list[Any]]:
        model, x = model.condition(x)
        vae = as_vae(model)
        posterior = vae.posterior(x)
        keys = particle_keys(key, jnp.arange(samples))
        flat = jax.vmap(lambda key: posterior.layer_means(posterior.sample(key)))(keys)
        if standardised and isinstance(vae.top, LabelPrior):
            mean, log_scale = vae.top.parameters
            flat = (*flat[:-1], (flat[-1] - mean[None]) / jnp.exp(log_scale)[None])
        draws = [
            d.reshape(samples, -1, kind.width) for d, kind in zip(flat, vae.latents, strict=True)
        ]
        noise = [jnp.var(d, axis=0) / max(1, samples - 1) for d in draws]  # zero for one draw
        return [jnp.mean(d, axis=0) for d in draws], noise

    return fn


def _moment_sums(slab: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any], list[Any]]:
    """Sums over examples of means, squared means and noise, in float64."""
    means, noise = jax.tree.map(lambda leaf: leaf.astype(np.float64), slab)
    return [m.sum(0) for m in means], [(m**2).sum(0) for m in means], [v.sum(0) for v in noise]

"""Calibration of q(z|x): ranks of true latents among its draws, on pairs drawn from the model.

For (z, x) ~ p and k draws of q(z|x), the rank of each unit of z among its draws is uniform if q is
the posterior (Cook, Gelman & Rubin 2006; Talts et al. 2018).
"""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from iwae.errors import require_positive
from iwae.evaluation.examples import map_examples_by_cost, placeholder_examples, refuse_nan_examples
from iwae.inference.particles import importance_particles
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey

KINDS = ("q", "snis")
"""Reference samples of the ranks: draws of q(z|x), unweighted and with their weights."""

# --- ranks ----------------------------------------------------------------------------------


def rank_slabs(
    model: AbstractLatentModel,
    key: PRNGKey,
    *,
    n_examples: int,
    k: int,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Relative ranks of true latents among k draws of q(z|x), slab by slab.

    Example i, its latents and all draws depend only on `fold_in(key, i)`. For a conditional model,
    the label is drawn with x. The k draws of an example are in memory at the same time.

    Yields:
        `q` `[n, units]`, the ranks among the draws: uniform on (0, 1) for every unit if q is the
        posterior, continuous or discrete, as ties are broken at random; and `snis`, those in the
        distribution of the draws with self-normalised weights, nearly uniform for k large enough.

    Raises:
        UserError: if a number is not positive.
        FloatingPointError: if a rank is nan.
    """
    require_positive("examples", n_examples)
    require_positive("k", k)
    fn, nothing = eqx.Partial(_ranks_of_one, k=k), placeholder_examples(n_examples)
    slabs = map_examples_by_cost(
        fn, model, nothing, key, rows=k, batch_size=batch_size, first=first
    )
    return refuse_nan_examples(slabs, first, "rank", KINDS)


def _ranks_of_one(
    model: AbstractLatentModel,
    nothing: Example,  # noqa: ARG001
    key: PRNGKey,
    *,
    k: int,
) -> dict[str, Array]:
    model_key, q_key, tie_key = jax.random.split(key, 3)
    z, x = model.sample(model_key)
    model, x = model.condition(x)
    particles, _ = importance_particles(model, x, q_key, k)
    truth = ravel_pytree(z)[0]
    draws = jax.vmap(lambda z: ravel_pytree(z)[0])(particles.z)
    v = jax.random.uniform(tie_key, truth.shape)
    equal, weighted = jnp.full(k, 1 / k), jax.nn.softmax(particles.log_w)
    return {
        name: relative_rank(truth, draws, weights, v)
        for name, weights in zip(KINDS, (equal, weighted), strict=True)
    }


def relative_rank(
    truth: Float[Array, " units"],
    draws: Float[Array, "k units"],
    weights: Float[Array, " k"],
    v: Float[Array, " units"],
) -> Float[Array, " units"]:
    """The relative rank, between 0 and 1, of the true latents in a weighted sample.

    With equal weights, it is (number of draws below + v (number of equal draws + 1)) / (k + 1),
    which is uniform if truth and draws are exchangeable.

    Args:
        weights: sum to 1.
        v: uniform on (0, 1), to break ties.
    """
    k = float(len(weights))
    below = weights @ (draws < truth[None]).astype(draws.dtype)
    equal = weights @ (draws == truth[None]).astype(draws.dtype)
    return (k * (below + v * equal) + v) / (k + 1)


def rank_coverage(ranks: Float[np.ndarray, "n units"], level: float) -> Float[np.ndarray, " n"]:
    """The share of units of each example whose true latent is in the central interval."""
    return np.asarray((np.abs(ranks - 0.5) <= level / 2).mean(axis=1))

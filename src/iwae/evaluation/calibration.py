"""Calibration of q(z|x): where true latents lie among its draws, on pairs that the model makes.

For (z, x) ~ p and k draws of q(z|x), the rank of each unit of z among its draws is uniform if q is
the posterior (Cook, Gelman & Rubin 2006; Talts et al. 2018).
"""

from collections.abc import Iterator
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from iwae.evaluation.examples import ExampleFn, check_positive, map_by_cost, refuse_nan
from iwae.inference.particles import importance_particles
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey

KINDS = ("q", "snis")
"""Distributions that are ranked in: draws of q(z|x), and the same draws with their weights."""

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
    the label is drawn with x. The k draws of an example are in memory together.

    Yields:
        `q` `[n, units]`, the ranks among the draws: uniform on (0, 1) for every unit if q is the
        posterior, continuous or discrete, as ties are broken at random; and `snis`, those in the
        distribution of the draws with self-normalised weights, nearly uniform for k large enough.

    Raises:
        UserError: if a number is not positive.
        FloatingPointError: if a rank is nan.
    """
    check_positive("examples", n_examples)
    check_positive("k", k)
    nothing = np.zeros((n_examples, 1), np.uint8)
    fn = _ranks(k)
    slabs = map_by_cost(fn, model, nothing, key, rows=k, batch_size=batch_size, first=first)
    return refuse_nan(slabs, first, "rank", KINDS)


@lru_cache
def _ranks(k: int) -> ExampleFn:
    def fn(model: AbstractLatentModel, nothing: Example, key: PRNGKey) -> dict[str, Array]:  # noqa: ARG001
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

    return fn


def relative_rank(
    truth: Float[Array, " units"],
    draws: Float[Array, "k units"],
    weights: Float[Array, " k"],
    v: Float[Array, " units"],
) -> Float[Array, " units"]:
    """The rank of the true latents in a weighted sample, relative: between 0 and 1.

    With equal weights it is (number of draws below + v (number of equal ones + 1)) / (k + 1):
    uniform if truth and draws are exchangeable.

    Args:
        weights: sum to 1.
        v: uniform on (0, 1), to break ties.
    """
    k = float(len(weights))
    below = weights @ (draws < truth[None]).astype(draws.dtype)
    equal = weights @ (draws == truth[None]).astype(draws.dtype)
    return (k * (below + v * equal) + v) / (k + 1)


def coverage(ranks: Float[np.ndarray, "n units"], level: float) -> Float[np.ndarray, " n"]:
    """The share of each example's units whose true latent is in the central interval."""
    return np.asarray((np.abs(ranks - 0.5) <= level / 2).mean(axis=1))

"""Posterior means, and densities of posterior and prior on a grid."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from iwae.errors import UserError
from iwae.evaluation.examples import ROWS
from iwae.inference.particles import Particles, importance_particles
from iwae.inference.resampling import sir
from iwae.models.posteriors import is_reparameterised_posterior
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.precision import float32
from iwae.typing import Example, Latents, PRNGKey, Scalar

# --- from particles -------------------------------------------------------------------------


def snis_mean(particles: Particles, f: Callable[[Latents], PyTree] = lambda z: z) -> PyTree:
    """E[f(z)|x] by self-normalised importance sampling: the weighted mean of f, biased by 1/k.

    Args:
        f: a function of one particle's latents.

    Returns:
        A pytree like that of `f(z)`; the posterior mean of z if no f is given.
    """
    w = jax.nn.softmax(particles.log_w)
    return jax.tree.map(lambda leaf: jnp.tensordot(w, leaf, 1), jax.vmap(f)(particles.z))


# --- on a grid ------------------------------------------------------------------------------


class PosteriorGrid(NamedTuple):
    """The true posterior of one example and q, on a grid over one or two latents.

    Attributes:
        axes: the grid of each latent, `[g]`.
        log_posterior: log p(z|x), `[g]` or `[g, g]` (first latent first), nats; normalised on
            the grid.
        log_q: log q(z|x) on the grid, nats; not renormalised.
        log_evidence: log p(x) by quadrature, nats. If it is far below other estimates, the grid
            misses a part of the posterior.
        draws: `[n, 1]` or `[n, 2]` draws from the posterior by SIR.
    """

    axes: tuple[Float[np.ndarray, " g"], ...]
    log_posterior: Float[np.ndarray, "..."]
    log_q: Float[np.ndarray, "..."]
    log_evidence: float
    draws: Float[np.ndarray, "n m"]


@float32
def posterior_grid(
    model: AbstractLatentModel,
    x: Example,
    key: PRNGKey,
    *,
    points: int = 200,
    draws: int = 200,
    particles: int = 5000,
    limits: tuple[tuple[float, float], ...] | None = None,
) -> PosteriorGrid:
    """p(z|x) and q(z|x) of a model with one or two latents, and draws from p(z|x).

    Args:
        points: grid points along each latent.
        draws: number of draws from the posterior, by SIR.
        particles: number of importance samples, which provide the draws and the limits.
        limits: lowest and highest value of each latent; by default, the range of the importance
            samples and of the draws, extended by a third on either side.

    Raises:
        UserError: if the model has more than two latents, counted over all its layers, or discrete
            ones.
    """
    if not is_reparameterised_posterior(model.posterior(x)):
        raise UserError("a grid needs continuous latents, and this model has bits or categories")
    particle_key, draw_key = jax.random.split(key)
    found, _ = _particles(model, x, particle_key, particles)
    flat, unravel = jax.vmap(lambda z: ravel_pytree(z)[0])(found.z), _unravel_like(found.z)
    if flat.shape[1] > 2:
        raise UserError(f"a grid needs one or two latents; this model has {flat.shape[1]}")
    chosen = np.asarray(sir(Particles(flat, found.log_w), draw_key, draws))
    axes, grid = _grid(limits or _axis_limits(np.concatenate([np.asarray(flat), chosen])), points)
    values = _densities(model, x, jnp.asarray(grid.reshape(-1, flat.shape[1])), unravel)
    log_p, log_q = (np.asarray(value, np.float64).reshape(grid.shape[:-1]) for value in values)
    cell = sum(np.log(axis[1] - axis[0]) for axis in axes)
    log_evidence = float(np.logaddexp.reduce(log_p, axis=None) + cell)
    return PosteriorGrid(axes, log_p - log_evidence, log_q, log_evidence, chosen)


_particles = eqx.filter_jit(importance_particles)


def _unravel_like(z: Latents) -> Callable[[Float[Array, " m"]], Latents]:
    """A function from a flat latent to one like those in `z`, whose leaves are `[k, ...]`."""
    return ravel_pytree(jax.tree.map(lambda leaf: leaf[0], z))[1]


def _axis_limits(points: Float[np.ndarray, "n m"]) -> tuple[tuple[float, float], ...]:
    low, high = points.min(axis=0), points.max(axis=0)
    margin = (high - low) / 3
    return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def _grid(
    limits: Sequence[tuple[float, float]], points: int
) -> tuple[tuple[Float[np.ndarray, " g"], ...], Float[np.ndarray, "... m"]]:
    """The axes between some limits, and all points of their grid."""
    axes = tuple(np.linspace(low, high, points, dtype=np.float32) for low, high in limits)
    return axes, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


@eqx.filter_jit
def _densities(
    model: AbstractLatentModel,
    x: Example,
    grid: Float[Array, "n m"],
    unravel: Callable[[Float[Array, " m"]], Latents],
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """log p(x, z) and log q(z|x) at each point of the grid, nats."""
    posterior = model.posterior(x)

    def both(z: Float[Array, " m"]) -> tuple[Scalar, Scalar]:
        latents = unravel(z)
        return model.log_joint(x, latents), posterior.log_prob(latents)

    return jax.lax.map(both, grid, batch_size=ROWS)


class PriorGrid(NamedTuple):
    """p(h_L) of two units on a grid, and the aggregate posterior.

    Attributes:
        axes: the grid of each unit, `[g]`.
        log_prior: log p(h_L), `[g, g]` (first unit first), nats.
        draws: `[n, 2]`, one from q(h_L|x) for each example x.
    """

    axes: tuple[Float[np.ndarray, " g"], ...]
    log_prior: Float[np.ndarray, "g g"]
    draws: Float[np.ndarray, "n 2"]


def aggregate_posterior_grid(
    model: VAE, examples: np.ndarray, key: PRNGKey, *, points: int = 200
) -> PriorGrid:
    """The prior of a model with two units in its top layer, and draws of q for all examples.

    Args:
        examples: `[n, d]` in the model's units.
        points: grid points along each unit.

    Raises:
        UserError: if the top layer has another number of units.
    """
    if model.latent_sizes[-1] != 2:
        raise UserError(f"a grid needs two units in the top layer, not {model.latent_sizes[-1]}")
    q_key, p_key = jax.random.split(key)
    draws = np.asarray(_top_draws(model, jnp.asarray(examples, jnp.float32), q_key))
    of_prior = np.asarray(_prior_draws(model, jax.random.split(p_key, len(draws))))
    axes, grid = _grid(_axis_limits(np.concatenate([draws, of_prior])), points)
    log_prior = np.asarray(_log_prior(model, jnp.asarray(grid.reshape(-1, 2))), np.float64)
    return PriorGrid(axes, log_prior.reshape(points, points), draws)


@eqx.filter_jit
def _top_draws(model: VAE, examples: Float[Array, "n d"], key: PRNGKey) -> Float[Array, "n 2"]:
    keys = jax.random.split(key, len(examples))
    return jax.vmap(lambda x, key: model.posterior(x).sample(key)[-1])(examples, keys)


@eqx.filter_jit
def _prior_draws(model: VAE, keys: Key[Array, " n"]) -> Float[Array, "n 2"]:
    return jax.vmap(model.prior().sample)(keys)


@eqx.filter_jit
def _log_prior(model: VAE, grid: Float[Array, "n 2"]) -> Float[Array, " n"]:
    return jax.lax.map(model.prior().log_prob, grid, batch_size=ROWS)

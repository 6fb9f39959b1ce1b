"""Draws of the unknown values of an example given the known ones, from any VAE."""

import copy
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from iwae.errors import UserError, require_positive
from iwae.evaluation.examples import ROWS
from iwae.evaluation.imputation import imputing_decoder
from iwae.evaluation.likelihood import KHAT_WEIGHTS
from iwae.inference.kernels import pareto_k
from iwae.inference.log_weights import effective_sample_size
from iwae.inference.particles import Particles, importance_particles
from iwae.inference.resampling import sir
from iwae.inference.starts import Prior
from iwae.inference.tuning import tune_annealer
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.typing import Example, Latents, PRNGKey, Scalar

LEAST_ESS = 10.0
"""With fewer effective samples, draws would repeat a handful of latents."""

TEMPERATURES, LEAPFROG, PILOT, PILOT_CHAINS = 200, 10, 16, 4


class Given(NamedTuple):
    """Draws from p(x|known values).

    Attributes:
        rows: `[n, d]`, with the known values in place.
        ess: effective sample size of the particles from which they were drawn.
        pareto_k: k-hat of the weights of these particles. Above `pareto_threshold` of their number
            (0.7 for 2,200 or more), the draws are unreliable.
    """

    rows: Float[np.ndarray, "n d"]
    ess: float
    pareto_k: float


def sample_given(
    model: VAE, known: Float[np.ndarray, " d"], key: PRNGKey, n: int, *, k: int, method: str = "is"
) -> Given:
    """Draw rows given some of their values, by sampling importance resampling (Rubin 1988).

    Particles come from q(z|x_known) if the model handles missing values, otherwise from p(z); with
    method "ais" they are annealed from there to p(z|x_known) (Neal 2001).

    Args:
        known: the known values in the model's units, NaN for the others.
        n: number of draws.
        k: particles to draw from; chains of "ais".

    Raises:
        UserError: if fewer than `LEAST_ESS` of the particles are effective, or the values of the
            model are not independent given z.
        FloatingPointError: if a weight is nan.
    """
    require_positive("n", n)
    require_positive("k", k)
    reads_gaps = model.missing is not None
    if method not in _METHODS:
        raise UserError(f"no method {method!r}; known: {', '.join(_METHODS)}")
    particle_key, draw_key, fill_key = jax.random.split(key, 3)
    model, x = _with_gaps(model), jnp.asarray(known, jnp.float32)
    proposing: AbstractLatentModel = model if reads_gaps else FromPrior(model)
    particles = _METHODS[method](proposing, x, particle_key, k)
    if np.isnan(np.asarray(particles.log_w)).any():
        raise FloatingPointError("a weight of the particles is nan: check the known values")
    ess = float(effective_sample_size(particles.log_w))
    if ess < LEAST_ESS:
        raise UserError(
            f"only {ess:.1f} of {k:,} particles are effective, too few to draw from: raise k, "
            "give fewer values, or use method 'ais'"
        )
    z = sir(particles, draw_key, n)
    rows = _filled_rows(model, x, z, jax.random.split(fill_key, n))
    return Given(np.asarray(rows), ess, float(_khat(particles.log_w[:KHAT_WEIGHTS])))


_khat = jax.jit(pareto_k)


@eqx.filter_jit
def _filled_rows(
    model: VAE, x: Float[Array, " d"], z: Latents, keys: Key[Array, " n"]
) -> Float[Array, "n d"]:
    """x with its missing values drawn given each z."""
    return jax.vmap(lambda z, key: imputing_decoder(model, z).fill(x, key))(z, keys)


def _with_gaps(model: VAE) -> VAE:
    """The same model with the density of the observed values of an example.

    The encoder of a model not made for missing values cannot read such an example.
    """
    if model.missing is not None:
        return model
    twin = copy.copy(model)
    object.__setattr__(twin, "missing", "at-random")  # the decoder's outputs are the same
    return twin


class FromPrior(AbstractLatentModel):
    """A VAE whose q(z|x) is the prior p(z), for examples that its encoder cannot read."""

    vae: VAE

    def posterior(self, x: Example) -> Prior:  # noqa: ARG002
        """p(z)."""
        return Prior(self.vae)

    def log_joint(self, x: Example, z: Latents) -> Scalar:
        """log p(x, z), nats."""
        return self.vae.log_joint(x, z)

    def sample(self, key: PRNGKey) -> tuple[Latents, Example]:
        """Draw (z, x) ~ p by ancestral sampling."""
        return self.vae.sample(key)


def _importance_in_chunks(
    model: AbstractLatentModel, x: Example, key: PRNGKey, k: int
) -> Particles:
    chunk = min(k, ROWS)
    found = [_chunk(model, x, key, chunk, jnp.int32(first)) for first in range(0, k, chunk)]
    whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)
    return jax.tree.map(lambda leaf: leaf[:k], whole)


@eqx.filter_jit
def _chunk(model: AbstractLatentModel, x: Example, key: PRNGKey, k: int, first: Array) -> Particles:
    return importance_particles(model, x, key, k, first=first)[0]


def _annealed_chains(model: AbstractLatentModel, x: Example, key: PRNGKey, k: int) -> Particles:
    """Chains whose step sizes are tuned on draws of the model with the same values missing."""
    draw_key, tune_key, chain_key = jax.random.split(key, 3)
    drawn = jax.vmap(lambda key: model.sample(key)[1])(jax.random.split(draw_key, PILOT))
    pilot = np.where(np.isnan(np.asarray(x)), np.nan, np.asarray(drawn))
    options = {"temperatures": TEMPERATURES, "n_leapfrog": LEAPFROG, "chains": PILOT_CHAINS}
    annealer = tune_annealer(model, pilot, tune_key, **options)
    return eqx.filter_jit(annealer)(model, x, chain_key, k)[0]


_METHODS = {"is": _importance_in_chunks, "ais": _annealed_chains}

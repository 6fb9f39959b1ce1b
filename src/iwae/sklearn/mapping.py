"""Map functions of (model, one row, its key) over the rows of an estimator."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.evaluation.encoding import encoder_moments
from iwae.evaluation.examples import CHAIN_ROWS, ROWS, ExampleFn, gather_examples, map_examples
from iwae.evaluation.imputation import CHAINS, Filling, Imputed, imputation_annealer
from iwae.evaluation.likelihood import annealed_likelihood
from iwae.evaluation.posterior import snis_mean
from iwae.evaluation.tails import pareto_threshold
from iwae.inference.particles import Sampler, importance_particles
from iwae.inference.temperatures import sigmoid_schedule
from iwae.inference.tuning import tune_step_size
from iwae.models.likelihoods import likelihood_centre
from iwae.models.likelihoods.masking import without_masking
from iwae.models.vae import VAE
from iwae.precision import float32
from iwae.sklearn.input_rows import input_row_addresses
from iwae.typing import Example, PRNGKey, Scalar

AT_A_TIME = 32
"""Rows of one dispatch, padded with copies, so that the result of a row depends on no other row."""

ANNEALING_CHAINS, LEAPFROG, PILOT_ROWS, PILOT_CHAINS = 16, 10, 32, 4
"""Settings of `method="ais"`; its step sizes are tuned on rows drawn from the model."""

SCORE, LATENT, _PILOT, _IMPUTE, _AGAIN = 1, 2, 3, 4, 5  # folded into the estimator's key


def map_rows(estimator: Any, fn: ExampleFn, rows: np.ndarray, batch_size: int, purpose: int) -> Any:
    """Apply a function of one row to each row; its key is derived from the row's values.

    Raises:
        FloatingPointError: if its result, or the first array of its result, holds nan.
    """
    n, whole = len(rows), AT_A_TIME * jax.local_device_count()
    filled = np.concatenate([rows, np.repeat(rows[-1:], -n % whole, axis=0)])
    slabs = map_examples(
        fn,
        estimator.model_,
        filled,
        _key(estimator, purpose),
        batch_size=min(batch_size, AT_A_TIME),
        slab_size=whole,
        addresses=input_row_addresses(filled),
    )
    found = jax.tree.map(lambda leaf: leaf[:n], gather_examples(slabs))
    bad = np.isnan(jax.tree.leaves(found)[0]).reshape(n, -1).any(axis=1)
    if bad.any():
        raise FloatingPointError(f"the model's result for row {bad.argmax() + 1} is nan")
    return found


def _key(estimator: Any, purpose: int) -> PRNGKey:
    return jax.random.fold_in(jax.random.key(estimator._key_), purpose)


class Likelihood(eqx.Module):
    """The log-likelihood alone, out of a bound's results for a row."""

    bound: Callable[..., Any]

    def __call__(self, model: VAE, x: Example, key: PRNGKey) -> Scalar:
        """The log-likelihood of a row, nats."""
        return self.bound(model, x, key)["log_likelihood"]


def mapped_encoder_mean(model: VAE, x: Example, key: PRNGKey) -> Float[Array, " m"]:
    """E_q[z|x], as `encode` has it."""
    return encoder_moments(model, x, key)[0]


@lru_cache
def mapped_snis_mean(k: int) -> ExampleFn:
    """E[z|x] from k self-normalised importance samples."""

    def fn(model: VAE, x: Example, key: PRNGKey) -> Float[Array, " m"]:
        return snis_mean(importance_particles(model, x, key, k)[0])[0]

    return fn


def mapped_decoding(model: VAE, z: Example, key: PRNGKey) -> Float[Array, " d"]:  # noqa: ARG001
    """A typical x of p(x|z): its mean, or the most likely category."""
    return likelihood_centre(model.decode((z,)))


def mapped_draw(model: VAE, place: Example, key: PRNGKey) -> Float[Array, " d"]:  # noqa: ARG001
    """A draw from the model, without missing values."""
    z_key, x_key = jax.random.split(key)
    z, _ = model.sample(z_key)
    return jnp.asarray(without_masking(model.decode(z)).sample(x_key), jnp.float32)


@float32
def mapped_annealing(estimator: Any, chains: int, temperatures: int) -> ExampleFn:
    """The annealed log-likelihood of a row, with step sizes tuned on rows drawn from the model."""
    draw_key, tune_key = jax.random.split(_key(estimator, _PILOT))
    nothing = jnp.zeros((PILOT_ROWS, 1), jnp.float32)
    keys = jax.random.split(draw_key, PILOT_ROWS)
    with jax.debug_nans(False):  # `sample` draws gaps too, which `mapped_draw` leaves out
        pilot = jax.vmap(partial(mapped_draw, estimator.model_))(nothing, keys)
    betas = sigmoid_schedule(temperatures)
    sizes = tune_step_size(
        estimator.model_,
        np.asarray(pilot),
        tune_key,
        betas=betas,
        n_leapfrog=LEAPFROG,
        chains=PILOT_CHAINS,
    )
    return annealed_likelihood(chains=chains, betas=betas, step_size=sizes, n_leapfrog=LEAPFROG)


def map_expected_rows(estimator: Any, rows: np.ndarray, k: int, *, anneal: bool) -> Imputed:
    """Rows completed by the expectations of their missing values, in the units of the model."""
    filling = Filling(importance_particles, k)
    values, khat = map_rows(estimator, filling, rows, max(1, ROWS // k), _IMPUTE)
    threshold = np.full(len(khat), pareto_threshold(k))
    if anneal and (bad := khat > threshold).any():
        again = Filling(_annealer(estimator), CHAINS)
        batch = CHAIN_ROWS // CHAINS
        values[bad], khat[bad] = map_rows(estimator, again, rows[bad], batch, _AGAIN)
        threshold[bad] = pareto_threshold(CHAINS)
    return Imputed(values, khat, threshold)


@float32
def _annealer(estimator: Any) -> Sampler:
    return imputation_annealer(estimator.model_, _key(estimator, _PILOT))

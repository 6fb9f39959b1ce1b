"""Imputation of missing values, by their expectation given the observed values or by draws.

A model of examples with missing values (NaN) has particles of p(z|x_obs) like any other model, and
p(x_mis|z) is known. Both kinds of imputation follow (Mattei & Frellsen 2019).
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from iwae.data.rows import Examples
from iwae.errors import UserError, require_positive
from iwae.evaluation.examples import CHAIN_ROWS, gather_examples, map_examples, map_examples_by_cost
from iwae.evaluation.likelihood import KHAT_WEIGHTS
from iwae.evaluation.posterior import snis_mean
from iwae.evaluation.tails import pareto_threshold
from iwae.inference.kernels import pareto_k
from iwae.inference.particles import Particles, Sampler, importance_particles
from iwae.inference.resampling import sir
from iwae.inference.tuning import tune_annealer
from iwae.models.likelihoods.masking import without_masking
from iwae.models.likelihoods.missing import Imputing
from iwae.models.likelihoods.table import Columns
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, Latents, PRNGKey, Scalar

TEMPERATURES, LEAPFROG, CHAINS = 50, 5, 32
"""Settings of annealing, for examples whose importance weights are unreliable.

A hundred chains take 1.7 times as long and impute scikit-learn's breast cancer table no better.
"""

PILOT, PILOT_CHAINS, PILOT_HIDDEN = 32, 4, 0.2
"""Number of examples drawn from the model to tune step sizes, its chains, and share of gaps."""

AT_A_TIME = 16
"""Annealed examples per dispatch; padding the last one saves the compilation of another shape."""

_AGAIN, _PILOT = np.uint32(2**32 - 1), np.uint32(2**32 - 2)
"""Folded into the key like the indices of examples, none of which is as large."""


class Imputed(NamedTuple):
    """Completed examples, and the reliability of the weights behind them.

    Attributes:
        values: `[n, d]`, or `[draws, n, d]`: the examples, in their own type, with numbers in place
            of NaN.
        pareto_k: `[n]`, k-hat of each example's weights; nan for examples without gaps, and for
            fewer than 25 particles.
        threshold: `[n]`, k-hat above which imputed values are unreliable, as from
            `iwae.evaluation.tails.pareto_threshold`. It is lower for examples that were
            annealed, because they have fewer weights.
    """

    values: Shaped[np.ndarray, "... n d"]
    pareto_k: Float[np.ndarray, " n"]
    threshold: Float[np.ndarray, " n"]


def impute(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    k: int = 1000,
    batch_size: int | None = None,
    sampler: Sampler = importance_particles,
) -> Shaped[np.ndarray, "n d"]:
    """Fill each missing value with its expectation given the observed ones, or likeliest category.

    E[x_mis|x_obs] by self-normalised importance sampling, biased by 1/k (Mattei & Frellsen 2019).
    It minimises the expected squared error, but varies too little as data: to compute statistics of
    a filled table, use `multiple_imputations`.

    Args:
        model: one whose `decode(z)` is `iwae.models.likelihoods.missing.Imputing`, such as
            `VAE(..., missing="at-random")`.
        examples: `[n, d]` in the model's units, NaN where a value is missing.
        k: particles per example.
        batch_size: examples at a time on each device; changes the speed, not the numbers.
        sampler: a function (model, x, key, k) -> (Particles, info).

    Returns:
        `[n, d]`: the examples, in their own type, with numbers in the place of NaN.

    Raises:
        UserError: if there are no examples, k or a size is not positive, or the model does not
            handle missing values.
        FloatingPointError: if an imputed value is nan.
    """
    return imputed(model, examples, key, k=k, batch_size=batch_size, sampler=sampler).values


def multiple_imputations(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    draws: int,
    k: int = 1000,
    batch_size: int | None = None,
    sampler: Sampler = importance_particles,
) -> Shaped[np.ndarray, "draws n d"]:
    """Draw the missing values given the observed ones: one completed data set per draw.

    z is drawn by sampling importance resampling, and x_mis from p(x_mis|z) (Mattei & Frellsen
    2019). As k grows, these are draws from p(x_mis|x_obs); if one particle has nearly all the
    weight, they vary too little. The spread of any statistic over the data sets measures the
    uncertainty due to missing values (Rubin 1987).

    Args:
        draws: number of data sets.
        model, examples, k, batch_size, sampler: as for `impute`, which raises the same errors.

    Returns:
        `[draws, n, d]`: the examples, in their own type, with numbers in the place of NaN.
    """
    options: dict[str, Any] = {"k": k, "batch_size": batch_size, "sampler": sampler}
    return imputed(model, examples, key, draws=draws, **options).values


def imputed(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    draws: int | None = None,
    **options: Any,
) -> Imputed:
    """Join the slabs of `imputed_slabs`, to which the options are passed."""
    slabs = imputed_slabs(model, examples, key, draws=draws, **options)
    return join_imputed(slabs, axis=0 if draws is None else 1)


def join_imputed(pieces: Iterable[Imputed], *, axis: int) -> Imputed:
    """Join pieces along the axis of the values that counts examples."""
    values, *others = zip(*pieces, strict=True)
    return Imputed(np.concatenate(values, axis=axis), *map(np.concatenate, others))


def imputed_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    draws: int | None = None,
    k: int = 1000,
    batch_size: int | None = None,
    sampler: Sampler = importance_particles,
    anneal: bool = False,
) -> Iterator[Imputed]:
    """The values of `impute` or, given `draws`, of `multiple_imputations`, with their k-hat.

    Args:
        anneal: impute examples whose k-hat is above its threshold again, from chains that are
            annealed from q(z|x_obs) to p(z|x_obs). k-hat is then that of the chains' weights.

    Other arguments and errors are theirs.
    """
    require_positive("k", k)
    if draws is not None:
        require_positive("draws", draws)
    again_key, pilot_key = (jax.random.fold_in(key, part) for part in (_AGAIN, _PILOT))
    annealer, done = cache(lambda: imputation_annealer(model, pilot_key)), 0
    fn = Filling(sampler, k, draws)
    slabs = map_examples_by_cost(fn, model, examples, key, rows=fn.rows, batch_size=batch_size)
    for slab in slabs:
        filled, khat = gather_examples(iter([slab]))
        some, places = examples[done : done + len(khat)], np.arange(done, done + len(khat))
        threshold = np.full(len(khat), pareto_threshold(k))
        if anneal and (bad := khat > threshold).any():
            again = Filling(annealer(), max(CHAINS, draws or 0), draws)
            filled[bad], khat[bad] = annealed_imputations(
                again, model, some[bad], again_key, places[bad]
            )
            threshold[bad] = pareto_threshold(again.k)
        if draws is None:
            values = _completed(some, filled, done)
        else:
            values = np.stack([_completed(some, filled[:, i], done) for i in range(draws)])
        done += len(khat)
        yield Imputed(values, khat, threshold)


def annealed_imputations(
    fn: "Filling",
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    addresses: np.ndarray,
) -> Any:
    """Apply a function that anneals to a few examples, each with the key of its address."""
    padding = -len(examples) % (AT_A_TIME * jax.local_device_count())
    padded, places = (
        np.concatenate([each, np.repeat(each[-1:], padding, axis=0)])
        for each in (examples, addresses.astype(np.uint32))
    )
    slabs = map_examples(
        fn,
        model,
        padded,
        key,
        batch_size=min(AT_A_TIME, max(1, CHAIN_ROWS // fn.k)),
        slab_size=AT_A_TIME * jax.local_device_count(),
        addresses=places,
    )
    return jax.tree.map(lambda leaf: leaf[: len(examples)], gather_examples(slabs))


def imputation_annealer(model: AbstractLatentModel, key: PRNGKey) -> Sampler:
    """A sampler that anneals, tuned on draws of the model with a fifth of their values hidden.

    It does not depend on the examples to impute, so that each is imputed independently.
    """
    tune_key, draw_key = jax.random.split(key)

    def one(key: PRNGKey) -> Example:
        z_key, x_key, hide_key = jax.random.split(key, 3)
        p = without_masking(imputing_decoder(model, model.sample(z_key)[0]))
        x = jnp.asarray(p.sample(x_key), jnp.float32)
        return jnp.where(jax.random.bernoulli(hide_key, PILOT_HIDDEN, x.shape), jnp.nan, x)

    with jax.debug_nans(False):  # nan is a hidden value
        drawn = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(draw_key, PILOT)))
    options = {"temperatures": TEMPERATURES, "n_leapfrog": LEAPFROG, "chains": PILOT_CHAINS}
    return tune_annealer(model, drawn, tune_key, **options)


class Filling(eqx.Module):
    """A function of one example: the completed example, `[d]` or `[draws, d]`, and k-hat.

    Attributes:
        sampler: draws the particles.
        k: number of particles.
        draws: number of draws; None for expectations.
    """

    sampler: Sampler
    k: int = eqx.field(static=True)
    draws: int | None = eqx.field(static=True, default=None)

    @property
    def rows(self) -> int:
        """Number of evaluations of the decoder."""
        return max(self.k, self.draws or 0)

    def __call__(
        self, model: AbstractLatentModel, x: Example, key: PRNGKey
    ) -> tuple[Float[Array, "*draws d"], Scalar]:
        """Fill an example of this model."""
        if self.draws is None:
            particles, _ = self.sampler(model, x, key, self.k)
            average = snis_mean(particles, lambda z: imputing_decoder(model, z).averages())
            first = jax.tree.map(lambda leaf: leaf[0], particles.z)  # `guess` is the same for all
            filled = jnp.where(jnp.isnan(x), imputing_decoder(model, first).guess(average), x)
        else:
            particle_key, chosen_key, fill_key = jax.random.split(key, 3)
            particles, _ = self.sampler(model, x, particle_key, self.k)
            chosen = sir(particles, chosen_key, self.draws)
            keys = jax.random.split(fill_key, self.draws)
            filled = jax.vmap(lambda z, key: imputing_decoder(model, z).fill(x, key))(chosen, keys)
        return filled, _khat_of_gaps(x, particles)


def _khat_of_gaps(x: Example, particles: Particles) -> Scalar:
    """k-hat of the weights of an example with gaps; nan for other examples."""
    return jnp.where(jnp.isnan(x).any(), pareto_k(particles.log_w[:KHAT_WEIGHTS]), jnp.nan)


def imputing_decoder(model: AbstractLatentModel, z: Latents) -> Imputing:
    """p(x|z) of a model that handles missing values.

    Raises:
        UserError: if the model does not handle them.
    """
    p = model.decode(z) if hasattr(model, "decode") else None
    parts = p.each if isinstance(p, Columns) else (p,)
    if p is None or not all(isinstance(part, Imputing) for part in parts):
        raise UserError(
            f"this {type(model).__name__} was not made for missing values: train one with missing "
            "'at-random', or 'not-at-random' if missingness depends on the values"
        )
    return p


def _completed(
    examples: Shaped[np.ndarray, "n d"], filled: Float[np.ndarray, "n d"], first: int
) -> Shaped[np.ndarray, "n d"]:
    """Replace the missing values of examples, the first of which has the index `first`."""
    if np.isnan(filled).any():
        row, column = np.argwhere(np.isnan(filled))[0]
        raise FloatingPointError(
            f"the missing value in row {first + row + 1}, column {column + 1} cannot be imputed: "
            "the model gives nan for it; look for a parameter that is not finite, or for a value "
            "of this row far outside the training data"
        )
    return np.where(np.isnan(examples), filled, examples).astype(examples.dtype)

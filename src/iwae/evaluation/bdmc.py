"""Bidirectional Monte Carlo: bounds from both sides on examples that the model draws."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.errors import UserError, require_positive
from iwae.evaluation.examples import (
    ROWS,
    gather_examples,
    map_examples,
    map_examples_with_chains,
    placeholder_examples,
)
from iwae.evaluation.likelihood import streamed_log_likelihood
from iwae.inference.annealing import annealed_particles, reverse_annealed_log_weights
from iwae.inference.log_weights import log_mean_exp, log_sum_of_other_weights
from iwae.inference.temperatures import Betas, StepSize, checked_temperatures
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, LogWeights, PRNGKey, Scalar


class Bidirectional(NamedTuple):
    """Bounds from both sides on log p(x) of examples drawn from the model.

    Each holds in expectation; a single upper bound can lie below its lower bound by chance.

    Attributes:
        lower, upper: `[n]` float64, nats. With annealing, `upper` is from reverse chains.
        mixed_upper: `[n]` float64, nats, from reverse and forward chains, as from
            `bdmc_mixed_upper`. With importance samples, `upper` is the same.
        acceptance: `[n]` mean probability of acceptance; nan for importance sampling.
    """

    lower: Float[np.ndarray, " n"]
    upper: Float[np.ndarray, " n"]
    mixed_upper: Float[np.ndarray, " n"]
    acceptance: Float[np.ndarray, " n"]

    @property
    def gap(self) -> Float[np.ndarray, " n"]:
        """Upper minus lower bound, nats: on average, neither is in error by more."""
        return self.upper - self.lower

    @property
    def mixed_gap(self) -> Float[np.ndarray, " n"]:
        """Mixed upper minus lower bound, nats: the same holds."""
        return self.mixed_upper - self.lower


def bdmc(
    model: AbstractLatentModel,
    key: PRNGKey,
    *,
    n_examples: int,
    chains: int = 16,
    betas: Betas,
    step_size: StepSize,
    n_leapfrog: int,
    start: str = "posterior",
    batch_size: int | None = None,
) -> Bidirectional:
    """Bidirectional Monte Carlo (Grosse, Ghahramani & Adams 2015), by annealing in both directions.

    Example i, its latents and all chains depend only on `fold_in(key, i)`.

    Args:
        n_examples: number of pairs (z, x) to draw from the model.
        chains: number of chains per example, in each direction.
        betas, step_size, n_leapfrog, start: as for `annealed_particles`; step sizes from a
            pilot with another key.
        batch_size: examples at a time on each device; changes the speed, not the numbers.

    Raises:
        UserError: if n_examples or chains is not positive, or the temperatures or step sizes are
            not a valid schedule.
    """
    slabs = bdmc_slabs(
        model,
        key,
        n_examples=n_examples,
        chains=chains,
        betas=betas,
        step_size=step_size,
        n_leapfrog=n_leapfrog,
        start=start,
        batch_size=batch_size,
    )
    return Bidirectional(**gather_examples(slabs))


def bdmc_slabs(
    model: AbstractLatentModel,
    key: PRNGKey,
    *,
    n_examples: int,
    chains: int,
    batch_size: int | None = None,
    first: int = 0,
    **path: Any,
) -> Iterator[dict[str, np.ndarray]]:
    """`bdmc` from example `first` on, slab by slab, to show progress and keep partial results."""
    fn = eqx.Partial(_annealed_bounds, **checked_temperatures(chains=chains, **path))
    require_positive("n_examples", n_examples)
    batch, nothing = batch_size or None, placeholder_examples(n_examples)
    return map_examples_with_chains(
        fn, model, nothing, key, chains=chains, batch_size=batch, first=first
    )


def bdmc_importance_slabs(
    model: AbstractLatentModel,
    key: PRNGKey,
    *,
    n_examples: int,
    k: int,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Bounds from importance samples: the lower from k - 1, the upper with the true z as k-th.

    If z ~ p(z|x) is one of the k particles and q draws the others, E log mean w is no longer
    below log p(x) but above it (Grosse et al. 2015, sec. 4.1, with one temperature).

    Args:
        k: particles, at least two; memory does not depend on it.

    Yields:
        The fields of `Bidirectional`, from example `first` on, slab by slab.
    """
    if k < 2:
        raise UserError(f"k is {k}; it must be at least 2: the true latent and a proposal")
    require_positive("n_examples", n_examples)
    fn = eqx.Partial(_importance_bounds, k=k, chunk=min(k - 1, ROWS // 4))
    nothing = placeholder_examples(n_examples)
    return map_examples(fn, model, nothing, key, batch_size=batch_size or 4, first=first)


def _annealed_bounds(
    model: AbstractLatentModel,
    nothing: Example,  # noqa: ARG001
    key: PRNGKey,
    **options: Any,
) -> dict[str, Array]:
    return bidirectional_bounds(model, key, **options)


def bidirectional_bounds(
    model: AbstractLatentModel, key: PRNGKey, k: int, **options: Any
) -> dict[str, Array]:
    """Lower and upper bounds on log p(x), nats, for one (z, x) drawn from the model.

    For a conditional model, a label y is drawn with x, and the bounds are on log p(x|y).

    Args:
        k: chains in each direction.
        options: those of `annealed_particles`.

    Returns:
        `lower`, from forward chains; `upper`, from reverse chains that start at z; `mixed_upper`,
        from both; and their mean `acceptance`.
    """
    model_key, forward_key, reverse_key = jax.random.split(key, 3)
    z, x = model.sample(model_key)
    particles, forward = annealed_particles(model, x, forward_key, k, **options)
    log_w, backward = reverse_annealed_log_weights(model, x, z, reverse_key, k, **options)
    acceptance = (jnp.mean(forward["acceptance"]) + jnp.mean(backward["acceptance"])) / 2
    return {
        "lower": log_mean_exp(particles.log_w),
        "upper": -log_mean_exp(log_w),
        "mixed_upper": bdmc_mixed_upper(particles.log_w, log_w),
        "acceptance": acceptance,
    }


def bdmc_mixed_upper(log_w: LogWeights, reverse_log_w: LogWeights) -> Scalar:
    """An upper bound on log p(x) in expectation, nats, from chains in both directions.

    With r_i = exp(-reverse_log_w[i]), the weight of a reverse chain as a forward one, the bound is

        mean_i log (1/k) (r_i + sum_{j != i} w_j)

    ("independent multi-sample AIS", Brekelmans et al. 2022). Let P be the distribution of k forward
    chains, and Q the same with one of them, at random, a chain that ends in a draw of p(z|x). Then
    dQ/dP = mean w / p(x), so that E_Q log mean w = log p(x) + KL(Q || P) >= log p(x). It is nearer
    to log p(x) than one reverse chain, E log r_i, by at most log k, and tends to it with k.

    Args:
        log_w: log weights of k forward chains.
        reverse_log_w: log weights of k reverse chains from one z. Given z, all chains are
            independent.
    """
    return jnp.mean(jnp.logaddexp(-reverse_log_w, log_sum_of_other_weights(log_w))) - jnp.log(
        float(log_w.size)
    )


def _importance_bounds(
    model: AbstractLatentModel,
    nothing: Example,  # noqa: ARG001
    key: PRNGKey,
    *,
    k: int,
    chunk: int,
) -> dict[str, Scalar]:
    model_key, q_key = jax.random.split(key)
    z, x = model.sample(model_key)
    model, x = model.condition(x)
    lower = streamed_log_likelihood(k - 1, chunk)(model, x, q_key)["log_likelihood"]
    log_w = model.log_joint(x, z) - model.posterior(x).log_prob(z)
    total = jnp.logaddexp(lower + jnp.log(jnp.float32(k - 1)), log_w)
    upper = total - jnp.log(jnp.float32(k))
    nothing_moved = jnp.float32(jnp.nan)
    return {"lower": lower, "upper": upper, "mixed_upper": upper, "acceptance": nothing_moved}

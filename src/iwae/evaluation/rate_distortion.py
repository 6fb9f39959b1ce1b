"""Rate and distortion of examples along the annealing path from the prior."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.data.rows import Examples
from iwae.evaluation.examples import gather_examples, map_examples_with_chains
from iwae.inference.annealing import (
    Chain,
    Temperature,
    anneal,
    annealing_chain_keys,
    annealing_path,
    annealing_steps,
    start_annealing,
)
from iwae.inference.log_weights import log_mean_exp
from iwae.inference.temperatures import Betas, StepSize, as_betas, checked_temperatures
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey, Scalar


class RateDistortion(NamedTuple):
    """The rate-distortion curve of a model on some examples (Huang et al. 2020).

    Attributes:
        betas: `[T]`.
        rate: `[n, T]` float64, nats: an upper bound, in expectation, on the least rate.
        distortion: `[n, T]` float64, -log p(x|z), nats.
        acceptance: `[n, T-1]` mean probability of acceptance.
    """

    betas: Float[np.ndarray, " T"]
    rate: Float[np.ndarray, "n T"]
    distortion: Float[np.ndarray, "n T"]
    acceptance: Float[np.ndarray, "n moves"]


def rate_distortion(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    betas: Betas,
    step_size: StepSize,
    n_leapfrog: int,
    chains: int = 16,
    batch_size: int | None = None,
) -> RateDistortion:
    """Rate and distortion of each example at every beta, from one annealing run.

    Args:
        examples: `[n, ...]` in the model's units.
        betas: temperatures from 0 (the prior) to any end; 1 is the posterior.
        step_size: from `tune_step_size(..., start="prior")` on other examples.
        chains: number of chains per example.
        batch_size: examples at a time on each device; changes the speed, not the numbers.

    Raises:
        UserError: if there are no examples, the temperatures do not increase from 0, or the
            model does not define its prior.
    """
    path = {"betas": betas, "step_size": step_size, "n_leapfrog": n_leapfrog}
    options: dict[str, Any] = {"chains": chains, "batch_size": batch_size, **path}
    curves = gather_examples(rate_distortion_slabs(model, examples, key, **options))
    return RateDistortion(np.asarray(as_betas(betas, end=None), np.float64), **curves)


def rate_distortion_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    chains: int,
    batch_size: int | None = None,
    first: int = 0,
    **path: Any,
) -> Iterator[dict[str, np.ndarray]]:
    """`rate_distortion` from example `first` on, slab by slab: `rate`, `distortion` `[m, T]`."""
    schedule = checked_temperatures(chains=chains, end=None, **path)
    fn = eqx.Partial(_rate_distortion_bounds, **schedule)
    return map_examples_with_chains(
        fn, model, examples, key, chains=chains, batch_size=batch_size, first=first
    )


def _rate_distortion_bounds(
    model: AbstractLatentModel,
    x: Example,
    key: PRNGKey,
    k: int,
    *,
    betas: Betas,
    step_size: StepSize,
    n_leapfrog: int,
) -> dict[str, Float[Array, " T"]]:
    """Distortion and an upper bound on the rate at every beta (Huang et al. 2020, sec. 4).

    From one annealing run of k chains that start at the prior. With the distortion -log p(x|z), the
    density at beta is p(z) p(x|z)^beta / Z_beta. Its rate is its KL divergence from the prior,
    -log Z_beta - beta * distortion; the chains bound log Z_beta from below.

    Args:
        betas: from 0 to any end; at 1, rate + distortion is an upper bound on -log p(x).

    Returns:
        `rate` and `distortion`, `[T]`, nats; and the mean `acceptance`, `[T-1]`.
    """
    steps = annealing_steps(betas, step_size, n_leapfrog, end=None)
    path = annealing_path(model, x, "prior")
    start_keys, move_keys = annealing_chain_keys(key, jnp.arange(k))
    chains = start_annealing(path, start_keys)
    first = _rate_distortion(chains, jnp.float32(0))

    def observe(chains: Chain, step: Temperature) -> dict[str, Scalar]:
        return _rate_distortion(chains, step.beta)

    _, info = anneal(path, chains, move_keys, steps, n_leapfrog, observe)
    curves = {name: jnp.concatenate([first[name][None], info[name]]) for name in first}
    return {**curves, "acceptance": info["acceptance"]}


def _rate_distortion(chains: Chain, beta: Scalar) -> dict[str, Scalar]:
    """Rate and distortion of the density at beta, for which the chains are properly weighted."""
    log_w = chains.log_w.value
    log_likelihood = chains.point.log_joint - chains.point.log_start  # the start is the prior
    distortion = -jnp.sum(jax.nn.softmax(log_w) * log_likelihood)
    return {"rate": -log_mean_exp(log_w) - beta * distortion, "distortion": distortion}

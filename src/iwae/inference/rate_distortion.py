"""Rate and distortion of one example along the annealing path from the prior."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.inference import chains as annealing
from iwae.inference.chains import Chain, Temperature
from iwae.inference.particles import log_mean_exp
from iwae.inference.temperatures import Betas, StepSize
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey, Scalar


def rate_distortion_bounds(
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
    steps = annealing.schedule_steps(betas, step_size, n_leapfrog, end=None)
    path = annealing.make_path(model, x, "prior")
    start_keys, move_keys = annealing.split_keys(key, jnp.arange(k))
    chains = annealing.start_chains(path, start_keys)
    first = _rate_distortion(chains, jnp.float32(0))

    def observe(chains: Chain, step: Temperature) -> dict[str, Scalar]:
        return _rate_distortion(chains, step.beta)

    _, info = annealing.anneal(path, chains, move_keys, steps, n_leapfrog, observe)
    curves = {name: jnp.concatenate([first[name][None], info[name]]) for name in first}
    return {**curves, "acceptance": info["acceptance"]}


def _rate_distortion(chains: Chain, beta: Scalar) -> dict[str, Scalar]:
    """Rate and distortion of the density at beta, for which the chains are properly weighted."""
    log_w = chains.log_w.value
    log_likelihood = chains.point.log_joint - chains.point.log_start  # the start is the prior
    distortion = -jnp.sum(jax.nn.softmax(log_w) * log_likelihood)
    return {"rate": -log_mean_exp(log_w) - beta * distortion, "distortion": distortion}

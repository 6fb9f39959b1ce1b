"""AIWAE: the decoder learns from annealed particles, through whose chains no gradient flows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.inference.annealing import annealed_particles
from iwae.inference.log_weights import log_mean_exp
from iwae.inference.particles import Info, Particles
from iwae.inference.temperatures import linear_schedule
from iwae.models.vae import AbstractLatentModel
from iwae.objectives.bounds import elbo
from iwae.objectives.gradient_estimators import stop_gradients
from iwae.objectives.halves import split_halves
from iwae.objectives.objective import Extra, Objective
from iwae.objectives.particle_objectives import bound
from iwae.objectives.surrogates import joint_surrogate
from iwae.typing import Example, PRNGKey, Scalar

FIRST_STEP, LEAST_STEP, LARGEST_STEP = 0.1, 1e-3, 0.3
WANTED_ACCEPTANCE, LARGER, SMALLER = 0.6, 1.002, 0.998


def adapt_aiwae_step_sizes(
    step_size: Float[Array, " T"], acceptance: Float[Array, " T"]
) -> Float[Array, " T"]:
    """Lengthen steps where enough proposals are accepted, and shorten them elsewhere.

    There is one step size for each temperature after the first (Ding & Freedman 2019, sec. 4).
    """
    factor = jnp.where(acceptance >= WANTED_ACCEPTANCE, LARGER, SMALLER)
    return jnp.clip(step_size * factor, LEAST_STEP, LARGEST_STEP)


def aiwae(
    *,
    k: int,
    temperatures: int = 5,
    n_leapfrog: int = 5,
    encoder: Objective | None = None,
) -> Objective:
    """Annealed importance weighted autoencoder (Ding & Freedman 2019, algorithm 1).

    The decoder follows the gradient sum_s w_s grad log p(x, z_s) of k annealed particles; the
    encoder maximises the ELBO of one sample. Step sizes are tuned during training. No gradient
    flows through the chains, so memory does not grow with the number of temperatures. The value is
    log mean w, a lower bound on log p(x) in expectation.

    Args:
        k: chains per example, starting at q(z|x).
        temperatures: T, equally spaced from 0 to 1.
        n_leapfrog: leapfrog steps per move.
        encoder: the objective of the encoder; if None, the ELBO of one sample.
    """
    betas = linear_schedule(temperatures)

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        particles, info = annealed_particles(
            stop_gradients(model),
            x,
            key,
            k,
            betas=betas,
            step_size=extra.tuned,
            n_leapfrog=n_leapfrog,
        )
        z, log_w = jax.lax.stop_gradient(particles)
        return joint_surrogate(model, x, Particles(z, log_w)), {
            "iwae": log_mean_exp(info["start_log_w"]),
            "accepted": info["acceptance"],
            "acceptance": jnp.mean(info["acceptance"]),
        }

    decoder = Objective(
        terms,
        lambda: Extra(tuned=jnp.full(temperatures - 1, FIRST_STEP, jnp.float32)),
        lambda step_size, info: adapt_aiwae_step_sizes(step_size, info["accepted"]),
        ("iwae", "acceptance"),
    )
    return split_halves(decoder=decoder, encoder=encoder or bound(elbo, k=1))

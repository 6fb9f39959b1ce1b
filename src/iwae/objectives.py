"""Bounds on log p(x): reductions of log weights, and the combinators that make objectives."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache

import jax
import jax.numpy as jnp
from numpyro.distributions import kl_divergence

from iwae._types import Example, LogWeights, PRNGKey, Scalar, UserError
from iwae.model import VAE, AbstractLatentModel, LayeredPosterior
from iwae.particles import importance_particles, log_mean_exp, particle_keys

Reduction = Callable[[LogWeights], Scalar]
Objective = Callable[[AbstractLatentModel, Example, PRNGKey], Scalar]


def elbo(log_w: LogWeights) -> Scalar:
    """mean_i log w_i: the evidence lower bound, k samples (Kingma & Welling 2014, eq. 2)."""
    return jnp.mean(log_w)


def iwae(log_w: LogWeights) -> Scalar:
    """log mean_i w_i: the importance weighted bound L_k (Burda et al. 2016, eq. 8)."""
    return log_mean_exp(log_w)


def bound(reduction: Reduction, *, k: int, sampler: Callable = importance_particles) -> Objective:
    """The objective `reduction(log w)` of k particles of `sampler`.

    Raises:
        UserError: if k is not positive.
    """
    _check_particles(k)

    def objective(model: AbstractLatentModel, x: Example, key: PRNGKey) -> Scalar:
        particles, _ = sampler(model, x, key, k)
        return reduction(particles.log_w)

    return objective


def analytic_elbo(*, k: int) -> Objective:
    """E_q log p(x|z) by k samples, minus KL(q(z|x) || p(z)) in closed form.

    The evidence lower bound of a VAE with one stochastic layer (Kingma & Welling 2014, eq. 10).

    Raises:
        UserError: if k is not positive; when the objective is first evaluated, for any other
            model, whose divergence has no closed form.
    """
    _check_particles(k)

    def objective(model: AbstractLatentModel, x: Example, key: PRNGKey) -> Scalar:
        if not isinstance(model, VAE) or len(model.latent_sizes) > 1:
            raise UserError(
                "elbo-analytic needs a VAE with one stochastic layer: of other models the "
                "divergence KL(q || p) has no closed form; use elbo"
            )
        posterior: LayeredPosterior = model.posterior(x)

        def log_likelihood(key: PRNGKey) -> Scalar:
            return model.decode(posterior.sample(key)).log_prob(x)

        reconstruction = jnp.mean(jax.vmap(log_likelihood)(particle_keys(key, jnp.arange(k))))
        return reconstruction - kl_divergence(posterior.first, model.prior())

    return objective


def _check_particles(k: int) -> None:
    if k < 1:
        raise UserError(f"k is {k}; an objective needs at least 1 particle")


def _bound(reduction: Reduction) -> Callable[[int], Objective]:
    return lambda k: bound(reduction, k=k)


OBJECTIVES: dict[str, Callable[[int], Objective]] = {
    "elbo": _bound(elbo),
    "vae": _bound(elbo),
    "elbo-analytic": lambda k: analytic_elbo(k=k),
    "iwae": _bound(iwae),
}
"""The objectives that have a name: a number of particles -> objective. `vae` is `elbo`."""


@lru_cache
def objective(name: str, k: int) -> Objective:
    """The objective called `name` with k particles; the same function each time it is asked for.

    Raises:
        UserError: if there is none, with the nearest name there is, or if k is not positive.
    """
    if name not in OBJECTIVES:
        near = get_close_matches(name.lower(), OBJECTIVES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no objective {name!r}; {hint}known: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name](k)

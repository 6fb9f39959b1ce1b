"""DAIS: annealing without rejection, through which gradients flow."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from iwae.errors import UserError
from iwae.inference.kernels import check_leapfrog
from iwae.inference.particles import Info, map_particles, particle_keys
from iwae.models.vae import AbstractLatentModel
from iwae.objectives.bounds import Reduction, iwae
from iwae.objectives.gradient_estimators import check_gradient_path
from iwae.objectives.objective import Extra, Objective
from iwae.objectives.penalties import Penalty, Terms, unpenalised_iwae, unpenalised_terms
from iwae.objectives.surrogates import REPARAM
from iwae.typing import Example, PRNGKey, Scalar

Flat = Float[Array, " d"]

FIRST_STEP, FIRST_KEPT = 0.1, 0.9
"""Initial step size, and initial share of the momentum kept between temperatures."""


class Moves(NamedTuple):
    """Parameters of the moves, learned together with those of the model.

    Attributes:
        log_step_size: one for each temperature after the first.
        kept_logit: logit of the share of the momentum that a refreshment keeps.
    """

    log_step_size: Float[Array, " moves"]
    kept_logit: Scalar


def dais(
    *,
    k: int,
    temperatures: int = 5,
    n_leapfrog: int = 1,
    reduction: Reduction = iwae,
    penalty: Penalty | None = None,
    chunk: int | None = None,
) -> Objective:
    """Differentiable annealed importance sampling: gradients flow through unrejected chains.

    The log weight of a chain is

        log p(x, z_T) - log q(z_0|x) + sum_t (log N(v_t'; 0, I) - log N(v_t; 0, I))

    where leapfrog steps along q^(1 - beta) p^beta take v_t to v_t', and momenta are partly
    refreshed (Zhang et al. 2021, algorithm 1; Geffner & Domke 2021, who call it UHA). The weight
    has expectation p(x) whatever the step sizes.

    Args:
        k: chains per example.
        temperatures: T, equally spaced from 0 to 1; with T = 1, nothing moves, and the weights are
            those of importance sampling.
        n_leapfrog: leapfrog steps at each temperature.
        reduction: the chains' log weights -> nats.
        penalty: a modification of the weights, which does not affect the moves. The momenta of a
            unit count as part of its divergence.
        chunk: chains at a time; bounds memory, changes nothing else.

    Raises:
        UserError: if an argument is not positive; on first evaluation, if the draws of q(z|x) are
            not reparameterised.
    """
    check_leapfrog(n_leapfrog)
    if min(k, temperatures) < 1:
        raise UserError(
            f"k is {k} and temperatures is {temperatures}; dais needs at least 1 of each"
        )
    betas = jnp.linspace(0.0, 1.0, temperatures)[1:]
    of_particle = penalty.terms if penalty else unpenalised_terms

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        q = model.posterior(x)
        check_gradient_path(q, REPARAM)
        unravel = ravel_pytree(q.sample(jax.random.key(0)))[1]  # only the shapes matter

        def log_q(z: Flat) -> Scalar:
            return q.log_prob(unravel(z))

        def log_joint(z: Flat) -> Scalar:
            return model.log_joint(x, unravel(z))

        def chain(keys: tuple[PRNGKey, PRNGKey]) -> tuple[Terms, Terms]:
            start_key, momenta_key = keys
            start = q.sample(start_key)
            before = of_particle(model, q, x, start, start)
            if temperatures == 1:
                return before, before
            end, ratios = dais_chain(
                log_q,
                log_joint,
                ravel_pytree(start)[0],
                momenta_key,
                betas,
                extra.learned,
                n_leapfrog,
            )
            after = of_particle(model, q, x, unravel(end), start)
            if penalty:
                return penalty.moved(after, before, unravel(ratios)), before
            return (after[0] + jnp.sum(ratios), after[1]), before

        momenta = jax.random.fold_in(key, _MOMENTA)
        keys = tuple(particle_keys(root, jnp.arange(k)) for root in (key, momenta))
        after, before = map_particles(chain, keys, chunk)
        log_p, log_q_start = penalty.combine(after, extra.tuned) if penalty else after
        return reduction(log_p - log_q_start), {"iwae": unpenalised_iwae(before, penalty)}

    def init() -> Extra:
        tuned = penalty.init() if penalty else ()
        if temperatures == 1:
            return Extra((), tuned)
        step = jnp.full(temperatures - 1, jnp.log(FIRST_STEP), jnp.float32)
        return Extra(Moves(step, jax.scipy.special.logit(jnp.float32(FIRST_KEPT))), tuned)

    return Objective(terms, init, penalty.tune) if penalty else Objective(terms, init)


def dais_chain(
    log_q: Callable[[Flat], Scalar],
    log_joint: Callable[[Flat], Scalar],
    z: Flat,
    key: PRNGKey,
    betas: Float[Array, " moves"],
    moves: Moves,
    n_leapfrog: int,
) -> tuple[Flat, Flat]:
    """Run a chain from z; return its end and the log ratios of its momentum densities.

    The backward pass recomputes the moves, so that memory holds those of one temperature.
    """
    kept = jax.nn.sigmoid(moves.kept_logit)
    noise = jax.random.normal(key, (betas.size + 1, z.size))

    def at_temperature(
        carry: tuple[Any, ...], step: tuple[Any, ...]
    ) -> tuple[tuple[Any, ...], None]:
        z, v, ratios = carry
        beta, log_step_size, fresh = step

        def force(z: Flat) -> Flat:
            return jax.grad(lambda z: (1 - beta) * log_q(z) + beta * log_joint(z))(z)

        z, pushed = leapfrog(force, z, v, jnp.exp(log_step_size), n_leapfrog)
        ratios += dist.Normal().log_prob(pushed) - dist.Normal().log_prob(v)
        return (z, kept * pushed + jnp.sqrt(1 - kept**2) * fresh, ratios), None

    start = (z, noise[0], jnp.zeros_like(z))
    steps = (betas, moves.log_step_size, noise[1:])
    (z, _, ratios), _ = jax.lax.scan(jax.checkpoint(at_temperature), start, steps)
    return z, ratios


_MOMENTA = 2**32 - 1  # folded into the key of all momenta; no particle has this index


def leapfrog(
    force: Callable[[Flat], Flat], z: Flat, v: Flat, step_size: Scalar, steps: int
) -> tuple[Flat, Flat]:
    """Take leapfrog steps, which preserve volume and are reversible."""
    v = v + step_size / 2 * force(z)
    for i in range(steps):
        z = z + step_size * v
        v = v + (step_size if i < steps - 1 else step_size / 2) * force(z)
    return z, v

"""Metropolis moves of latents that are partly discrete, with the interface of HMC.

The proposal is a Langevin step restricted to the values that a unit can take. For a step of size
eps from z, with g the gradient of log f_beta at z, it is

    r(z'|z) proportional to exp(g (z' - z) / 2 - |z' - z|^2 / (2 eps^2))

over all reals for a normal unit (MALA), over 0 and 1 for a bit, and over one-hot vectors for a
category (Zhang, Liu & Liu 2022, eq. 4). All units are proposed at once and accepted or rejected
together, so f_beta stays invariant for every step size.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int

from iwae.inference.kernels import Evaluate, Flat, Move, Point
from iwae.models.discrete import discrete
from iwae.models.latent_kinds import LatentKind
from iwae.typing import PRNGKey, Scalar


def _proposal(kind: LatentKind, z: Flat, g: Flat, eps: Scalar) -> dist.Distribution:
    """r(z'|z) of the units of one layer."""
    if not kind.is_discrete:
        return dist.Normal(z + eps**2 / 2 * g, eps).to_event(1)
    # A change of a bit costs 1 / (2 eps^2). A change of category moves by the square root of 2 and
    # costs twice as much. In the logits of the new value, the old value gains that cost.
    here = z if kind.categories else z - 0.5
    return discrete(kind, g / 2 + here / eps**2)


def langevin(kinds: Sequence[LatentKind], unravel: Any) -> Move:
    """A kernel for latents of these kinds: `n_leapfrog` proposals, each accepted or rejected.

    Args:
        kinds: the kind of each layer.
        unravel: flat latent -> the layers.
    """

    def proposals(z: Flat, point: Point, beta: Scalar, eps: Scalar) -> list[dist.Distribution]:
        layers = zip(kinds, unravel(z), unravel(point.grad_f(beta)), strict=True)
        return [_proposal(kind, h, g, eps) for kind, h, g in layers]

    def log_prob(z: Flat, layers: list[dist.Distribution]) -> Scalar:
        return sum(r.log_prob(h) for r, h in zip(layers, unravel(z), strict=True))

    def move(
        key: PRNGKey,
        z: Flat,
        point: Point,
        evaluate: Evaluate,
        *,
        beta: Scalar,
        step_size: Scalar,
        n_leapfrog: int,
    ) -> tuple[Flat, Point, Scalar]:
        def one(state: tuple[Flat, Point], i: Int[Array, ""]) -> tuple[tuple[Flat, Point], Scalar]:
            accept_key, *keys = jax.random.split(jax.random.fold_in(key, i), 1 + len(kinds))
            forth = proposals(*state, beta, step_size)
            drawn = tuple(r.sample(key) for r, key in zip(forth, keys, strict=True))
            new = ravel_pytree(drawn)[0]
            there = new, evaluate(new)
            back = proposals(*there, beta, step_size)
            gain = there[1].log_f(beta) - state[1].log_f(beta)
            log_ratio = gain + log_prob(state[0], back) - log_prob(new, forth)
            # As in BlackJAX, a proposal whose density is not a number is rejected.
            chance = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio), 0.0))
            accepted = jax.random.uniform(accept_key) < chance
            return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), there, state), chance

        (z, point), chances = jax.lax.scan(one, (z, point), jnp.arange(n_leapfrog))
        return z, point, jnp.mean(chances)

    return move

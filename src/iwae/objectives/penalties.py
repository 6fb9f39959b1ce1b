"""KL warm-up and free bits: modified weights that keep latents in use early in training.

With log w = log p(x|z) - sum_j (log q(z_j) - log p(z_j)) over latent units j, training replaces the
log weights by

    log p(x|z) - weight sum_j cost_j,    cost_j = log q(z_j) - log p(z_j)  if KL_j > free bits,
                                                  free bits                otherwise

where the weight rises from 0 to 1. KL_j is the divergence KL(q || p) of the unit, in closed form
given its neighbours and averaged over the particles of the example; no gradient flows through it.
These weights are no longer p/q, so that an estimator that relies on p/q is excluded or adapted.

A layer whose p or q is not a diagonal Gaussian, such as one with a learned prior, counts as one
unit: its density does not factorise, and its divergence is the mean of log q - log p over the
particles.
"""

from dataclasses import dataclass
from itertools import starmap
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import kl_divergence

from iwae.errors import UserError
from iwae.inference.particles import Info
from iwae.models.posteriors import LayeredPosterior, Posterior, is_diagonal_gaussian
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.objectives.bounds import Reduction, iwae
from iwae.objectives.surrogates import Coefficients, Estimator
from iwae.typing import Example, Latents, LogWeights, Scalar

Terms = Any
"""log p(x, z) and log q(z|x) of particles, in total or in parts."""


def unpenalised_terms(
    model: AbstractLatentModel, q: Posterior, x: Example, to_joint: Latents, to_q: Latents
) -> tuple[Scalar, Scalar]:
    """log p(x, z) and log q(z|x), with separate z because gradients may differ."""
    return model.log_joint(x, to_joint), q.log_prob(to_q)


@dataclass(frozen=True)
class Penalty:
    """The cost of the divergence of q from the prior.

    Attributes:
        warmup_steps: steps over which its weight rises linearly from 0 to 1 (Sonderby et al.
            2016); 0: it is 1 from the start.
        free_bits: a latent unit with at most this divergence, in nats, costs exactly this much
            (Kingma et al. 2016, appendix C.8).
    """

    warmup_steps: int = 0
    free_bits: float = 0.0

    def init(self) -> PyTree:
        """The count of steps taken: zero."""
        return {"kl_steps": jnp.int32(0)}

    def tune(self, tuned: PyTree, info: Info) -> PyTree:  # noqa: ARG002
        """Count one more step."""
        return {"kl_steps": tuned["kl_steps"] + 1}

    def weight(self, tuned: PyTree) -> Scalar:
        """The weight of the divergence in the next step."""
        if self.warmup_steps == 0:
            return jnp.float32(1)
        return jnp.minimum(1.0, tuned["kl_steps"].astype(jnp.float32) / self.warmup_steps)

    def terms(
        self,
        model: AbstractLatentModel,
        q: Posterior,
        x: Example,
        to_joint: Latents,
        to_q: Latents,
    ) -> Terms:
        """log p(x|z); and for each layer, log p, log q and the divergence of its units.

        Log densities are `[d]` and divergences `[1 d]`; a layer that counts as one unit has d = 1.
        """
        if not isinstance(model, VAE) or not isinstance(q, LayeredPosterior):
            raise UserError(
                f"KL warm-up and free bits need a VAE, and this is a {type(model).__name__}: leave "
                "them out"
            )
        layers = zip(model.priors(to_joint), q.layers(to_q), to_joint, to_q, strict=True)
        return (
            model.log_likelihood(x, to_joint),
            *zip(*starmap(_unit_densities, layers), strict=True),
        )

    def combine(self, parts: Terms, tuned: PyTree) -> tuple[LogWeights, LogWeights]:
        """Modified log p and log q of the particles; their difference is the log weight to use."""
        log_p, *layers = parts
        weight, log_q = self.weight(tuned), jnp.zeros_like(log_p)
        for prior, q, divergence in zip(*layers, strict=True):
            known = jax.lax.stop_gradient(jnp.max(jnp.mean(divergence, axis=0), axis=0))
            costs = (known > self.free_bits) | (self.free_bits == 0)
            free = self.free_bits * jnp.sum(~costs).astype(jnp.float32)
            log_p = log_p + weight * (jnp.sum(jnp.where(costs[None], prior, 0.0), axis=1) - free)
            log_q = log_q + weight * jnp.sum(jnp.where(costs[None], q, 0.0), axis=1)
        return log_p, log_q

    def plain(self, parts: Terms) -> tuple[LogWeights, LogWeights]:
        """log p(x, z) and log q(z|x) of the particles."""
        log_likelihood, log_priors, log_qs, _ = parts
        return log_likelihood + _total(log_priors), _total(log_qs)

    def among(self, some: Terms, every: Terms) -> Terms:
        """The parts of some particles, with the divergences of all particles."""
        return *some[:-1], every[-1]

    def moved(self, after: Terms, before: Terms, ratios: Latents) -> Terms:
        """The parts at the end of a chain, with the ratios of its momentum densities.

        A unit is free only if neither its divergence at the start of the chain nor its cost at the
        end exceeds the free bits. Otherwise, moving would cost nothing.
        """
        log_likelihood, log_priors, log_qs, _ = after
        log_priors = tuple(p + _summed_like(r, p) for p, r in zip(log_priors, ratios, strict=True))
        paid = (q - p for p, q in zip(log_priors, log_qs, strict=True))
        known = tuple(
            jnp.concatenate([start, cost[None]])
            for start, cost in zip(before[-1], paid, strict=True)
        )
        return log_likelihood, log_priors, log_qs, known

    def adapted(self, estimator: Estimator, tuned: PyTree) -> Estimator:
        """Adapt an estimator to weights in which log q is scaled by the weight of the divergence.

        The path coefficient minus the bound's own a_i replaces the score (DReG), so it is scaled
        like log q.
        """
        of_ratio = estimator.coefficients
        if of_ratio is None:
            return estimator

        def coefficients(reduction: Reduction, log_w: LogWeights) -> Coefficients:
            table, a = of_ratio(reduction, log_w), jax.grad(reduction)(log_w)
            return table._replace(path=a + self.weight(tuned) * (table.path - a))

        return estimator._replace(coefficients=coefficients)

    def of_divergence(self, units: Float[Array, " d"], tuned: PyTree) -> Scalar:
        """The cost of a divergence given for each unit, nats."""
        return self.weight(tuned) * jnp.sum(jnp.maximum(units, self.free_bits))


def unpenalised_iwae(parts: Terms, penalty: Penalty | None) -> Scalar:
    """IWAE-k of the particles, for reports: it has no gradient."""
    log_p, log_q = jax.lax.stop_gradient(penalty.plain(parts) if penalty else parts)
    return iwae(log_p - log_q)


def _unit_densities(p: Any, q: Any, to_p: Any, to_q: Any) -> tuple[Array, Array, Array]:
    """log p and log q of each unit of a layer, `[d]`, and its divergence, `[1 d]`."""
    if is_diagonal_gaussian(p) and is_diagonal_gaussian(q):
        p, q = p.base_dist, q.base_dist
        return p.log_prob(to_p), q.log_prob(to_q), kl_divergence(q, p)[None]
    log_p, log_q = p.log_prob(to_p)[None], q.log_prob(to_q)[None]
    return log_p, log_q, (log_q - log_p)[None]


def _summed_like(ratios: Float[Array, " m"], like: Float[Array, " d"]) -> Float[Array, " d"]:
    """One ratio for each latent, or their sum if the layer counts as one unit."""
    return ratios if ratios.shape == like.shape else jnp.sum(ratios, keepdims=True)


def _total(layers: tuple[Float[Array, "k _"], ...]) -> LogWeights:
    return cast("LogWeights", sum(jnp.sum(layer, axis=1) for layer in layers))

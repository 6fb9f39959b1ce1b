"""Gradient estimators for bounds of importance samples, and the surrogates to differentiate.

A gradient estimator is a table of coefficients. For particles z_i ~ q(z|x) it is

    sum_i  decoder_i  grad_theta log p(x, z_i)
         + path_i     (d log w_i / d z_i) (d z_i / d phi)
         - score_i    grad_phi log q(z_i|x), at fixed z_i

and every estimator from the plain gradient to wake-sleep is a choice of the three columns.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.inference.log_weights import log_mean_exp
from iwae.inference.particles import Particles
from iwae.models.vae import AbstractLatentModel
from iwae.objectives.bounds import Reduction
from iwae.typing import Example, Latents, LogWeights, Scalar


class Coefficients(NamedTuple):
    """The coefficients of each particle in the gradient; see the top of this file."""

    decoder: LogWeights
    path: LogWeights
    score: LogWeights


class Estimator(NamedTuple):
    """A gradient estimator for a bound of importance samples.

    Attributes:
        coefficients: (bound, log weights) -> the table; None for the gradient of the bound itself,
            from which `path` and `score` may drop terms.
        path: whether gradients flow through the draws of q; otherwise that column is ignored.
        score: whether gradients flow through log q(z|x) at fixed z; otherwise that column is
            ignored.
    """

    coefficients: Callable[[Reduction, LogWeights], Coefficients] | None = None
    path: bool = True
    score: bool = True


REPARAM = Estimator()
"""The gradient of the bound through reparameterised draws (Kingma & Welling 2014)."""


@jax.custom_vjp
def with_surrogate_tag(z: Latents) -> tuple[Latents, Scalar]:
    """Return z and a tag, whose cotangent is a factor on the gradient that reaches z.

    The factor depends on all weights, which are known only after every particle has been evaluated.
    It travels back along the tag, so that a single backward pass serves decoder and encoder, whose
    coefficients differ.
    """
    return z, blank_surrogate_tag(z)


def blank_surrogate_tag(z: Latents) -> Scalar:
    """Zero, computed from z so that `vmap` gives every particle of every example its own tag."""
    return 0 * jax.tree.leaves(z)[0].ravel()[0]


def _tagged_back(_: None, cotangents: tuple[Latents, Scalar]) -> tuple[Latents]:
    z_bar, factor = cotangents
    return (jax.tree.map(lambda leaf: factor * leaf, z_bar),)


with_surrogate_tag.defvjp(lambda z: (with_surrogate_tag(z), None), _tagged_back)


@jax.custom_vjp
def send_surrogate_factors(factors: Float[Array, " k"], tags: Float[Array, " k"]) -> Scalar:
    """Return zero; send the factors back along the tags, whatever the scale of the loss."""
    del factors, tags
    return jnp.float32(0)


def _deliver_back(factors: Array, _: Scalar) -> tuple[Array, Array]:
    return jnp.zeros_like(factors), factors


send_surrogate_factors.defvjp(
    lambda factors, tags: (send_surrogate_factors(factors, tags), factors), _deliver_back
)

FLOOR = 1e-20
"""Smallest absolute value of a coefficient used as a divisor, far below rounding."""


def nonzero_surrogate_coefficients(coefficients: LogWeights) -> LogWeights:
    """The same coefficients up to rounding, none of them zero."""
    return jnp.where(jnp.abs(coefficients) < FLOOR, FLOOR, coefficients)


def density_surrogate(coefficients: LogWeights, log_density: LogWeights) -> Scalar:
    """Zero, whose gradient is sum_i c_i grad log_density_i; infinite densities have none."""
    finite = jnp.isfinite(log_density)
    zero = jnp.where(finite, log_density, 0.0) - jax.lax.stop_gradient(
        jnp.where(finite, log_density, 0.0)
    )
    return jnp.sum(jax.lax.stop_gradient(coefficients) * zero)


class Tags(NamedTuple):
    """Tags of the z in log p(x, z) and of the z in log q(z|x)."""

    joint: Float[Array, "*k"]
    q: Float[Array, "*k"]


def bound_surrogate(
    reduction: Reduction, estimator: Estimator, log_p: LogWeights, log_q: LogWeights, tags: Tags
) -> Scalar:
    """The bound, whose gradient is the estimator."""
    if estimator.coefficients is None:
        return reduction(log_p - log_q)
    log_w = jax.lax.stop_gradient(log_p - log_q)
    table = estimator.coefficients(reduction, log_w)
    return reduction(log_w) + surrogate(table, estimator, log_p, log_q, tags)


def surrogate(
    table: Coefficients,
    estimator: Estimator,
    log_p: LogWeights,
    log_q: LogWeights,
    tags: Tags,
) -> Scalar:
    """Zero, whose gradient is the estimator of the table; see the top of this file."""
    decoder = nonzero_surrogate_coefficients(table.decoder)
    if estimator.coefficients is None:  # the three columns are the same
        return density_surrogate(decoder, log_p - log_q)
    zero = density_surrogate(decoder, log_p)
    if estimator.path:
        zero += send_surrogate_factors(jax.lax.stop_gradient(table.path / decoder), tags.joint)
    if not estimator.score:
        return zero - density_surrogate(table.path, log_q)
    score = nonzero_surrogate_coefficients(table.score)
    if estimator.path:
        zero += send_surrogate_factors(jax.lax.stop_gradient(table.path / score), tags.q)
    return zero - density_surrogate(score, log_q)


def joint_surrogate(model: AbstractLatentModel, x: Example, particles: Particles) -> Scalar:
    """log mean w, with the gradient sum_i w_i grad log p(x, z_i) in the decoder's parameters."""
    log_p = jax.vmap(partial(model.log_joint, x))(particles.z)
    return log_mean_exp(particles.log_w) + density_surrogate(jax.nn.softmax(particles.log_w), log_p)

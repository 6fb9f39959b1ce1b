"""Gradient estimators as coefficients of particles; see `iwae.objectives.surrogates.Estimator`.

For a bound f(log w), let a = grad f and h = diag(grad^2 f). The score term of the plain gradient,
-sum_i a_i grad_phi log q(z_i|x), has the same expectation as -sum_i h_i (d log w_i / d z_i)
(d z_i / d phi), whose variance is smaller. Replacing it gives DReG for any bound: path coefficients
a - h and no score (Tucker et al. 2019, eq. 6 and appendix 8.1).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from iwae.errors import UserError
from iwae.models.posteriors import Posterior, is_reparameterised_posterior
from iwae.objectives import bounds
from iwae.objectives.bounds import Reduction, bound_and_options
from iwae.objectives.surrogates import Coefficients, Estimator
from iwae.objectives.tvo import Betas, tvo, tvo_betas, tvo_integrand, tvo_weights
from iwae.typing import LogWeights, Scalar

Tree = TypeVar("Tree")


def stl() -> Estimator:
    """Sticking the landing: the plain gradient without its score (Roeder et al. 2017).

    Unbiased for the ELBO. For IWAE with k > 1 it is biased (Tucker et al. 2019, sec. 4).
    """
    return Estimator(score=False)


def dreg() -> Estimator:
    """Doubly reparameterised gradient (Tucker et al. 2019, eq. 6), of any smooth bound.

    The first derivatives in log w must be continuous. Where they jump, as for sorted weights or the
    largest weight, the estimator is biased.

    For IWAE the path coefficients are w_i^2, for VR-IWAE alpha v_i + (1 - alpha) v_i^2 (Daudel et
    al. 2023, theorem 2), for MIWAE w^2 within each group over m, for CIWAE beta/k +
    (1 - beta) w_i^2, with w and v normalised.
    """
    return Estimator(_dreg, score=False)


def _dreg(reduction: Reduction, log_w: LogWeights) -> Coefficients:
    a = jax.grad(reduction)(log_w)
    return Coefficients(a, a - second_derivatives(reduction, log_w), jnp.zeros_like(a))


def dreg_alpha(alpha: float) -> Estimator:
    """DReG(alpha): path alpha w_i + (1 - 2 alpha) w_i^2 (Tucker et al. 2019, sec. 6.3).

    The encoder's gradient is that of (1 - alpha) IWAE-k + alpha wake-phi, the decoder's that of
    IWAE-k.
    """

    def coefficients(_: Reduction, log_w: LogWeights) -> Coefficients:
        w = jax.nn.softmax(log_w)
        return Coefficients(w, alpha * w + (1 - 2 * alpha) * w**2, jnp.zeros_like(w))

    return Estimator(coefficients, score=False)


def rws_dreg_gradient() -> Estimator:
    """Wake-theta, and wake-phi through the draws: path w_i - w_i^2 (Tucker et al. 2019, eq. 8)."""
    return dreg_alpha(1.0)


def piwae_gradient(decoder: Reduction, encoder: Estimator) -> Estimator:
    """The decoder maximises another bound of the same particles (PIWAE: Rainforth et al. 2018).

    Args:
        decoder: the decoder's bound.
        encoder: the encoder's estimator, for the bound to which the result is applied.
    """

    def coefficients(reduction: Reduction, log_w: LogWeights) -> Coefficients:
        return gradient_coefficients(reduction, encoder, log_w)._replace(
            decoder=jax.grad(decoder)(log_w)
        )

    return encoder._replace(coefficients=coefficients)


def gradient_coefficients(
    reduction: Reduction, estimator: Estimator, log_w: LogWeights
) -> Coefficients:
    """The coefficients of an estimator; df/dlog w_i in all columns for the bound's own gradient."""
    if estimator.coefficients is not None:
        return estimator.coefficients(reduction, log_w)
    a = jax.grad(reduction)(log_w)
    return Coefficients(a, a, a)


def check_gradient_path(q: Posterior, estimator: Estimator) -> None:
    """Raise UserError if the estimator differentiates draws that are not reparameterised."""
    if estimator.path and not is_reparameterised_posterior(q):
        raise UserError(
            f"the draws of q(z|x), a {type(q).__name__}, are not reparameterised, but the gradient "
            "needs to go through them: use wake-sleep (rws), or a gradient such as vimco, which "
            "hold them fixed"
        )


def stop_gradients(tree: Tree) -> Tree:
    """The same tree, to whose arrays no gradient flows."""
    arrays, static = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), static)


# --- second derivatives ---------------------------------------------------------------------


def second_derivatives(reduction: Reduction, log_w: LogWeights) -> LogWeights:
    """The second derivatives d^2 f / d(log w_i)^2, `[k]`, in closed form if it is known.

    Otherwise by automatic differentiation, at the cost of k gradients.
    """
    of_reduction, options = bound_and_options(reduction)
    if of_reduction in _CURVATURE:
        return _CURVATURE[of_reduction](log_w, **options)

    def entry(i: Int[Array, ""]) -> Scalar:
        direction = (jnp.arange(log_w.size) == i).astype(log_w.dtype)
        return jax.jvp(jax.grad(reduction), (log_w,), (direction,))[1][i]

    return jax.lax.map(entry, jnp.arange(log_w.size), batch_size=64)


def _iwae_curvature(log_w: LogWeights) -> LogWeights:
    w = jax.nn.softmax(log_w)
    return w - w**2


def _miwae_curvature(log_w: LogWeights, *, m: int) -> LogWeights:
    return jax.vmap(_iwae_curvature)(log_w.reshape(m, -1)).ravel() / m


def _renyi_curvature(log_w: LogWeights, *, alpha: float) -> LogWeights:
    return (1 - alpha) * _iwae_curvature((1 - alpha) * log_w)


def _tvo_curvature(log_w: LogWeights, *, betas: Betas, upper: bool = False) -> LogWeights:
    b = tvo_betas(log_w, betas)
    finite = jnp.where(jnp.isfinite(log_w), log_w, 0.0)

    def term(beta: Scalar, width: Scalar) -> LogWeights:
        w = tvo_weights(log_w, beta)
        share = 1 + beta * (finite - tvo_integrand(log_w, beta[None])[0])
        return width * beta * w * ((1 - 2 * w) * share + 1)

    return jnp.sum(jax.vmap(term)(b[1:] if upper else b[:-1], jnp.diff(b)), axis=0)


_CURVATURE: dict[Callable[..., Any], Callable[..., LogWeights]] = {
    bounds.elbo: jnp.zeros_like,
    bounds.iwae: _iwae_curvature,
    bounds.miwae: _miwae_curvature,
    bounds.ciwae: lambda log_w, *, beta: (1 - beta) * _iwae_curvature(log_w),
    bounds.renyi: _renyi_curvature,
    tvo: _tvo_curvature,
}

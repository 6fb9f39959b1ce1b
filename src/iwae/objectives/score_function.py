"""Score-function gradients with baselines, for latents whose draws have no gradient.

The gradient of a bound f of k draws, held fixed, is

    sum_i a_i grad log w_i + sum_i s_i grad_phi log q(z_i|x),   s_i = f(log w) - c_i

with a_i = df/dlog w_i. The baseline c_i of the learning signal s_i may be any function of the other
draws: it reduces the variance and does not change the expectation (Mnih & Rezende 2016, eq. 7).
Memory and time are linear in k.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from iwae.errors import UserError
from iwae.inference.log_weights import log_share_of_others, log_sum_of_other_weights
from iwae.objectives.bounds import Reduction, bound_and_options, ciwae, elbo, iwae, miwae, renyi
from iwae.objectives.surrogates import Coefficients, Estimator
from iwae.typing import LogWeights, Scalar

Mean = Literal["geometric", "arithmetic"]
Signal = Callable[[LogWeights], LogWeights]


def vimco(mean: Mean = "geometric") -> Estimator:
    """VIMCO (Mnih & Rezende 2016, eqs. 7 to 10): unbiased for the bound.

    The baseline is the bound with w_i replaced by a mean of the others: the geometric mean, or the
    arithmetic mean on the scale on which the bound sums weights, which makes the baseline the bound
    of the other draws. For the ELBO, both are REINFORCE with the mean of the others as baseline.
    """

    def coefficients(reduction: Reduction, log_w: LogWeights) -> Coefficients:
        a = jax.grad(reduction)(log_w)
        return Coefficients(a, jnp.zeros_like(a), a - score_function_signal(reduction, log_w, mean))

    return Estimator(coefficients, path=False)


def ovis(gamma: float) -> Estimator:
    """OVIS with its asymptotic baseline (Lievin et al. 2020, eq. 17), for IWAE-k.

    The encoder's coefficient of grad log q(z_i|x), with w normalised, is

        -log(1 - w_i) - (1 - gamma) w_i + gamma log(1 - 1/k)

    whose expectation is the gradient of IWAE-k plus gamma times wake-phi: gamma = 0 is unbiased.
    With gamma = 0 this is VIMCO-star for alpha = 0 (Daudel et al. 2026, arXiv 2602.01412).
    """

    def coefficients(reduction: Reduction, log_w: LogWeights) -> Coefficients:
        if bound_and_options(reduction)[0] is not iwae:
            raise UserError("ovis and vimco-star are gradients of iwae only: use vimco")
        w, constant = jax.nn.softmax(log_w), gamma * jnp.log1p(-1 / log_w.size)
        score = log_share_of_others(log_w) + (1 - gamma) * w - constant
        return Coefficients(w, jnp.zeros_like(w), score)

    return Estimator(coefficients, path=False)


# --- learning signals -----------------------------------------------------------------------


def score_function_signal(reduction: Reduction, log_w: LogWeights, mean: Mean) -> LogWeights:
    """f(log w) - f(log w with the i-th replaced by a mean of the others), nats, `[k]`.

    In closed form for the bounds in `_SIGNALS`, otherwise by k successive evaluations.
    """
    of_reduction, options = bound_and_options(reduction)
    if of_reduction in _SIGNALS:
        return _SIGNALS[of_reduction](log_w, partial(_iwae_signal, mean=mean), **options)
    others, whole = mean_of_others(log_w, mean), reduction(log_w)

    def baseline(i: Int[Array, ""]) -> Scalar:
        return reduction(log_w.at[i].set(others[i]))

    return whole - jax.lax.map(baseline, jnp.arange(log_w.size))


def mean_of_others(log_w: LogWeights, mean: Mean) -> LogWeights:
    """log of the mean of all weights but the i-th, `[k]`."""
    n = log_w.size - 1
    if mean == "arithmetic":
        return log_sum_of_other_weights(log_w) - jnp.log(float(n))
    zero = ~jnp.isfinite(log_w)
    middle = jnp.mean(jnp.where(zero, 0.0, log_w))  # subtracted against rounding of a long sum
    apart = jnp.where(zero, 0.0, log_w - middle)
    others = middle + (jnp.sum(apart) - apart) / n
    return jnp.where(jnp.sum(zero) > zero.astype(int), -jnp.inf, others)


def _iwae_signal(log_w: LogWeights, *, mean: Mean) -> LogWeights:
    log_w = log_w - jnp.max(log_w)  # against rounding of a small difference
    replaced = jnp.logaddexp(log_sum_of_other_weights(log_w), mean_of_others(log_w, mean))
    return jax.nn.logsumexp(log_w) - replaced


def _elbo_signal(log_w: LogWeights, _: Signal) -> LogWeights:
    return (log_w - jnp.mean(log_w)) / (log_w.size - 1)


def _miwae_signal(log_w: LogWeights, of_group: Signal, *, m: int) -> LogWeights:
    return jax.vmap(of_group)(log_w.reshape(m, -1)).ravel() / m


def _ciwae_signal(log_w: LogWeights, of_all: Signal, *, beta: float | Scalar) -> LogWeights:
    return beta * _elbo_signal(log_w, of_all) + (1 - beta) * of_all(log_w)


def _renyi_signal(log_w: LogWeights, of_all: Signal, *, alpha: float) -> LogWeights:
    if alpha == 1:
        return _elbo_signal(log_w, of_all)
    return of_all((1 - alpha) * log_w) / (1 - alpha)


_SIGNALS: dict[Callable[..., Any], Callable[..., LogWeights]] = {
    elbo: _elbo_signal,
    iwae: lambda log_w, of_all: of_all(log_w),
    miwae: _miwae_signal,
    ciwae: _ciwae_signal,
    renyi: _renyi_signal,
}

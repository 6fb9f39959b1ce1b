"""Functions of log weights: bounds on log p(x), nats, each an equation of a paper."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from iwae.inference.log_weights import log_mean_exp
from iwae.typing import LogWeights, Scalar

Reduction = Callable[[LogWeights], Scalar]


def elbo(log_w: LogWeights) -> Scalar:
    """mean_i log w_i: the evidence lower bound from k samples (Kingma & Welling 2014, eq. 2)."""
    return jnp.mean(log_w)


def iwae(log_w: LogWeights) -> Scalar:
    """log mean_i w_i: the importance weighted bound L_k (Burda et al. 2016, eq. 8)."""
    return log_mean_exp(log_w)


def miwae(log_w: LogWeights, *, m: int) -> Scalar:
    """mean_m log mean_k w_mk: m bounds of k samples each (Rainforth et al. 2018, eq. 11).

    Args:
        log_w: `[m k]`, group after group.
        m: groups.
    """
    return jnp.mean(jax.vmap(log_mean_exp)(log_w.reshape(m, -1)))


def ciwae(log_w: LogWeights, *, beta: float | Scalar) -> Scalar:
    """beta ELBO + (1 - beta) IWAE, on the same samples (Rainforth et al. 2018, eq. 13)."""
    return beta * elbo(log_w) + (1 - beta) * iwae(log_w)


def renyi(log_w: LogWeights, *, alpha: float) -> Scalar:
    """log(mean_i w_i^(1 - alpha)) / (1 - alpha); alpha = 1 is its limit, the ELBO.

    The variational Renyi bound from k samples (Li & Turner 2016, eq. 9), which is the VR-IWAE bound
    (Daudel et al. 2023, eq. 9): a lower bound for 0 <= alpha <= 1.
    """
    if alpha == 1:
        return elbo(log_w)
    power, mean = 1 - alpha, jnp.mean(log_w)
    # Near the limit, the argument of the logarithm is close to 1, where float32 loses all digits.
    moved = power * (log_w - mean)
    near = jnp.max(jnp.abs(moved)) < 1
    excess = jnp.log1p(jnp.mean(jnp.expm1(jnp.where(near, moved, 0.0))))
    return jnp.where(near, mean + excess / power, log_mean_exp(power * log_w) / power)


def vr_max(log_w: LogWeights) -> Scalar:
    """max_i log w_i: the limit alpha -> -inf of `renyi` (Li & Turner 2016, sec. 4.2)."""
    return jnp.max(log_w)


def bound_and_options(reduction: Reduction) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Split a reduction, which may be a `partial`, into its function and its options."""
    if isinstance(reduction, partial):
        return reduction.func, reduction.keywords
    return reduction, {}

"""Functions of log weights: bounds on log p(x), nats, each an equation of a paper."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from iwae.errors import UserError
from iwae.inference.particles import log_mean_exp
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


Betas = Sequence[float] | Callable[[LogWeights], Float[Array, " T"]]


def tvo(log_w: LogWeights, *, betas: Betas, upper: bool = False) -> Scalar:
    """The thermodynamic variational objective (Masrani et al. 2019, eq. 10).

    sum_t (beta_{t+1} - beta_t) E_{beta_t}[log w], with expectations under the densities
    proportional to q^(1 - beta) p^beta, estimated by self-normalised importance sampling: the left
    Riemann sum of an increasing integrand. The integral is log p(x), or IWAE-k with k samples, so
    at every k the sum lies between the ELBO and IWAE-k.

    Args:
        log_w: `[k]`.
        betas: T temperatures from 0 to 1, or a function from log weights to temperatures.
        upper: the right sum instead, an upper estimate.
    """
    b = tvo_betas(log_w, betas)
    return jnp.sum(jnp.diff(b) * expected_log_w(log_w, b[1:] if upper else b[:-1]))


def tvo_betas(log_w: LogWeights, betas: Betas) -> Float[Array, " T"]:
    """The temperatures of `tvo`, without gradient."""
    if callable(betas):
        return jax.lax.stop_gradient(betas(jax.lax.stop_gradient(log_w)))
    return jnp.float32(betas)


def tempered_weights(log_w: LogWeights, beta: Scalar) -> LogWeights:
    """w^beta, normalised; at beta = 0 a weight of zero counts like any other."""
    return jax.nn.softmax(jnp.where(beta == 0, 0.0, beta * log_w))


def expected_log_w(log_w: LogWeights, betas: Float[Array, " T"]) -> Float[Array, " T"]:
    """E_beta[log w] by self-normalised importance sampling, for each beta."""

    def expectation(beta: Scalar) -> Scalar:
        weights = tempered_weights(log_w, beta)
        return jnp.sum(jnp.where(weights > 0, weights * log_w, 0.0))

    return jax.vmap(expectation)(betas)


def tvo_schedule(name: str, temperatures: int) -> Betas:
    """The temperatures from the TVO papers: "linear", "log" or "moments".

    log: zero, then equal factors from 10^-1.09 to 1 (Masrani et al. 2019, sec. 7). moments: equal
    steps of E_beta[log w], computed for each example from its own weights (Brekelmans et al. 2020,
    sec. 6).

    Raises:
        UserError: if the schedule is unknown.
    """
    table: dict[str, Betas] = {
        "linear": tuple(np.linspace(0, 1, temperatures).tolist()),
        "log": (0.0, *np.logspace(-1.09, 0, temperatures - 1).tolist()[:-1], 1.0),
        "moments": lambda log_w: moment_betas(log_w, temperatures),
    }
    if name not in table:
        raise UserError(f"no TVO schedule {name!r}; known: {', '.join(table)}")
    return table[name]


BISECTIONS = 24
"""Halvings of [0, 1]: enough for every digit of a float32 temperature."""


def moment_betas(log_w: LogWeights, temperatures: int) -> Float[Array, " T"]:
    """T temperatures at equal steps of E_beta[log w], which increases with beta."""
    ends = expected_log_w(log_w, jnp.float32([0, 1]))

    def solve(wanted: Scalar) -> Scalar:
        def halve(_: Int[Array, ""] | int, bracket: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
            low, high = bracket
            middle = (low + high) / 2
            below = expected_log_w(log_w, middle[None])[0] < wanted
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        start = (jnp.float32(0), jnp.float32(1))
        return sum(jax.lax.fori_loop(0, BISECTIONS, halve, start)) / 2

    inner = jnp.linspace(ends[0], ends[1], temperatures)[1:-1]
    return jnp.concatenate([jnp.float32([0]), jax.vmap(solve)(inner), jnp.float32([1])])

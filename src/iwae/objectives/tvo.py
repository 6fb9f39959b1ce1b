"""The thermodynamic variational objective: bound, temperatures, gradient (Masrani et al. 2019)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from iwae.errors import UserError
from iwae.objectives.bounds import Reduction
from iwae.objectives.surrogates import Coefficients, Estimator
from iwae.typing import LogWeights, Scalar

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
    return jnp.sum(jnp.diff(b) * tvo_integrand(log_w, b[1:] if upper else b[:-1]))


def tvo_betas(log_w: LogWeights, betas: Betas) -> Float[Array, " T"]:
    """The temperatures of `tvo`, without gradient."""
    if callable(betas):
        return jax.lax.stop_gradient(betas(jax.lax.stop_gradient(log_w)))
    return jnp.float32(betas)


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
        "moments": lambda log_w: tvo_moment_betas(log_w, temperatures),
    }
    if name not in table:
        raise UserError(f"no TVO schedule {name!r}; known: {', '.join(table)}")
    return table[name]


BISECTIONS = 24
"""Halvings of [0, 1]: enough for every digit of a float32 temperature."""


def tvo_moment_betas(log_w: LogWeights, temperatures: int) -> Float[Array, " T"]:
    """T temperatures at equal steps of E_beta[log w], which increases with beta."""
    ends = tvo_integrand(log_w, jnp.float32([0, 1]))

    def solve(wanted: Scalar) -> Scalar:
        def halve(_: Int[Array, ""] | int, bracket: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
            low, high = bracket
            middle = (low + high) / 2
            below = tvo_integrand(log_w, middle[None])[0] < wanted
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        start = (jnp.float32(0), jnp.float32(1))
        return sum(jax.lax.fori_loop(0, BISECTIONS, halve, start)) / 2

    inner = jnp.linspace(ends[0], ends[1], temperatures)[1:-1]
    return jnp.concatenate([jnp.float32([0]), jax.vmap(solve)(inner), jnp.float32([1])])


def tvo_weights(log_w: LogWeights, beta: Scalar) -> LogWeights:
    """w^beta, normalised; at beta = 0 a weight of zero counts like any other."""
    return jax.nn.softmax(jnp.where(beta == 0, 0.0, beta * log_w))


def tvo_integrand(log_w: LogWeights, betas: Float[Array, " T"]) -> Float[Array, " T"]:
    """E_beta[log w] by self-normalised importance sampling, for each beta."""

    def expectation(beta: Scalar) -> Scalar:
        weights = tvo_weights(log_w, beta)
        return jnp.sum(jnp.where(weights > 0, weights * log_w, 0.0))

    return jax.vmap(expectation)(betas)


def tvo_score(betas: Betas) -> Estimator:
    """The gradient of the TVO from covariances, not through draws (Masrani et al. 2019, eq. 13).

    The gradient of each term of the left sum is E[grad log w] + Cov(grad log f_beta, log w), with
    log f_beta = (1 - beta) log q + beta log p and moments under the density of that beta.
    """

    def coefficients(_: Reduction, log_w: LogWeights) -> Coefficients:
        b = tvo_betas(log_w, betas)
        finite = jnp.where(jnp.isfinite(log_w), log_w, 0.0)

        def term(beta: Scalar, width: Scalar) -> tuple[LogWeights, LogWeights]:
            w = tvo_weights(log_w, beta)
            spread = w * (finite - tvo_integrand(log_w, beta[None])[0])
            return width * (w + beta * spread), width * (w - (1 - beta) * spread)

        decoder, score = jax.vmap(term)(b[:-1], jnp.diff(b))
        total = jnp.sum(decoder, axis=0)
        return Coefficients(total, jnp.zeros_like(total), jnp.sum(score, axis=0))

    return Estimator(coefficients, path=False)

"""HMC and PSIS by BlackJAX, which no other file calls: its interfaces change often.

Chains live on flat vectors. A chain carries the log densities of both ends of its path and their
gradients, so that its target at the next temperature needs no further evaluation of the model.
BlackJAX carries a `Point` in place of a gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.errors import UserError
from iwae.typing import LogWeights, PRNGKey, Scalar


def _blackjax() -> Any:
    """BlackJAX, imported only when needed: the import takes a twentieth of a short run."""
    with jax.ensure_compile_time_eval():  # the import computes, even while a program is traced
        import blackjax
    return blackjax


Flat = Float[Array, " d"]


class Point(NamedTuple):
    """Both ends of the path at one latent: the log densities, nats, and their gradients.

    Attributes:
        log_start: log of the density that the chains start from.
        log_joint: log p(x, z).
        grad_start, grad_joint: their gradients in z, `[d]`.
    """

    log_start: Scalar
    log_joint: Scalar
    grad_start: Flat
    grad_joint: Flat

    def log_ratio(self) -> Scalar:
        """log p(x, z) - log start(z), nats: the log weight that a unit of beta adds."""
        return self.log_joint - self.log_start

    def log_f(self, beta: Scalar) -> Scalar:
        """log f_beta(z) = (1 - beta) log start(z) + beta log p(x, z)."""
        return _mix(self.log_start, self.log_joint, beta)

    def grad_f(self, beta: Scalar) -> Flat:
        """The gradient of log f_beta."""
        return _mix(self.grad_start, self.grad_joint, beta)


def _mix(start: Array, joint: Array, beta: Scalar) -> Array:
    """(1 - beta) start + beta joint; an infinite end with weight zero does not count."""
    first = jnp.where(beta == 1, 0.0, (1 - beta) * start)
    return first + jnp.where(beta == 0, 0.0, beta * joint)


Evaluate = Callable[[Flat], Point]
IntegratorState = Any  # BlackJAX's
Step = Callable[[IntegratorState, Scalar], IntegratorState]


def leapfrog(beta: Scalar, steps: int) -> Callable[[Evaluate, Callable[..., Any]], Step]:
    """An integrator of f_beta that takes `steps` leapfrog steps at a time."""

    def integrator(evaluate: Evaluate, kinetic_energy: Callable[..., Any]) -> Step:
        def gradients(z: Flat) -> Point:
            # Intermediate densities are not used, so the compiler drops their computation.
            return evaluate(z)._replace(log_start=jnp.float32(0), log_joint=jnp.float32(0))

        intermediate = _verlet(beta, gradients, kinetic_energy)
        last = _verlet(beta, evaluate, kinetic_energy)

        def step(state: IntegratorState, eps: Scalar) -> IntegratorState:
            state = jax.lax.fori_loop(0, steps - 1, lambda _, s: intermediate(s, eps), state)
            return last(state, eps)

        return step

    return integrator


def _verlet(beta: Scalar, evaluate: Evaluate, kinetic_energy: Callable[..., Any]) -> Step:
    """BlackJAX's velocity Verlet step, with a `Point` in place of a gradient."""
    integrators = _blackjax().mcmc.integrators
    kick = integrators.euclidean_momentum_update_fn(kinetic_energy)

    def update_momentum(
        v: Flat, point: Point, *args: Any, is_last_call: bool = False
    ) -> tuple[Any, ...]:
        return kick(v, point.grad_f(beta), *args, is_last_call=is_last_call)

    def update_position(
        z: Flat, velocity: Flat, eps: Scalar, coef: float, _: None
    ) -> tuple[Any, ...]:
        z = z + eps * coef * velocity
        point = evaluate(z)
        return z, point.log_f(beta), point, None

    return integrators.generalized_two_stage_integrator(
        update_momentum,
        update_position,
        integrators.velocity_verlet_coefficients,
        format_output_fn=integrators.format_euclidean_state_output,
    )


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
    """One HMC move that leaves f_beta invariant: unit mass, fresh momentum, accept or reject.

    Costs `n_leapfrog` evaluations of the model: the point at the start is given, and the point at
    the end is returned for the next move, whatever its beta.

    Args:
        point: `evaluate(z)`.

    Returns:
        The new latent, its point, and the acceptance probability of the proposal.
    """
    hmc = _blackjax().mcmc.hmc
    kernel = hmc.build_kernel(integrator=leapfrog(beta, n_leapfrog))
    state = hmc.HMCState(z, point.log_f(beta), point)
    mass = jnp.ones_like(z)
    state, info = kernel(key, state, evaluate, step_size, mass, 1)
    return state.position, state.logdensity_grad, info.acceptance_rate


def check_leapfrog_sizes(sizes: Any) -> None:
    """Raise UserError unless all step sizes are positive numbers."""
    if not (np.isfinite(sizes) & (np.asarray(sizes) > 0)).all():
        raise UserError("every step size must be a positive number")


def check_leapfrog(n_leapfrog: int) -> None:
    """Raise UserError unless a move has at least one leapfrog step."""
    if n_leapfrog < 1:
        raise UserError(f"n_leapfrog is {n_leapfrog}; a move needs at least 1 step")


Move = Callable[..., tuple[Flat, Point, Scalar]]
"""A kernel with the arguments and results of `move`."""

ROUNDING = 1e-5
"""Relative to the size of the log weights, differences below this are rounding of float32."""

KHAT_LEAST = 25
"""Fewest weights for which the shape of the tail can be estimated."""


def pareto_k(log_w: LogWeights) -> Scalar:
    """The tail shape of the weights, by Pareto smoothed importance sampling.

    Vehtari, Simpson, Gelman, Yao & Gabry (2024). `inf` if the tail spans more than float32
    holds, 0 if all weights are equal up to rounding, and `nan` for fewer than `KHAT_LEAST`.
    """
    if log_w.size < KHAT_LEAST:
        return jnp.float32(jnp.nan)
    with jax.numpy_dtype_promotion("standard"):  # it mixes integers and floats
        k = _blackjax().diagnostics.psis_weights(log_w)[1]
    equal = jnp.max(log_w) - jnp.min(log_w) <= ROUNDING * jnp.max(jnp.abs(log_w))
    return jnp.where(equal, 0.0, jnp.where(jnp.isnan(k), jnp.inf, k))

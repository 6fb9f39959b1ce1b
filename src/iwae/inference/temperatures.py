"""Temperatures: the position of each step on the path from the start to the joint density."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.errors import UserError, require_positive
from iwae.inference.kernels import check_leapfrog_sizes

Betas = Float[Array, " T"] | Float[np.ndarray, " T"] | Sequence[float]
StepSize = Float[Array, "*T"] | Float[np.ndarray, "*T"] | Sequence[float] | float


def linear_schedule(temperatures: int) -> Float[np.ndarray, " T"]:
    """T equally spaced temperatures from 0 to 1; T = 2 is importance weighting and one move."""
    check_count(temperatures)
    return np.linspace(0.0, 1.0, temperatures, dtype=np.float32)


def sigmoid_schedule(temperatures: int, delta: float = 4.0) -> Float[np.ndarray, " T"]:
    """T temperatures sigma(delta (2t/(T-1) - 1)), t = 0 ... T-1, rescaled to [0, 1].

    Dense at both ends, where the densities of a path often change most (Wu et al. 2017, sec. 4).

    Args:
        temperatures: T.
        delta: density at the ends; the smaller, the closer to linear.
    """
    check_count(temperatures)
    if not delta > 0:
        raise UserError(f"delta is {delta}; a sigmoid schedule needs a positive one")
    t = np.linspace(-1.0, 1.0, temperatures)
    beta = np.tanh(0.5 * delta * t)  # sigma(a) = (1 + tanh(a / 2)) / 2
    return (0.5 * (1 + beta / beta[-1])).astype(np.float32)


def as_betas(betas: Betas, *, end: float | None = 1.0) -> Float[Array, " T"]:
    """Convert temperatures to float32.

    Args:
        end: required last temperature; None for any.

    Raises:
        UserError: unless they increase from 0 to `end`. Inside a compiled function, the values are
            unknown and pass unchecked.
    """
    if not isinstance(betas, jax.core.Tracer):
        betas = np.asarray(betas, np.float32)
    if betas.ndim != 1 or len(betas) < 2:
        raise UserError(
            f"betas has shape {betas.shape}; give a list of at least two temperatures, from 0 to 1"
        )
    if isinstance(betas, np.ndarray):
        _check_increase(betas, end)
    return jnp.asarray(betas, jnp.float32)


def _check_increase(betas: np.ndarray, end: float | None) -> None:
    if betas[0] != 0 or (end is not None and betas[-1] != end):
        raise UserError(
            f"temperatures go from {betas[0]:g} to {betas[-1]:g}; they must "
            f"{'start at 0' if end is None else f'go from 0 to {end:g}'}"
        )
    wrong = np.flatnonzero(~(np.diff(betas) > 0))
    if wrong.size:
        i = int(wrong[0])
        raise UserError(
            f"temperature {i + 1} is {betas[i + 1]:.9g} after {betas[i]:.9g}: temperatures must "
            "increase and differ in float32"
        )


def temperature_step_sizes(step_size: StepSize, moves: int) -> Float[Array, " moves"]:
    """One step size for each move, checked; a single number applies to all moves."""
    if not isinstance(step_size, jax.core.Tracer):
        step_size = np.asarray(step_size, np.float32)
    if step_size.shape not in ((), (moves,)):
        raise UserError(
            f"step_size has shape {step_size.shape}; give one number, or one for each "
            f"temperature after the first, of which there are {moves}"
        )
    if isinstance(step_size, np.ndarray):
        check_leapfrog_sizes(step_size)
    return jnp.broadcast_to(jnp.asarray(step_size, jnp.float32), (moves,))


def check_count(temperatures: int) -> None:
    """Raise UserError if a schedule has fewer than two temperatures."""
    if temperatures < 2:
        raise UserError(f"{temperatures} temperatures; a schedule needs at least two, 0 and 1")


def checked_temperatures(
    *, chains: int, betas: Betas, step_size: StepSize, end: float | None = 1.0, **others: Any
) -> dict[str, Any]:
    """The arguments of a function that anneals, with temperatures and step sizes checked.

    Bind them by `eqx.Partial`, a pytree: other temperatures then need no new compilation.

    Raises:
        UserError: if `chains` is not positive, or the schedule is not valid.
    """
    require_positive("chains", chains)
    b = as_betas(betas, end=end)
    return {
        "k": chains,
        "betas": b,
        "step_size": temperature_step_sizes(step_size, len(b) - 1),
        **others,
    }

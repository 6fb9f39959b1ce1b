"""Temperatures at which a path progresses at a constant rate, from a pilot run."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from iwae.errors import UserError
from iwae.inference.annealing import Chain
from iwae.inference.kernels import Point
from iwae.inference.temperatures import check_count, sigmoid_schedule
from iwae.inference.tuning import TARGET, WARM_UP, tuning_pilot
from iwae.models.vae import AbstractLatentModel
from iwae.precision import float32
from iwae.typing import PRNGKey, Scalar

GRID = 200
"""Temperatures of the pilot run, at which the rate of progress is estimated."""

FLOOR = 0.01
"""Share of the temperatures that is spread evenly, for intervals where the rate is near zero."""


@float32
def adaptive_schedule(
    model: AbstractLatentModel,
    examples: Shaped[np.ndarray, "n ..."],
    key: PRNGKey,
    temperatures: int,
    *,
    n_leapfrog: int,
    chains: int = 16,
    start: str = "posterior",
) -> Float[np.ndarray, " T"]:
    """T temperatures from 0 to 1 between which KL(f_beta || p(z|x)) falls by equal amounts.

    Along the geometric path this KL falls at the rate (1 - beta) Var_beta[log p(x, z) - log
    start(z)] (Goshtasbpour, Cohen & Perez-Cruz 2023, constant rate progress for the inverse KL).
    Pilot chains estimate the variance at `GRID` temperatures; its mean over examples determines one
    schedule for all of them. Tune step sizes for it, and use it on other examples with another key.

    Args:
        examples: a few dozen examples in the model's units that will not be measured.
        key: a key used for nothing else.
        temperatures: T, at least two.
        chains: pilot chains of each example, at least two.

    Raises:
        UserError: if there are too few temperatures, examples or chains, or the rate is infinite.
    """
    check_count(temperatures)
    if len(examples) == 0 or chains < 2:
        raise UserError("the pilot run needs examples that will not be measured, and two chains")
    grid = sigmoid_schedule(GRID)
    moves = jnp.concatenate([jnp.full(WARM_UP, grid[1]), grid[1:]])
    _, variances = tuning_pilot(
        model, jnp.asarray(examples), key, moves, n_leapfrog, TARGET, chains, start, 0.1, _variance
    )
    return adaptive_temperatures(grid, np.asarray(variances, np.float64)[WARM_UP:], temperatures)


def _variance(chains: Chain) -> Scalar:
    """Var[log p(x, z) - log start(z)] over the chains of an example, as a mean over examples."""
    log_ratio = jax.vmap(jax.vmap(Point.log_ratio))(chains.point)
    return jnp.mean(jnp.var(log_ratio, axis=1, ddof=1))


def adaptive_temperatures(
    grid: Float[np.ndarray, " m1"], variances: Float[np.ndarray, " m"], temperatures: int
) -> Float[np.ndarray, " T"]:
    """T temperatures at equal steps of the integral of (1 - beta) Var_beta.

    Args:
        grid: temperatures from 0 to 1.
        variances: Var_beta at all but the first, nats^2.

    Raises:
        UserError: if a variance is not finite.
    """
    if not np.isfinite(variances).all():
        raise UserError(
            "log p(x, z) is not finite where some chains start, so the adaptive schedule is "
            "unknown: choose the schedule sigmoid"
        )
    grid = np.asarray(grid, np.float64)
    progress = (1 - (grid[1:] + grid[:-1]) / 2) * variances * np.diff(grid)
    total = progress.sum()
    share = progress / total if total > 0 else np.diff(grid)
    share = (1 - FLOOR) * share + FLOOR * np.diff(grid)
    reached = np.append(0.0, np.cumsum(share))
    betas = np.interp(np.linspace(0, 1, temperatures), reached / reached[-1], grid)
    return betas.astype(np.float32)

"""Step sizes, tuned in a pilot run and frozen before anything is measured."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

from iwae.errors import UserError
from iwae.inference.annealing import (
    Chain,
    Temperature,
    annealed_particles,
    annealing_chain_keys,
    annealing_move,
    annealing_path,
    start_annealing,
)
from iwae.inference.kernels import check_leapfrog, check_leapfrog_sizes
from iwae.inference.particles import Sampler, particle_keys
from iwae.inference.temperatures import Betas, as_betas, sigmoid_schedule
from iwae.models.vae import AbstractLatentModel
from iwae.precision import float32
from iwae.typing import Example, PRNGKey, Scalar

TARGET = 0.65
"""The best mean acceptance of HMC in many dimensions (Beskos et al. 2013)."""

GAIN = 0.5
"""Change of the log step size after a move, per unit of acceptance above the target."""

WARM_UP = 30
"""Moves at the first temperature, to recover from a poor initial step size."""

LARGEST = 7.0
"""Largest log step size. For bits, a longer step would no longer change the proposals."""

MOVES = 100
"""Fewest moves in the pilot run; with few temperatures, several moves at each."""


@float32
def tune_step_size(
    model: AbstractLatentModel,
    examples: Shaped[np.ndarray, "n ..."],
    key: PRNGKey,
    *,
    betas: Betas,
    n_leapfrog: int,
    target: float = TARGET,
    chains: int = 16,
    start: str = "posterior",
    initial: float = 0.1,
    end: float | None = 1.0,
) -> Float[np.ndarray, " moves"]:
    """Find the step size at each temperature whose mean acceptance is the target.

    The chains of all examples run through the schedule together, and each move adapts the step size
    to their mean acceptance. Measure on other examples, with another key: a bound does not hold for
    the chains to which its step sizes were adapted.

    Args:
        examples: a few dozen examples in the model's units that will not be measured.
        key: a key used for nothing else.
        target: mean acceptance probability, over examples and chains.
        initial: the first guess.
        end: the last temperature; None for any.

    Returns:
        `[T-1]`, one for each temperature after the first, as `annealed_particles` takes them.
    """
    if len(examples) == 0:
        raise UserError("the pilot run needs examples: give some that will not be measured")
    if not 0 < target < 1:
        raise UserError(f"target is {target}; a mean acceptance lies between 0 and 1")
    check_leapfrog_sizes(initial)
    check_leapfrog(n_leapfrog)
    b = as_betas(betas, end=end)
    repeats = -(-MOVES // (len(b) - 1))
    schedule = jnp.concatenate([jnp.repeat(b[1:2], WARM_UP), jnp.repeat(b[1:], repeats)])
    log_sizes, _ = tuning_pilot(
        model, jnp.asarray(examples), key, schedule, n_leapfrog, target, chains, start, initial
    )
    each = np.asarray(log_sizes, np.float64)[WARM_UP:].reshape(-1, repeats)
    return np.exp(each[:, repeats // 2 :].mean(axis=1)).astype(np.float32)


@eqx.filter_jit
def tuning_pilot(
    model: AbstractLatentModel,
    examples: Shaped[Array, "n ..."],
    key: PRNGKey,
    schedule: Float[Array, " moves"],
    n_leapfrog: int,
    target: float,
    k: int,
    start: str,
    initial: float,
    observe: Callable[[Chain], PyTree] = lambda chains: (),  # noqa: ARG005
) -> tuple[Float[Array, " moves"], PyTree]:
    """Log step size, and result of `observe` for the chains `[n, k]`, after each joint move."""
    # Examples are batched here because their joint acceptance sets the next step size.
    xs = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), examples)
    example_keys = particle_keys(key, jnp.arange(len(xs)))
    start_keys, move_keys = jax.vmap(lambda key: annealing_chain_keys(key, jnp.arange(k)))(
        example_keys
    )

    def begin(x: Example, keys: Key[Array, " k"]) -> Chain:
        return start_annealing(annealing_path(model, x, start), keys)

    def one(
        carry: tuple[Chain, Scalar], step: tuple[Array, Scalar]
    ) -> tuple[tuple[Any, ...], tuple[Scalar, PyTree]]:
        states, log_size = carry
        number, beta = step
        here = Temperature(number, beta, jnp.zeros_like(beta), jnp.exp(log_size))

        def move(x: Example, chains: Chain, keys: Key[Array, " k"]) -> tuple[Chain, Array]:
            return annealing_move(annealing_path(model, x, start), chains, keys, here, n_leapfrog)

        states, acceptance = jax.vmap(move)(xs, states, move_keys)
        log_size = jnp.minimum(log_size + GAIN * (jnp.mean(acceptance) - target), LARGEST)
        return (states, log_size), (log_size, observe(states))

    states = jax.vmap(begin)(xs, start_keys)
    carry = states, jnp.log(jnp.float32(initial))
    return jax.lax.scan(one, carry, (jnp.arange(schedule.size), schedule))[1]


def tune_annealer(
    model: AbstractLatentModel,
    examples: Shaped[np.ndarray, "n ..."],
    key: PRNGKey,
    *,
    temperatures: int,
    n_leapfrog: int,
    chains: int,
) -> Sampler:
    """`annealed_particles` on a sigmoid schedule, with step sizes from `tune_step_size`.

    Args:
        temperatures: T.
        chains: chains of each example in the pilot run.

    Returns:
        A sampler: a function (model, x, key, k) -> (Particles, info).
    """
    betas = jnp.asarray(sigmoid_schedule(temperatures))
    options: dict[str, Any] = {"betas": betas, "n_leapfrog": n_leapfrog}
    sizes = tune_step_size(model, examples, key, chains=chains, **options)
    return eqx.Partial(annealed_particles, step_size=jnp.asarray(sizes), **options)

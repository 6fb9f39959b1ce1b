"""The training loop: dispatches, validation, early stopping and reports."""

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from iwae.data.rows import Examples, Rows
from iwae.errors import UserError, require_positive
from iwae.evaluation.examples import gather_examples, map_examples
from iwae.models.vae import AbstractLatentModel
from iwae.objectives.objective import Extra, Objective
from iwae.precision import float32
from iwae.training.diagnosis import diagnose_training
from iwae.training.feed import Feed, feed_blocks, feeding
from iwae.training.replicates import replicate_model, weights_of_replicates
from iwae.training.schedules import Schedule, check_schedule_steps
from iwae.training.steps import START, Clock, Settings, TrainState, run_compiled_steps
from iwae.typing import Example, PRNGKey, Scalar

DISPATCH_SECONDS = 2.0
"""Target duration of a dispatch: long enough for negligible overhead, short enough to stop soon."""

SLAB = 2**13
"""Held-out examples read at a time if they are streamed."""


class Best(NamedTuple):
    """The best weights so far of each replicate, by the validation bound.

    Attributes:
        params: as in `TrainState`.
        value: the best validation bound, nats; `-inf` before the first validation.
        epoch: the epoch of that bound.
        waited: number of validations since the last improvement by more than the threshold.
    """

    params: PyTree
    value: Float[Array, " R"]
    epoch: Int[Array, " R"]
    waited: Int[Array, " R"]


def init_best(state: TrainState) -> Best:
    """The state before the first validation."""
    shape = state.step.shape
    zeros = jnp.zeros(shape, jnp.int32)
    return Best(weights_of_replicates(state), jnp.full(shape, -jnp.inf, jnp.float32), zeros, zeros)


def update_early_stopping(
    best: Best,
    params: PyTree,
    value: Float[np.ndarray, " R"],
    active: Bool[np.ndarray, " R"],
    epoch: int,
    threshold: float = 0.0,
) -> Best:
    """Keep weights that improve the bound by more than `threshold` nats.

    Replicates that are not `active` are unchanged.
    """
    values, old = np.float32(value), np.asarray(best.value)
    better = active & (values > old + np.float32(threshold))
    # All arrays in a single program.
    epochs, none = np.full(better.shape, epoch, np.int32), np.zeros(better.shape, np.int32)
    kept = (best.params, best.value, best.epoch, np.asarray(best.waited) + np.int32(active))
    return Best(*_choose(better, (params, values, epochs, none), kept))


@jax.jit
def _choose(better: Bool[Array, " R"], new: PyTree, old: PyTree) -> PyTree:
    """For each replicate, the leaves of one of two trees."""
    return jax.tree.map(
        lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old
    )


class Plan(NamedTuple):
    """Length of training, validation and early stopping.

    Attributes:
        epochs: passes over the training data; examples that do not fill a batch are left out,
            different ones in each shuffled epoch.
        validate_every: epochs between validations.
        patience: validations without improvement after which a replicate stops; None for never.
        threshold: nats by which a validation bound must exceed the best one to count.
    """

    epochs: int
    validate_every: int = 1
    patience: int | None = None
    threshold: float = 0.0


class Report(NamedTuple):
    """The report of one dispatch.

    Attributes:
        step: step of the replicates that are still training.
        epoch: epochs completed.
        epoch_done: whether this dispatch ended an epoch.
        steps_per_epoch: batches in an epoch.
        bound: `[R]` mean training bound of the epoch so far, nats; nan for stopped replicates.
        metrics: name -> `[R]`, means of the objective's metrics besides its bound, such as `iwae`.
        validation: `[R]` validation bound, nats; None if this dispatch ended without a validation.
        active: `[R]`, whether each replicate was training.
        steps: steps per replicate in this dispatch.
        seconds: duration of the dispatch.
        stage: stage of the run, from 0.
        share: estimated share of the run's work that is done, from 0 to 1.
    """

    step: int
    epoch: int
    epoch_done: bool
    steps_per_epoch: int
    bound: np.ndarray
    metrics: dict[str, np.ndarray]
    validation: np.ndarray | None
    active: np.ndarray
    steps: int
    seconds: float
    stage: int = 0
    share: float = 0.0


class NonFiniteError(FloatingPointError):
    """Training produced a number that is not finite.

    Attributes:
        state: the last good state, before the step that broke.
        best: the best weights so far.
    """

    def __init__(self, message: str, state: TrainState, best: Best):
        super().__init__(message)
        self.state = state
        self.best = best


@float32
def training_loop(
    state: TrainState,
    best: Best,
    data: Examples,
    schedule: Schedule,
    template: AbstractLatentModel,
    settings: Settings,
    plan: Plan,
    validation: Examples | None = None,
    clock: Clock = START,
) -> Iterator[tuple[TrainState, Best, Report]]:
    """Train from `state` to the end of the plan; yield after every dispatch.

    The caller may stop after any dispatch and resume later from the yielded state: the result is
    the same, bit for bit.

    Args:
        data: `[n, ...]` raw training examples; `Rows` are read block by block (see `feed`).
        validation: `[m, ...]` examples in the model's units, for `plan.validate_every`.
        clock: the step and epoch at which this stage began; the plan's epochs count from there.

    Raises:
        UserError: if there are fewer examples than a batch holds, or a size is not positive.
        NonFiniteError: names the step and the first term that is not finite.
    """
    require_positive("batch_size", settings.batch_size)
    require_positive("validate_every", plan.validate_every)
    parts = feed_blocks(data, settings.batch_size)
    if parts.steps == 0:
        raise UserError(
            f"{len(data)} training examples do not fill one batch of {settings.batch_size}; "
            "choose a smaller batch size"
        )
    settings = settings._replace(blocks=parts.number)
    check_schedule_steps(plan.epochs, parts.steps_per_epoch, int(clock.step))
    with feeding(data, settings.batch_size, shuffle=settings.shuffle) as feed:
        yield from _dispatches(
            state, best, feed, schedule, template, settings, plan, validation, clock
        )


def _dispatches(
    state: TrainState,
    best: Best,
    feed: Feed,
    schedule: Schedule,
    template: AbstractLatentModel,
    settings: Settings,
    plan: Plan,
    validation: Examples | None,
    clock: Clock,
) -> Iterator[tuple[TrainState, Best, Report]]:
    """The dispatches of `training_loop`, each within a block."""
    steps_per_epoch, block_steps = feed.blocks.steps_per_epoch, feed.blocks.steps
    first = int(clock.step)
    last, size = first + plan.epochs * steps_per_epoch, 20
    while (active := _has_patience(best, plan)).any():
        step = int(np.asarray(state.step).max())
        if step >= last:
            break
        done_blocks = (step - first) // block_steps
        stop = min(step + size, first + (done_blocks + 1) * block_steps)
        raw = feed.at(int(clock.epoch) * feed.blocks.number + done_blocks)
        start = time.perf_counter()
        stops = jax.device_put(np.where(active, np.int32(stop), state.step))
        new = run_compiled_steps(state, stops, raw, schedule, template, settings, clock)
        bounds = np.asarray(new.bound, np.float64)  # waits for the device
        seconds = time.perf_counter() - start
        if not (np.isfinite(bounds).all() and _all_finite((new.params, new.extra))):
            good, message = diagnose_training(
                state, stops, raw, schedule, template, settings, clock
            )
            raise NonFiniteError(message, good, best)
        epoch, values = int(clock.epoch) + (stop - first) // steps_per_epoch, None
        bound = np.where(active, bounds, np.nan)
        done = (stop - first) % steps_per_epoch == 0
        if done and validation is not None and epoch % plan.validate_every == 0:
            values = validation_bounds(new, template, settings, validation)
            _refuse_non_finite(values, epoch, state, best)
            best = update_early_stopping(
                best, weights_of_replicates(new), values, active, epoch, plan.threshold
            )
        metrics = {
            name: np.where(active, np.asarray(mean, np.float64), np.nan)
            for name, mean in new.metrics.items()
        }
        state = new
        steps = stop - step
        yield (
            state,
            best,
            Report(
                step=stop,
                epoch=epoch,
                epoch_done=done,
                steps_per_epoch=steps_per_epoch,
                bound=bound,
                metrics=metrics,
                validation=values,
                active=active,
                steps=steps,
                seconds=seconds,
                share=(stop - first) / (last - first),
            ),
        )
        size = max(1, round(steps * min(DISPATCH_SECONDS / seconds, 10)))


def _refuse_non_finite(values: np.ndarray, epoch: int, good: TrainState, best: Best) -> None:
    """Raise NonFiniteError if a validation bound is not finite, and so cannot be compared."""
    if not np.isfinite(values).all():
        broken = int(np.argmin(np.isfinite(values)))
        raise NonFiniteError(
            f"training stopped at the validation of epoch {epoch} (replicate {broken}): the "
            f"held-out bound is {values[broken]}; look for an example that the model rules out, "
            "or use a smaller learning rate or smaller inputs",
            good,
            best,
        )


@jax.jit
def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _has_patience(best: Best, plan: Plan) -> np.ndarray:
    """Mask of the replicates that have not run out of patience."""
    return np.asarray(best.waited) < (np.inf if plan.patience is None else plan.patience)


def validation_bounds(
    state: TrainState, template: AbstractLatentModel, settings: Settings, validation: Examples
) -> Float[np.ndarray, " R"]:
    """Mean objective of each replicate on held-out data, with the same keys at each call."""
    slab = min(len(validation), SLAB) if isinstance(validation, Rows) else len(validation)
    means, (params, extras) = [], jax.device_get((weights_of_replicates(state), state.extra))
    for replicate in range(len(state.step)):
        model = replicate_model(template, params, replicate)
        extra = jax.tree.map(lambda leaf, r=replicate: leaf[r], extras)
        slabs = map_examples(
            _value_of(settings.validated or settings.objective),
            (model, extra),
            validation,
            jax.random.key(_VALIDATION_SEED),
            batch_size=settings.batch_size,
            slab_size=slab,
        )
        means.append(gather_examples(slabs).mean())
    return np.asarray(means)


@cache
def _value_of(objective: Objective) -> Callable[..., Scalar]:
    """The objective's value as a function of (model, extra); cached, to be compiled once."""

    def value(trained: tuple[AbstractLatentModel, Extra], x: Example, key: PRNGKey) -> Scalar:
        model, extra = trained
        return objective.terms(*model.condition(x), key, extra)[0]

    return value


_VALIDATION_SEED = 0

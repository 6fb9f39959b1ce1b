"""A run in stages, each with an objective, an optimiser and a schedule of its own."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from iwae.data.rows import Examples
from iwae.errors import UserError
from iwae.models.vae import AbstractLatentModel
from iwae.training.loop import Best, Plan, Report, init_best, training_loop
from iwae.training.replicates import replicate_model
from iwae.training.schedules import Schedule
from iwae.training.steps import START, Clock, Settings, TrainState, init_state


class Stage(NamedTuple):
    """A part of a run.

    Attributes:
        settings: the objective and how to maximise it.
        schedule: the learning rate of a step, counted from the start of the run.
        epochs: number of epochs.
        steps_per_epoch: batches in an epoch.
        clock: the step and the epoch at which the stage begins.
        fresh: whether to reset the optimiser; None to reset it only if its state does not fit.
        cost: cost of an epoch, in any unit common to all stages.
        number: index of the stage among those declared, from 0.
    """

    settings: Settings
    schedule: Schedule
    epochs: int
    steps_per_epoch: int
    clock: Clock = START
    fresh: bool | None = None
    cost: float = 1.0
    number: int = 0

    @property
    def end(self) -> int:
        """The step at which the stage ends."""
        return int(self.clock.step) + self.epochs * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """Epochs of the run completed after `step` steps, which must lie in this stage."""
        return int(self.clock.epoch) + (step - int(self.clock.step)) // self.steps_per_epoch


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """Index of the stage after `step` steps; the last step of a stage belongs to it."""
    return next((i for i, stage in enumerate(stages) if step <= stage.end), len(stages) - 1)


def stage_carries(before: Stage, stage: Stage) -> bool:
    """Whether the optimiser's state passes from one stage to the next.

    Raises:
        UserError: if the stage must not be fresh, but the state does not fit it.
    """
    same = before.settings.optimizer is stage.settings.optimizer
    fits = same and _learned_shapes(before) == _learned_shapes(stage)
    if stage.fresh is False and not fits:
        raise UserError(
            "a stage that is not fresh needs the optimizer of the previous stage, and an "
            "objective that learns the same arrays besides the model: leave fresh out"
        )
    return fits and not stage.fresh


def _learned_shapes(stage: Stage) -> list[tuple[int, ...]]:
    """The shapes of the arrays that the objective of a stage learns besides the model."""
    return [leaf.shape for leaf in jax.tree.leaves(stage.settings.objective.init().learned)]


def enter_stage(
    state: TrainState, best: Best, before: Stage, stage: Stage, template: AbstractLatentModel
) -> tuple[TrainState, Best]:
    """The state before the first step of a stage, from the state after the last step of another.

    All replicates continue, including those that ran out of patience. The arrays that the objective
    learns besides the model are carried over with the optimiser's state; an unchanged objective
    keeps all arrays that it has learned or tuned. If validation measures another bound, the best
    weights so far are discarded.
    """
    static = eqx.filter(template, eqx.is_inexact_array, inverse=True)
    new = _initial_state(state.params, state.key, static, stage.settings)
    extra, opt_state = new.extra, new.opt_state
    if stage_carries(before, stage):
        opt_state = state.opt_state
        extra = extra._replace(learned=state.extra.learned)
    if before.settings.objective is stage.settings.objective:
        extra = state.extra
    ema = () if stage.settings.ema is None else state.ema
    step = jnp.full_like(state.step, stage.clock.step)
    new = new._replace(opt_state=opt_state, extra=extra, step=step, ema=ema)
    if not _validates_alike(before, stage):
        return new, init_best(new)
    return new, best._replace(waited=jnp.zeros_like(best.waited))


@eqx.filter_jit
def _initial_state(
    params: PyTree, keys: Key[Array, " R"], template: AbstractLatentModel, settings: Settings
) -> TrainState:
    """The state before the first step of a run that starts from these parameters."""
    models = [replicate_model(template, params, r) for r in range(len(keys))]
    return init_state(models, keys, settings)


def _validates_alike(before: Stage, stage: Stage) -> bool:
    """Whether the validation bounds of two stages can be compared."""
    one, other = (s.settings.validated or s.settings.objective for s in (before, stage))
    return one is other


def train_stages(
    state: TrainState,
    best: Best,
    data: Examples,
    template: AbstractLatentModel,
    stages: Sequence[Stage],
    plan: Plan,
    validation: Examples | None = None,
) -> Iterator[tuple[TrainState, Best, Report]]:
    """Run `training_loop` through all stages, from the one that the state is in.

    Training can be resumed from any yielded state, even at the end of a stage.

    Args:
        plan: of the whole run; `epochs` is replaced by that of each stage. A stage ends when
            patience runs out.

    Raises:
        UserError, NonFiniteError: as `training_loop`.
    """
    costs = [stage.epochs * stage.cost for stage in stages]
    first = stage_at(stages, int(np.asarray(state.step).max()))
    for i, stage in enumerate(stages[first:], start=first):
        if i > first:
            state, best = enter_stage(state, best, stages[i - 1], stage, template)
        stage_plan = plan._replace(epochs=stage.epochs)
        dispatches = training_loop(
            state,
            best,
            data,
            stage.schedule,
            template,
            stage.settings,
            stage_plan,
            validation,
            stage.clock,
        )
        for state, best, report in dispatches:
            share = (sum(costs[:i]) + report.share * costs[i]) / sum(costs)
            yield state, best, report._replace(stage=stage.number, share=share)

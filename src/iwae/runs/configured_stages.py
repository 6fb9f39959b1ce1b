"""The stages of a run: objectives, optimisers and learning rates from its configuration."""

from collections.abc import Callable

import numpy as np
import optax

from iwae.config.experiment import TrainConfig
from iwae.config.types import DECAYING
from iwae.data import Dataset
from iwae.errors import UserError
from iwae.objectives.building import build_objective
from iwae.objectives.declaration import declared_particles, unmodified_declaration
from iwae.training.feed import feed_blocks
from iwae.training.optimizers import adam, authors_adam, soap
from iwae.training.schedules import (
    AUTHORS_RATES,
    PAPER_RATES,
    Schedule,
    check_schedule_steps,
    decaying,
    paper_schedule_epochs,
    staged_schedule,
    warming_up,
)
from iwae.training.stages import Stage, stage_carries
from iwae.training.steps import Clock, Settings

_TABLES = {"paper": PAPER_RATES, "authors": AUTHORS_RATES}
"""Schedules in stages of constant rates -> the rates."""


def configured_schedule(
    config: TrainConfig, steps_per_epoch: int, first: int = 0
) -> tuple[Schedule, tuple[int, ...]]:
    """The learning rates from the step `first` on, and the epochs at which their stages end."""
    check_schedule_steps(config.epochs, steps_per_epoch, first)
    table = _TABLES.get(config.schedule, (1.0,))
    lengths = (config.epochs,) if len(table) == 1 else paper_schedule_epochs(config.epochs)
    if config.schedule in DECAYING:
        steps = config.epochs * steps_per_epoch
        schedule: Schedule = decaying(
            config.learning_rate,
            config.lr_end,
            turn=first + round(DECAYING[config.schedule] * steps),
            end=first + steps,
            cosine=config.schedule == "cosine",
        )
    else:
        rates = [config.learning_rate * rate / table[0] for rate in table]
        schedule = staged_schedule(rates, lengths, steps_per_epoch, first)
    if config.lr_warmup:
        steps = max(1, round(config.lr_warmup * steps_per_epoch))
        schedule = warming_up(schedule, first, steps)
    return schedule, tuple(np.cumsum(lengths).tolist())


def configured_stages(
    config: TrainConfig, dataset: Dataset
) -> tuple[tuple[Stage, ...], tuple[int, ...]]:
    """The stages that have epochs, and the steps at which all stages of the run end.

    Raises:
        UserError: if a batch is larger than the training data, or an optimiser's state does not
            fit the stage to which it is carried over.
    """
    step = epoch = 0
    stages: list[Stage] = []
    ends: list[int] = []
    for i, epochs in enumerate(config.stage_epochs()):
        if epochs:
            try:
                stage, own_ends = _make_stage(config, i, epochs, dataset, Clock(step, epoch))
                if stages:
                    stage_carries(stages[-1], stage)
            except UserError as error:
                raise UserError(f"stage {i + 1}: {error}" if config.stages else error) from error
            stages.append(stage)
            step, epoch = stage.end, epoch + epochs
        ends += [step] if config.stages else own_ends
    return tuple(stages), tuple(ends)


def _make_stage(
    config: TrainConfig, i: int, epochs: int, dataset: Dataset, clock: Clock
) -> tuple[Stage, list[int]]:
    """A stage, and the steps at which its schedule's own stages end, meaningful for one stage."""
    of_stage = config.stage(i, epochs)
    steps_per_epoch = _steps_per_epoch(of_stage, dataset)
    schedule, ends = configured_schedule(of_stage, steps_per_epoch, int(clock.step))
    stage = Stage(
        _settings(of_stage, dataset, steps_per_epoch),
        schedule,
        epochs,
        steps_per_epoch,
        clock,
        config.stages[i].fresh if config.stages else None,
        _cost(of_stage),
        i,
    )
    return stage, [end * steps_per_epoch for end in ends]


def _steps_per_epoch(config: TrainConfig, dataset: Dataset) -> int:
    size = configured_stage_batch_size(config, dataset)
    if size > len(dataset.train):
        raise UserError(
            f"batch_size is {size}, but there are {len(dataset.train)} training "
            "examples: choose a smaller batch"
        )
    return feed_blocks(dataset.train, size).steps_per_epoch


def configured_stage_batch_size(config: TrainConfig, dataset: Dataset) -> int:
    """Examples per step; `auto` is a fiftieth of the training examples, from 16 to 100."""
    if config.batch_size != "auto":
        return config.batch_size
    n = len(dataset.train)
    return min(n, max(16, min(100, n // 50)))


_OPTIMIZERS: dict[str, Callable[[int], optax.GradientTransformation]] = {
    "adam": lambda _: adam(),
    "authors": authors_adam,
    "soap": lambda _: soap(),
}
"""Name -> function from a batch size to an optimiser."""


def _settings(config: TrainConfig, dataset: Dataset, steps_per_epoch: int) -> Settings:
    declaration, layers = config.declaration(steps_per_epoch), len(config.sizes()[0])
    size = configured_stage_batch_size(config, dataset)
    return Settings(
        build_objective(declaration, layers),
        _OPTIMIZERS[config.optimizer](size),
        size,
        dataset.binarization,
        config.shuffle,
        build_objective(unmodified_declaration(declaration), layers),
        config.ema,
        config.hide or 0.0,
    )


def _cost(config: TrainConfig) -> float:
    """Cost per example in passes through the decoder; a third for one without a backward pass."""
    forward = declared_particles(config.declaration())
    back = min(config.backward or forward, forward)
    moves = (config.temperatures or 1) * (config.leapfrog or 1)  # of dais and aiwae
    return 1.0 + moves * back + (0 if back == forward else forward / 3)

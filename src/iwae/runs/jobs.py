"""From a configuration to its data, models, objective and schedule."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from iwae.config.defaults import BY_FOLDS
from iwae.config.experiment import TrainConfig
from iwae.config.toml import read_config
from iwae.data import DATASETS, Dataset, load_dataset
from iwae.data.own import is_large_own_file, resolved_own_data
from iwae.errors import UserError
from iwae.models.conditional import Model
from iwae.objectives.building import build_objective
from iwae.runs.checkpoints import list_checkpoints, load_checkpoint
from iwae.runs.configured_stages import configured_stage_batch_size, configured_stages
from iwae.runs.initial_models import (
    TRAIN,
    Seed,
    initial_model_key,
    initial_model_network,
    initial_model_seeds,
    make_initial_models,
)
from iwae.training.hiding import hidden_share
from iwae.training.loop import Best, Plan, init_best
from iwae.training.stages import Stage, stage_at
from iwae.training.steps import Settings, TrainState, init_state
from iwae.wording import quoted_name

LOGGED = 200
"""Default number of measurements of KL, reconstruction and active units in a run."""


@dataclass(frozen=True)
class Job:
    """A configuration with its data, models and schedule, ready to train."""

    config: TrainConfig
    dataset: Dataset
    models: list[Model]
    stages: tuple[Stage, ...]
    stage_ends: tuple[int, ...]  # steps; those of the schedule, if the run has no stages
    plan: Plan

    def stage_of(self, step: int) -> Stage:
        """The stage of a state after `step` steps."""
        return self.stages[stage_at(self.stages, step)]

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step with number `step`, from 1."""
        schedule, done = self.stage_of(step).schedule, jax.device_put(np.int32(step - 1))
        return float(eqx.filter_jit(schedule)(done))


def load_job_dataset(config: TrainConfig, data_dir: Path | None = None) -> Dataset:
    """The data set of a configuration; in memory, unless the configuration streams it."""
    return load_dataset(
        config.dataset,
        binarization=config.binarization,
        validation=config.validation,
        seed=config.data_seed,
        binarization_seed=config.binarization_seed,
        observation=config.kind(),
        shape=config.shape,
        missing=config.missing is not None,
        standardize=config.standardize,
        labels=config.label or config.conditional,
        columns=config.kinds_by_name() or None,
        drop=config.drop or (),
        ids=config.id or (),
        resize=config.resize,
        stream=bool(config.stream),
        data_dir=data_dir,
    )


def resolve(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The configuration with all settings that depend on the data filled in."""
    latent_sizes, hidden_sizes = config.sizes()
    validation = config.validation
    if validation is None or isinstance(validation, float):
        validation = len(dataset.validation)
    has_gaps = bool(dataset.identity.get("missing", {}).get("train"))
    # Stages have their own defaults.
    declared = {} if config.stages is not None else config.declaration()._asdict()
    return config.model_copy(
        update={
            "binarization": dataset.binarization,
            "observation": dataset.observation,
            **dataset.kind.parameters(),
            **_columns_by_name(dataset),
            "dataset": resolved_own_data(config.dataset),
            "validation": validation,
            "batch_size": configured_stage_batch_size(config, dataset),
            "hide": hidden_share(config.hide, config.missing, gaps=has_gaps),
            "standardize": None if dataset.name in DATASETS else dataset.scaling is not None,
            "log_every": config.log_every or -(-config.epochs // LOGGED),
            "layers": len(latent_sizes),
            "latent_sizes": latent_sizes,
            "hidden_sizes": hidden_sizes,
            "latents": config.latents and tuple(map(str, config.kinds())),
            "channels": initial_model_network(config, dataset).channels or None,
            "init_from": config.init_from and config.init_from.resolve(),
            **{name: value for name, value in declared.items() if hasattr(config, name)},
        }
    )


def _columns_by_name(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """The option `columns` with the kinds that follow from the values."""
    by_name = any(column.why for column in dataset.columns)
    words = tuple(f"{quoted_name(column.name)}={column.kind}" for column in dataset.columns)
    return {"columns": words} if by_name else {}


def make_job(config: TrainConfig, data_dir: Path | None = None, *, resumed: bool = False) -> Job:
    """Load and build everything that `config` names.

    Args:
        resumed: ignore `init_from`, which may no longer exist: the weights will come from a
            checkpoint.

    Raises:
        UserError: for data that cannot be loaded or do not fit.
    """
    if config.stream is None and not resumed and not config.conditional:
        config = config.model_copy(update={"stream": is_large_own_file(config.dataset) or None})
    dataset = load_job_dataset(config, data_dir)
    if config.folds is not None:
        config = _with_folds(config, dataset)
        if config.folds is not None and len(dataset.validation):
            dataset = load_job_dataset(config, data_dir)
    config = resolve(config, dataset)
    _check_validation(config, dataset)
    stages, ends = configured_stages(config, dataset)
    start = config.model_copy(update={"init_from": None}) if resumed else config
    return Job(
        config,
        dataset,
        make_initial_models(start, dataset),
        stages,
        ends,
        Plan(config.epochs, config.validate_every, config.patience, config.threshold),
    )


FEW, FOLDS = 200, 5
"""Maximum training rows for cross-validation by default, and its number of folds then."""


def _with_folds(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The configuration with a number of folds, or none, in place of `auto`; checks a given one."""
    n = len(dataset.train) + len(dataset.validation)
    fits = dataset.binarization != "dynamic" and not dataset.is_streamed
    if config.folds == "auto":
        is_few = fits and FOLDS <= n <= FEW
        return config.model_copy(update={"folds": FOLDS, **BY_FOLDS} if is_few else {"folds": None})
    if not fits:
        raise UserError(
            "folds needs data in memory, whose pixels are not drawn anew in each epoch: leave it "
            "out"
        )
    if config.folds is not None and config.folds > n:
        raise UserError(f"folds is {config.folds}, but there are {n} training rows: choose fewer")
    return config


def _check_validation(config: TrainConfig, dataset: Dataset) -> None:
    """Raise UserError for settings of validation without held-out examples."""
    for name in ("patience", "threshold", "validate_every"):
        default = TrainConfig.model_fields[name].default
        by_folds = config.folds is not None and name != "validate_every"
        if getattr(config, name) != default and len(dataset.validation) == 0 and not by_folds:
            raise UserError(f"{name} needs held-out examples: set validation, e.g. 1000")
    if config.validate_every > config.epochs:
        raise UserError(
            f"validate_every is {config.validate_every}, but the run ends after {config.epochs} "
            "epochs: choose a smaller one"
        )


def blank_job_state(job: Job, step: int = 0) -> tuple[TrainState, Best]:
    """The state of a job's models with a new optimiser, for the stage of a step."""
    seeds = initial_model_seeds(job.config)
    return _first_state(job.models, seeds, job.stage_of(step).settings)


@eqx.filter_jit
def _first_state(
    models: list[Model], seeds: list[Seed], settings: Settings
) -> tuple[TrainState, Best]:
    keys = jnp.stack([initial_model_key(seed, TRAIN) for seed in seeds])
    state = init_state(models, keys, settings)
    return state, init_best(state)


def initial_job_state(job: Job) -> tuple[TrainState, Best]:
    """The state of a job before its first step."""
    state, best = blank_job_state(job)
    if job.config.keep_optimizer and job.config.init_from is not None:
        leaves = jax.tree.leaves(_optimizer_of(job.config.init_from, job))
        old = jax.tree.unflatten(jax.tree.structure(state.opt_state), leaves)
        state = state._replace(opt_state=old)
    return state, best


def _optimizer_of(run: Path, job: Job) -> Any:
    """The optimiser's state in the newest checkpoint of another run, whose objective may differ."""
    paths = list_checkpoints(run / "checkpoints")
    if not paths:
        raise UserError(f"{run} has no checkpoint to take the optimiser's state from")
    old = read_config(run / "config.toml").final()
    objective = build_objective(old.declaration(), len(old.sizes()[0]))
    first = job.stages[0]
    new = job.config.stage(first.number, first.epochs)
    learned, wanted = (
        [leaf.shape for leaf in jax.tree.leaves(one.init().learned)]
        for one in (objective, first.settings.objective)
    )
    if learned != wanted:
        raise UserError(
            f"keep_optimizer: {run} was trained with {old.objective}, and {new.objective} "
            "learns other arrays beside the model; leave out keep_optimizer"
        )
    if old.optimizer != new.optimizer:
        raise UserError(
            f"keep_optimizer: {run} was trained with the optimizer {old.optimizer}, here it is "
            f"{new.optimizer}; leave out keep_optimizer"
        )
    settings = first.settings._replace(objective=objective, ema=old.ema)
    like = replace(job, stages=(first._replace(settings=settings),))
    return load_checkpoint(paths[-1], blank_job_state(like)).state.opt_state

"""Starting a run, saving what is needed to resume it, and resuming it."""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from iwae.config.experiment import TrainConfig, make_config, stored
from iwae.config.toml import config_toml_values, write_config
from iwae.data.own import is_own
from iwae.data.summary import LISTING, has_wide_summary, summarise_columns
from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.precision import float32
from iwae.runs.checkpoints import (
    Checkpoint,
    DamagedCheckpointError,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from iwae.runs.folder import (
    FOLDS,
    Claim,
    folder_config,
    locked_run_folder,
    refuse_used_folder,
    undisputed_folder,
)
from iwae.runs.folds import cross_validate, save_folds, without_folds
from iwae.runs.jobs import Job, blank_job_state, initial_job_state, make_job
from iwae.runs.metrics import (
    copy_metrics,
    log_metrics,
    open_metrics,
    read_metrics,
    save_metrics_frame,
    scalars,
    tensorboard_metrics,
)
from iwae.runs.model_files import save_model
from iwae.runs.shared_stages import copy_shared_log, shared_beginning
from iwae.runs.stopping import Stopped, stop_signals
from iwae.runs.trackers import FOLDER, Scalars, Tracker, tracking
from iwae.runs.trained import trained_model_folder
from iwae.training.loop import Best, NonFiniteError, Report
from iwae.training.replicates import replicate_model, weights_of_replicates
from iwae.training.stages import train_stages
from iwae.training.steps import TrainState
from iwae.wording import count_in_words

log = logging.getLogger("iwae")

CHECKPOINT_SECONDS = 180.0
"""Time between checkpoints, and the most that a kill can cost."""

NO_TRACKERS: Mapping[str, Tracker] = {}


@float32
def start_run(
    config: TrainConfig,
    run: Path,
    data_dir: Path | None = None,
    *,
    deadline: float = math.inf,
    track: Mapping[str, Tracker] = NO_TRACKERS,
    claim: Claim = undisputed_folder,
    show: Callable[[Job], None] | None = None,
    others: Sequence[Path] = (),
) -> Iterator[Report]:
    """Train from the beginning in a new folder; yield a report after every dispatch.

    Args:
        deadline: when to stop, on the clock of `time.monotonic`.
        track: experiment trackers by name, such as those of `iwae.runs.trackers.TRACKERS`.
        claim: raises if another process has taken over the folder; called before each write.
        show: called with the job before training.
        others: runs that may share the first stages of this one: settings, data and seed. These
            stages are copied instead of trained again; the result is the same.

    Raises:
        UserError: if the folder is not empty, the data do not fit, or a tracker cannot be used.
        Stopped: on Ctrl-C, SIGTERM or the deadline, after writing a checkpoint.
        NonFiniteError: names the step and the term; a checkpoint holds the last good state.
    """
    refuse_used_folder(run)
    job = make_job(config, data_dir)
    if show is not None:
        show(job)
    begun = shared_beginning(job, others, _jsonable(job.dataset.identity))
    state, best = initial_job_state(job) if begun is None else begun.checkpoint[:2]
    with locked_run_folder(run, claim) as valid:
        refuse_used_folder(run)  # another process may have been faster
        for name in (FOLDER, FOLDS):
            shutil.rmtree(run / name, ignore_errors=True)  # from a start that failed
        if job.config.folds is not None:
            folds = cross_validate(job)
            job = without_folds(job, folds.epochs)
            save_folds(folds, job, run, **_notes(job))
        with tracking(track, run, job.config) as tell:
            write_config(job.config, run / "config.toml")
            if has_wide_summary(job.dataset):
                with atomic_write(run / LISTING) as path:
                    path.write_text(summarise_columns(job.dataset) + "\n")
            if begun is not None:
                first = count_in_words(begun.stages, "first stage")
                log.warning("%s has its %s from %s", run, first, begun.run)
                copy_shared_log(begun, run)
                save_checkpoint(run / "checkpoints", Checkpoint(state, best, _notes(job)))
                _tell_all(run, tell)
            yield from _train(_Run(job, run, deadline, tell, valid), state, best)


@float32
def resume_run(
    run: Path,
    data_dir: Path | None = None,
    stage: int | None = None,
    *,
    deadline: float = math.inf,
    track: Mapping[str, Tracker] = NO_TRACKERS,
    claim: Claim = undisputed_folder,
) -> Iterator[Report]:
    """Resume a run exactly where it stopped, or from the end of a stage of its schedule.

    Args:
        deadline: when to stop, on the clock of `time.monotonic`.
        track: as for `start_run`; a tracker also receives what it missed.
        claim: as for `start_run`.

    Raises:
        UserError: if there is nothing to resume, or the data or the configuration are not those
            of the run.
    """
    config = folder_config(run)
    try:
        job = make_job(config, data_dir, resumed=True)
    except UserError as error:
        if not is_own(config.dataset):
            raise
        raise UserError(
            f"{error} (to resume {run}, {config.dataset} must be as it was when the run began)"
        ) from None
    with locked_run_folder(run, claim) as valid:
        checkpoint = _checkpoint_to_resume(job, run, stage)
        if checkpoint is not None:
            state, best = checkpoint.state, checkpoint.best
        else:
            job = make_job(config, data_dir)
            state, best = initial_job_state(job)
        with tracking(track, run, job.config) as tell:
            _forget_after(run, int(np.asarray(state.step).max()))
            _tell_all(run, tell)
            yield from _train(_Run(job, run, deadline, tell, valid), state, best)


def _tell_all(run: Path, tell: Callable[[int, Scalars], None]) -> None:
    """Send all logged epochs to the trackers."""
    for row in read_metrics(run):
        tell(row["step"], dict(scalars(row)))


def _checkpoint_to_resume(job: Job, run: Path, stage: int | None) -> Checkpoint | None:
    """The newest intact checkpoint, or that of a stage; None if none was ever written."""
    paths = list_checkpoints(run / "checkpoints")
    if stage is not None:
        if not 0 <= stage < len(job.stage_ends):
            raise UserError(f"no stage {stage}; this schedule has 0 to {len(job.stage_ends) - 1}")
        step = job.stage_ends[stage]
        if step == 0:
            raise UserError(f"stage {stage} has no epochs in a run of {job.config.epochs}")
        paths = [path for path in paths if int(path.stem) == step]
        if not paths:
            raise UserError(f"{run} has no checkpoint at the end of stage {stage}")
    for path in reversed(paths):
        try:
            checkpoint = load_checkpoint(path, blank_job_state(job, int(path.stem)))
        except DamagedCheckpointError as error:
            log.warning("%s; trying the previous one", error)
            continue
        if checkpoint.notes["dataset"] != _jsonable(job.dataset.identity):
            raise UserError(
                f"the data found now are not those that {run} was trained on: restore "
                f"{job.config.dataset} to resume, or train on it as it is now: "
                f"iwae train {run}/config.toml --out NEW"
            )
        _refuse_other_config(job, run, checkpoint.notes["config"])
        return checkpoint
    if stage is not None:
        raise UserError(f"the checkpoint of stage {stage} is damaged")
    if paths or (run / "models").exists():  # models are written after a checkpoint
        raise UserError(
            f"{run} has no readable checkpoint left; to train it again from the beginning: "
            f"iwae train {run}/config.toml --out NEW"
        )
    log.warning("%s was stopped before its first checkpoint: starting from the beginning", run)
    return None


def _refuse_other_config(job: Job, run: Path, noted: dict[str, Any]) -> None:
    """Raise UserError if config.toml is not what the run was trained with.

    The locations of the data and of the initial weights may change: `identity` tells whether the
    data are the same, and the weights are in the checkpoint. So may the interval of logging.
    """
    now, before = job.config, make_config(stored(noted), f"the checkpoint of {run}")
    changed = [
        f"{name} was {getattr(before, name)}, now {getattr(now, name)}"
        for name in sorted(TrainConfig.model_fields.keys() - {"dataset", "init_from", "log_every"})
        if getattr(before, name) != getattr(now, name)
    ]
    if changed:
        raise UserError(
            f"{run}/config.toml is not what the run was trained with: {'; '.join(changed)}; "
            "restore it to resume, or start a new run with --out"
        )


def _forget_after(run: Path, step: int) -> None:
    """Remove what was written after `step`: training writes it again."""
    for path in list_checkpoints(run / "checkpoints"):
        if int(path.stem) > step:
            path.replace(path.with_name(f"abandoned-{path.name}"))
    copy_metrics(run, run, step)


class _Run(NamedTuple):
    """A run during training.

    Attributes:
        deadline: when to stop, on the clock of `time.monotonic`.
        tell: sends the scalars of a step to the trackers.
        claim: raises if the folder was removed or replaced, or has another owner.
    """

    job: Job
    folder: Path
    deadline: float
    tell: Callable[[int, Scalars], None]
    claim: Claim

    @property
    def keep_steps(self) -> set[int]:
        """The ends of stages, whose checkpoints stay."""
        return {*self.job.stage_ends, *(stage.end for stage in self.job.stages)}


def _train(run: _Run, start: TrainState, best_so_far: Best) -> Iterator[Report]:
    """Train, keep the folder up to date, and send metrics to the trackers."""
    job, book, first = run.job, open_metrics(run.job, run.folder), int(np.asarray(start.step).max())
    validation = job.dataset.examples("validation") if len(job.dataset.validation) else None
    state, best, saved = start, best_so_far, time.monotonic()
    if first == 0:
        save_metrics_frame(book, start, 0)
    steps = train_stages(
        start,
        best_so_far,
        job.dataset.examples("train"),
        job.models[0],
        job.stages,
        job.plan,
        validation,
    )
    with stop_signals() as signals, tensorboard_metrics(run.folder, first) as board:
        try:
            for state, best, report in steps:
                run.claim()
                if report.epoch_done:
                    logged = log_metrics(book, state, report)
                    board(report.step, logged)
                    run.tell(report.step, logged)
                stage_end = report.epoch_done and report.step in run.keep_steps
                # A later signal waits for the next dispatch.
                late = [None] if time.monotonic() > run.deadline else []
                stop = signals[:1] or late
                if stage_end or stop or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    _save(run, state, best)
                    saved = time.monotonic()
                yield report
                if stop:
                    raise Stopped(stop[0])
        except NonFiniteError as error:
            _save(run, error.state, error.best)
            raise
    _save(run, state, best, finished=True)
    run.claim()


def _save(run: _Run, state: TrainState, best: Best, *, finished: bool = False) -> None:
    """Write a checkpoint and the current models."""
    run.claim()
    job, notes, folder = run.job, _notes(run.job), run.folder / "checkpoints"
    save_checkpoint(folder, Checkpoint(state, best, notes))
    prune_checkpoints(folder, run.keep_steps)
    steps, params, best = jax.device_get((state.step, weights_of_replicates(state), best))
    for replicate in range(job.config.replicates):
        about = {**notes, "replicate": replicate}
        kept = trained_model_folder(run.folder, "best", replicate)
        if len(job.dataset.validation) and best.epoch[replicate] > 0:
            model = replicate_model(job.models[0], best.params, replicate)
            epoch, value = int(best.epoch[replicate]), float(best.value[replicate])
            save_model(model, kept, **about, epoch=epoch, validation=value)
        else:  # of an earlier stage, chosen by another bound
            shutil.rmtree(kept, ignore_errors=True)
        # A final model marks the run as finished, so it is written last.
        model, step = replicate_model(job.models[0], params, replicate), int(steps[replicate])
        done = {"epoch": job.stage_of(step).epoch_of(step), "finished": finished}
        save_model(model, trained_model_folder(run.folder, "final", replicate), **done, **about)


def _notes(job: Job) -> dict[str, Any]:
    """Facts about a run for its checkpoints and models."""
    return {
        "dataset": _jsonable(job.dataset.identity),
        "config": config_toml_values(job.config),
        "version": version("iwae"),
    }


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))

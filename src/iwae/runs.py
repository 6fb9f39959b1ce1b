"""A run folder: trained models, stopped and resumed at will.

RUN/config.toml       the resolved configuration; trains the same models again
RUN/metrics.jsonl     one line per logged epoch
RUN/tensorboard/      the same as TensorBoard scalars
RUN/checkpoints/      what the run needs to go on (Orbax)
RUN/models/           `final-R` and `best-R` for each replicate R (safetensors)
RUN/frames/           pictures' arrays through the course of training
RUN/figures/          pictures, written by `iwae figures`
RUN/evaluations/      records and per-example values, written by `iwae evaluate`
RUN/trackers/         what experiment trackers were sent
"""

import fcntl
import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from iwae._types import UserError, atomic_write
from iwae.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    save_model,
)
from iwae.conditional import Model
from iwae.config import TrainConfig, config_values, make_config, read_config, write_config
from iwae.evaluate import active_units, gather, layer_terms, map_examples
from iwae.jobs import (
    Job,
    blank_state,
    initial_state,
    make_job,
    model_folder,
    split_examples,
)
from iwae.trackers import FOLDER, Scalars, Tracker, tracking
from iwae.training import Best, NonFiniteError, Report, TrainState, replicate_model, training

log = logging.getLogger("iwae")

CHECKPOINT_SECONDS = 180.0
"""The most that a kill can cost."""

FRAMES = 16
"""Pictures of the model taken in the course of training, at epochs evenly spread in their log."""

MONITORED = 1000
"""Examples on which reconstruction, KL and active units are logged."""


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold the folder, so that no second process trains in it."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as handle:
        if not take_lock(handle):
            raise UserError(f"{run} is in use by another process that trains there")
        yield


def take_lock(handle: IO, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether a lock on an open file could be had, which lasts until the file is closed.

    Raises:
        UserError: if the file system has no locks.
    """
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{handle.name} cannot be locked ({error.strerror}), and locks keep processes from "
            "each other's runs: choose a folder on a file system that has them"
        ) from error
    return True


Claim = Callable[[], None]
"""Raises if the folder has become another process's, which then goes on from what is there."""


def claimed() -> None:
    """The claim of a process that nobody disputes."""


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying of them; a second one dies."""
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    names = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = [signal.signal(name, note) for name in names]
    try:
        yield received
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Training was asked to stop, or its time is up, and it has saved what it had."""

    def __init__(self, signal_number: int | None):
        named = signal_number is not None and f"by {signal.Signals(signal_number).name}"
        super().__init__(f"stopped {named or 'because its time is up'}")
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[type, tuple[int | None]]:
        """For other processes."""
        return type(self), (self.signal_number,)

    @property
    def status(self) -> int:
        """The exit status of a program that stops for this reason."""
        return 0 if self.signal_number is None else 128 + self.signal_number


NO_TRACKERS: Mapping[str, Tracker] = {}


def start_run(
    config: TrainConfig,
    run: Path,
    data_dir: Path | None = None,
    *,
    deadline: float = math.inf,
    track: Mapping[str, Tracker] = NO_TRACKERS,
    claim: Claim = claimed,
) -> Iterator[Report]:
    """Train from the beginning in a new folder; yields after every dispatch.

    Args:
        deadline: when to stop, on the clock of `time.monotonic`.
        track: experiment trackers by name, such as those of `iwae.trackers.TRACKERS`.
        claim: raises if the folder has become another process's; asked before anything is written.

    Raises:
        UserError: if the folder holds something already, for data that do not fit, or for a
            tracker that cannot be used.
        Stopped: after Ctrl-C, SIGTERM or the deadline, once a checkpoint is written.
        NonFiniteError: names the step and the term; the last good state is in a checkpoint.
    """
    _refuse_used(run)
    job = make_job(config, data_dir)
    state, best = initial_state(job)
    with _locked(run):
        _refuse_used(run)  # another process may have been faster
        shutil.rmtree(run / FOLDER, ignore_errors=True)  # of a start that failed
        with tracking(track, run, job.config) as tell:
            write_config(job.config, run / "config.toml")
            yield from _train(job, run, state, best, deadline, tell, claim)


def _refuse_used(run: Path) -> None:
    """Raise UserError if a new run cannot be written to this folder."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; name a folder for the run")
    if (run / "config.toml").exists():
        raise UserError(f"{run} holds a run already; go on with --resume {run}, or choose another")
    others = [path for path in run.glob("[!.]*") if path.name != FOLDER]
    if others:
        raise UserError(f"{run} is not empty; choose another folder for the run")


def resume_run(
    run: Path,
    data_dir: Path | None = None,
    stage: int | None = None,
    *,
    deadline: float = math.inf,
    track: Mapping[str, Tracker] = NO_TRACKERS,
    claim: Claim = claimed,
) -> Iterator[Report]:
    """Go on exactly where a run was stopped, or from the end of a stage of its schedule.

    Args:
        deadline: when to stop, on the clock of `time.monotonic`.
        track: as for `start_run`; a tracker is also sent what it missed.
        claim: as for `start_run`.

    Raises:
        UserError: if there is nothing to resume, or the data or the configuration are not those
            of the run.
    """
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} holds no run: config.toml is missing")
    config = read_config(run / "config.toml")
    job = make_job(config, data_dir, resumed=True)
    with _locked(run):
        checkpoint = _checkpoint_to_resume(job, run, blank_state(job), stage)
        if checkpoint is not None:
            state, best = checkpoint.state, checkpoint.best
        else:
            job = make_job(config, data_dir)
            state, best = initial_state(job)
        with tracking(track, run, job.config) as tell:
            _forget_after(run, int(state.step.max()))
            for row in read_metrics(run):
                tell(row["step"], dict(_scalars(row)))
            yield from _train(job, run, state, best, deadline, tell, claim)


def _checkpoint_to_resume(
    job: Job, run: Path, like: tuple[TrainState, Best], stage: int | None
) -> Checkpoint | None:
    """The newest checkpoint that is whole, or that of a stage; None if there never was one."""
    paths = list_checkpoints(run / "checkpoints")
    if stage is not None:
        if not 0 <= stage < len(job.stage_ends):
            raise UserError(f"no stage {stage}; this schedule has 0 to {len(job.stage_ends) - 1}")
        if job.stage_ends[stage] == 0:
            raise UserError(f"stage {stage} has no epochs in a run of {job.config.epochs}")
        step = job.stage_ends[stage] * job.steps_per_epoch
        paths = [path for path in paths if int(path.name) == step]
        if not paths:
            raise UserError(f"{run} has no checkpoint of the end of stage {stage}")
    for path in reversed(paths):
        try:
            checkpoint = load_checkpoint(path, like)
        except DamagedCheckpointError as error:
            log.warning("%s; trying the one before", error)
            continue
        if checkpoint.notes["dataset"] != _jsonable(job.dataset.identity):
            raise UserError(f"the data found now are not those that {run} was trained on")
        _refuse_other_config(job, run, checkpoint.notes["config"])
        return checkpoint
    if stage is not None:
        raise UserError(f"the checkpoint of stage {stage} is damaged")
    if paths or (run / "models").exists():  # models are written after a checkpoint
        raise UserError(
            f"{run} has no checkpoint left that can be read; to train it again from the "
            f"beginning: iwae train {run}/config.toml --out NEW"
        )
    log.warning("%s was stopped before its first checkpoint: starting from the beginning", run)
    return None


def _refuse_other_config(job: Job, run: Path, noted: dict[str, Any]) -> None:
    """Raise UserError if config.toml is not what the run was trained with.

    Where the data and the first weights lay then does not matter: `identity` tells whether the
    data are the same, and the weights are in the checkpoint. Nor does how often one looks.
    """
    now, before = job.config, make_config(noted, f"the checkpoint of {run}")
    changed = [
        f"{name} was {getattr(before, name)}, now {getattr(now, name)}"
        for name in sorted(TrainConfig.model_fields.keys() - {"dataset", "init_from", "log_every"})
        if getattr(before, name) != getattr(now, name)
    ]
    if changed:
        raise UserError(
            f"{run}/config.toml is not what the run was trained with: {'; '.join(changed)}; put "
            "it back to go on, or start a run of its own with --out"
        )


def _forget_after(run: Path, step: int) -> None:
    """Remove what was written after `step`, which will be written again."""
    for path in list_checkpoints(run / "checkpoints"):
        if int(path.name) > step:
            abandoned = path.with_name(f"abandoned-{path.name}")
            shutil.rmtree(abandoned, ignore_errors=True)
            path.rename(abandoned)
    rows = [row for row in read_metrics(run) if row["step"] <= step]
    with atomic_write(run / "metrics.jsonl") as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The logged epochs of a run, oldest first, without lines that are cut off or damaged."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # a kill may cut the last one off
    rows = [_metrics_row(line) for line in lines]
    if None in rows:
        log.warning("%s: line %d is damaged and left out", path, rows.index(None) + 1)
    return [row for row in rows if row is not None]


def _metrics_row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, or None if it is damaged."""
    try:
        row = json.loads(line)
        whole = int(row["epoch"]) >= 0 and int(row["step"]) >= 0
        return row if whole and {"learning_rate", "train_bound"} <= row.keys() else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


class _Run(NamedTuple):
    """What stays the same while a run is being trained."""

    job: Job
    folder: Path
    keep_steps: set[int]
    frame_epochs: set[int]
    monitored: np.ndarray
    claim: Claim


def _train(
    job: Job,
    folder: Path,
    start: TrainState,
    best_so_far: Best,
    deadline: float,
    tell: Callable[[int, Scalars], None],
    claim: Claim,
) -> Iterator[Report]:
    """Train, keep the folder up to date, and tell the trackers."""
    keep = {end * job.steps_per_epoch for end in job.stage_ends}
    frames = _frame_epochs(job.config.epochs)
    run = _Run(job, folder, keep, frames, _monitored_examples(job), claim)
    validation = job.dataset.validation if len(job.dataset.validation) else None
    state, best, saved = start, best_so_far, time.monotonic()
    if not start.step.any():
        save_frame(run, start, 0)
    steps = training(
        start,
        best_so_far,
        job.dataset.train,
        job.schedule,
        job.models[0],
        job.settings,
        job.plan,
        validation,
    )
    with _stop_signals() as signals, _tensorboard(folder, int(start.step.max())) as board:
        try:
            for state, best, report in steps:
                claim()
                if report.epoch_done:
                    scalars = _log_epoch(run, state, report)
                    for tag, value in scalars.items():
                        board.add_scalar(tag, value, report.step)
                    tell(report.step, scalars)
                stage_end = report.epoch_done and report.step in run.keep_steps
                # A signal that comes after this waits for the next dispatch.
                late = [None] if time.monotonic() > deadline else []
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


def _save(run: _Run, state: TrainState, best: Best, *, finished: bool = False) -> None:
    """A checkpoint, and the models as they are now."""
    run.claim()
    job = run.job
    notes = {
        "dataset": _jsonable(job.dataset.identity),
        "config": config_values(job.config),
        "version": version("iwae"),
    }
    folder = run.folder / "checkpoints"
    save_checkpoint(folder, Checkpoint(state, best, notes))
    prune_checkpoints(folder, run.keep_steps)
    for replicate in range(job.config.replicates):
        about = {**notes, "replicate": replicate}
        model = replicate_model(job.models[0], state.params, replicate)
        done = {"epoch": int(state.step[replicate]) // job.steps_per_epoch, "finished": finished}
        save_model(model, model_folder(run.folder, "final", replicate), **done, **about)
        if len(job.dataset.validation) and best.epoch[replicate] > 0:
            model = replicate_model(job.models[0], best.params, replicate)
            about |= {
                "epoch": int(best.epoch[replicate]),
                "validation": float(best.value[replicate]),
            }
            save_model(model, model_folder(run.folder, "best", replicate), **about)


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


# --- what is logged -------------------------------------------------------------------------


def _monitored_examples(job: Job) -> np.ndarray:
    """Held-out examples if there are any, else some training examples, binarised once."""
    split = "validation" if len(job.dataset.validation) else "train"
    return split_examples(job.dataset, split, MONITORED)


def monitor(model: Model, examples: np.ndarray, key: Array) -> dict[str, Any]:
    """Reconstruction (nats), KL per layer (nats) and active units per layer, one replicate."""
    slabs = map_examples(layer_terms(1), model, examples, key, batch_size=100, slab_size=MONITORED)
    terms = gather(slabs)
    units = active_units(model, examples, key)
    return {
        "reconstruction": float(terms["reconstruction"].mean()),
        "kl": terms["kl"].mean(axis=0).tolist(),
        "active_units": list(units.counts),
    }


def _log_epoch(run: _Run, state: TrainState, report: Report) -> dict[str, float]:
    """A line of metrics, and now and then a frame; returns the line as scalars by name."""
    job = run.job
    row: dict[str, Any] = {
        "epoch": report.epoch,
        "step": report.step,
        "learning_rate": float(job.schedule(jax.numpy.int32(report.step - 1))),
        "train_bound": report.bound.tolist(),
        **{f"train_{name}": values.tolist() for name, values in report.shown.items()},
    }
    if report.validation is not None:
        row["validation_bound"] = report.validation.tolist()
    if report.epoch % (job.config.log_every or 1) == 0 or report.epoch == job.config.epochs:
        key = jax.random.key(0)
        models = [
            replicate_model(job.models[0], state.params, r) for r in range(job.config.replicates)
        ]
        monitored = [monitor(model, run.monitored, key) for model in models]
        row |= {name: [values[name] for values in monitored] for name in monitored[0]}
    row = _finite(row)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
    if report.epoch in run.frame_epochs:
        save_frame(run, state, report.epoch)
    return dict(_scalars(row))


def _finite(row: Any) -> Any:
    """JSON has no nan and no infinity; a replicate that has stopped has no training bound."""
    if isinstance(row, dict):
        return {name: _finite(value) for name, value in row.items()}
    if isinstance(row, list):
        return [_finite(value) for value in row]
    return row if np.isfinite(row) else None


def _scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """A line of metrics as trackers have it: name, replicate, layer."""
    yield "learning_rate", row["learning_rate"]
    for name in (name for name in row if name not in ("epoch", "step", "learning_rate")):
        for replicate, value in enumerate(row[name]):
            layers = value if isinstance(value, list) else [value]
            for layer, number in enumerate(layers, start=1):
                suffix = f"/layer_{layer}" if isinstance(value, list) else ""
                if number is not None:
                    yield f"{name}/replicate_{replicate}{suffix}", float(number)


@contextmanager
def _tensorboard(folder: Path, step: int) -> Iterator[Any]:
    from tensorboardX import SummaryWriter

    # Viewers hide what an earlier process wrote from this step on.
    with SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1) as writer:
        yield writer


def _frame_epochs(epochs: int) -> set[int]:
    return {int(epoch) for epoch in np.unique(np.round(np.geomspace(1, epochs, FRAMES)))}


def save_frame(run: _Run, state: TrainState, epoch: int) -> None:
    """What the first replicate makes of fixed prior draws and test examples."""
    model = replicate_model(run.job.models[0], state.params, 0)
    examples = run.job.dataset.test[:: max(1, len(run.job.dataset.test) // 16)][:16]
    means, reconstructions = _frame(model, jax.numpy.asarray(examples, jax.numpy.float32))
    with atomic_write(run.folder / "frames" / f"{epoch:06d}.npz") as path:
        np.savez(path, samples=means, reconstructions=reconstructions, examples=examples)


@eqx.filter_jit
def _frame(model: Model, examples: Array) -> tuple[Array, Array]:
    """Means of p(x|z) for 16 fixed prior draws, and of the reconstructions of `examples`."""
    draws, encodings = jax.random.split(jax.random.key(0))

    def reconstruct(x: Array, key: Array) -> Array:
        given, x = model.condition(x)
        return given.decode(given.posterior(x).sample(key)).mean

    def make(key: Array) -> Array:
        z, x = model.sample(key)
        return model.condition(x)[0].decode(z).mean

    samples = jax.vmap(make)
    keys = jax.random.split(encodings, len(examples))
    return samples(jax.random.split(draws, 16)), jax.vmap(reconstruct)(examples, keys)

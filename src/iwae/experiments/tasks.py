"""Tasks, and their progress as the run folders show it."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from iwae.config.experiment import TrainConfig
from iwae.config.same_experiment import differing_settings
from iwae.config.toml import read_config
from iwae.errors import UserError
from iwae.files import atomic_write, lock_file
from iwae.results.ais import Annealing
from iwae.results.reading import Known, read_bounds
from iwae.results.schema import Settings
from iwae.runs.folder import Claim
from iwae.runs.metrics import read_metrics
from iwae.runs.trained import is_trained_run, trained_model_digests


class Measure(NamedTuple):
    """A measurement of a finished run: bounds on the log-likelihoods of test examples.

    Attributes:
        ks: numbers of importance samples.
        temperatures: number for annealed importance sampling, which replaces importance sampling.
        chains: number of annealed chains per example.
        leapfrog: leapfrog steps per move.
        examples: size of a seeded random subset of the test set; None for all of it.
    """

    ks: tuple[int, ...] = (5000,)
    temperatures: int | None = None
    chains: int = 16
    leapfrog: int = 10
    examples: int | None = None

    def check(self) -> None:
        """Raise UserError for settings out of range."""
        if not self.ks:
            raise UserError("no numbers of importance samples are given; give at least one k")
        for name, value in (("k", min(self.ks)), ("examples", self.examples)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.temperatures is not None:
            Annealing(self.temperatures, self.chains, self.leapfrog).check()

    def estimators(self) -> set[str]:
        """The names of the bounds in records."""
        if self.temperatures is not None:
            return {f"AIS_{self.temperatures}"}
        return {f"L_{k}" for k in self.ks}


class Task(NamedTuple):
    """A run to train and measure.

    Attributes:
        name: its folder, relative to that of all runs.
        config: its configuration.
        measures: measurements of the trained models.
        needs: name of the task whose models it starts from, in the folder `config.init_from`.
    """

    name: str
    config: TrainConfig
    measures: tuple[Measure, ...] = (Measure(),)
    needs: str | None = None


class Status(StrEnum):
    """The state of a task, or the result of an attempt at it."""

    WAITING = "waiting"
    STOPPED = "stopped"  # in training; of an attempt: at the deadline
    TRAINED = "trained"
    DONE = "done"
    FAILED = "failed"
    IN_USE = "in use"  # by another process
    TAKEN_OVER = "taken over"  # by another process, during this attempt


class State(NamedTuple):
    """The progress of a task.

    Attributes:
        status: its state.
        epoch: epochs trained.
        reason: why it failed.
    """

    status: Status
    epoch: int = 0
    reason: str = ""


def task_state(out: Path, task: Task) -> State:
    """The progress of a task, read from its folder."""
    run = Path(out) / task.name
    epoch = max((row["epoch"] for row in read_metrics(run)), default=0)
    if _in_use(out, task):
        return State(Status.IN_USE, epoch)
    try:
        if is_done(out, task):
            return State(Status.DONE, epoch)
        trained = is_trained_run(run)
    except UserError as error:
        return State(Status.FAILED, epoch, str(error))
    if reason := read_task_failure(out, task).reason:
        return State(Status.FAILED, epoch, reason)
    begun = Status.STOPPED if (run / "config.toml").exists() else Status.WAITING
    return State(Status.TRAINED if trained else begun, epoch)


def is_done(out: Path, task: Task) -> bool:
    """Whether a task is trained and measured.

    Raises:
        UserError: if its folder holds another run, or one that cannot be read.
    """
    run = Path(out) / task.name
    check_task_folder(task, run)
    if not is_trained_run(run):
        return False
    return not any(missing_task_estimators(run, measure) for measure in task.measures)


def check_task_folder(task: Task, run: Path) -> None:
    """Raise UserError if the folder holds the run of another experiment or other seeds."""
    if not (run / "config.toml").is_file():
        return
    found = read_config(run / "config.toml")
    same_data = Path(task.config.dataset).name == Path(found.dataset).name  # files may move
    for name in ["dataset"] * (not same_data) + differing_settings(task.config, found):
        raise UserError(
            f"{run} holds another run: its {name} is {getattr(found, name)}, not "
            f"{getattr(task.config, name)}; remove it, or choose another folder"
        )


def missing_task_estimators(run: Path, measure: Measure) -> set[str]:
    """The estimators of a measure that are missing from the records of the present models."""
    digests = trained_model_digests(run, "final", read_config(run / "config.toml").replicates)
    found = {
        one.estimator
        for one in read_bounds(run, split="test", weights="final", pruned=False)
        if one.record.digests == digests
        and (one.record.subset and one.record.subset.examples) == measure.examples
        and (measure.temperatures is None or _has_settings(one, measure))
    }
    return measure.estimators() - found


def _has_settings(known: Known, measure: Measure) -> bool:
    """Whether a bound was annealed with these settings, as the longer of two runs."""
    wanted = Annealing(measure.temperatures or 0, measure.chains, measure.leapfrog).values()
    return not known.short and known.record.annealing == Settings(**wanted)


# --- locks and failures -----------------------------------------------------------------------


class InUseError(UserError):
    """Another process is working on the task."""


class TakenOverError(UserError):
    """Another process has taken the task over from this one."""


@contextmanager
def lock_task(out: Path, task: Task) -> Iterator[Claim]:
    """Lock a task against other processes.

    The lock is the file system's. A machine that was asleep or disconnected may lose it, and some
    network file systems do not enforce locks; so the file also names the owner.

    Yields:
        The claim: raises TakenOverError once another process has taken the task over.

    Raises:
        InUseError: if another process is working on it.
        UserError: if the file system has no locks.
    """
    path, owner = _queue_file(out, task, "lock"), f"{socket.gethostname()} {os.getpid()} {uuid4()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        for tries_left in (3, 2, 1, 0):  # a process that only looks holds it for an instant
            if lock_file(handle):
                break
            if not tries_left:
                raise InUseError(f"{task.name} is in use by another process")
            time.sleep(0.1)
        handle.truncate(0)
        handle.write(owner)
        handle.flush()

        def claim() -> None:
            if not path.is_file() or path.read_text(errors="replace") != owner:
                raise TakenOverError(f"another process took over {task.name}")

        yield claim


def _in_use(out: Path, task: Task) -> bool:
    """Whether another process is working on the task; leaves no trace."""
    if not _queue_file(out, task, "lock").exists():
        return False
    with _queue_file(out, task, "lock").open() as handle:
        return not lock_file(handle, fcntl.LOCK_SH)


class Failure(NamedTuple):
    """Why a task failed, and the command in which it did, if that has a name."""

    reason: str = ""
    command: str = ""


def write_task_failure(out: Path, task: Task, failure: Failure) -> None:
    """Store why a task failed, for `task_state` and other processes of the command."""
    with atomic_write(_queue_file(out, task, "failure")) as path:
        path.write_text(f"{failure.command}\n{failure.reason}")


def read_task_failure(out: Path, task: Task) -> Failure:
    """Why a task failed; an empty reason if it did not."""
    path = _queue_file(out, task, "failure")
    if not path.is_file():
        return Failure()
    command, _, reason = path.read_text(errors="replace").partition("\n")
    return Failure(reason, command)


def forget_task_failure(out: Path, task: Task) -> None:
    """Remove the stored failure of a task that is tried again."""
    _queue_file(out, task, "failure").unlink(missing_ok=True)


def _queue_file(out: Path, task: Task, kind: str) -> Path:
    return Path(out) / ".queue" / f"{task.name.replace('/', '--')}.{kind}"

"""Tasks and their progress, which is read from the run folders alone."""

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

from iwae.config.comparison import differing
from iwae.config.experiment import TrainConfig, read_config
from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.results.annealed import Annealing
from iwae.results.reading import Known, known_bounds
from iwae.results.records import known_digests
from iwae.results.schema import Settings
from iwae.runs.folder import Claim, take_lock
from iwae.runs.metrics import read_metrics
from iwae.runs.trained import is_finished


class Measure(NamedTuple):
    """Bounds on the log-likelihoods of test examples that a finished run is measured by.

    Attributes:
        ks: numbers of importance samples.
        temperatures: of annealed importance sampling, instead of importance sampling.
        chains: of annealed importance sampling.
        leapfrog: steps of its moves.
        examples: a seeded random subset of the test set instead of all of it.
    """

    ks: tuple[int, ...] = (5000,)
    temperatures: int | None = None
    chains: int = 16
    leapfrog: int = 10
    examples: int | None = None

    def check(self) -> None:
        """Raise UserError unless this can be measured."""
        if not self.ks:
            raise UserError("no number of importance samples; name at least one k")
        for name, value in (("k", min(self.ks)), ("examples", self.examples)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.temperatures is not None:
            Annealing(self.temperatures, self.chains, self.leapfrog).check()

    def estimators(self) -> set[str]:
        """The names of the bounds in the records."""
        if self.temperatures is not None:
            return {f"AIS_{self.temperatures}"}
        return {f"L_{k}" for k in self.ks}


class Task(NamedTuple):
    """A run to train and to measure.

    Attributes:
        name: of its folder.
        config: what to train.
        measures: what to measure once it is trained.
        needs: the task whose trained models it starts from; its folder is `config.init_from`.
    """

    name: str
    config: TrainConfig
    measures: tuple[Measure, ...] = (Measure(),)
    needs: str | None = None


class Status(StrEnum):
    """Where a task stands, or how an attempt at it ended."""

    WAITING = "waiting"
    STOPPED = "stopped"  # in training; of an attempt: the time is up
    TRAINED = "trained"
    DONE = "done"
    FAILED = "failed"
    IN_USE = "in use"  # by another process
    TAKEN_OVER = "taken over"  # by another process, while this one was at work


class State(NamedTuple):
    """The progress of a task.

    Attributes:
        status: where it stands.
        epoch: of the replicate that is behind the others.
        reason: why it failed.
    """

    status: Status
    epoch: int = 0
    reason: str = ""


def state_of(out: Path, task: Task) -> State:
    """The progress of a task, from its folder alone."""
    run = Path(out) / task.name
    epoch = max((row["epoch"] for row in read_metrics(run)), default=0)
    if _in_use(out, task):
        return State(Status.IN_USE, epoch)
    try:
        if is_done(out, task):
            return State(Status.DONE, epoch)
        trained = is_trained(run)
    except UserError as error:
        return State(Status.FAILED, epoch, str(error))
    if reason := read_failure(out, task).reason:
        return State(Status.FAILED, epoch, reason)
    begun = Status.STOPPED if (run / "config.toml").exists() else Status.WAITING
    return State(Status.TRAINED if trained else begun, epoch)


def is_done(out: Path, task: Task) -> bool:
    """Whether a task is trained and measured.

    Raises:
        UserError: if its folder holds another run, or one that cannot be read.
    """
    run = Path(out) / task.name
    refuse_other_run(task, run)
    return is_trained(run) and not any(unmeasured(run, measure) for measure in task.measures)


def refuse_other_run(task: Task, run: Path) -> None:
    """Raise UserError if the run in a task's folder is not the task's."""
    if not (run / "config.toml").is_file():
        return
    there = read_config(run / "config.toml")
    same_data = Path(task.config.dataset).name == Path(there.dataset).name  # files may move
    for name in ["dataset"] * (not same_data) + differing(task.config, there):
        raise UserError(
            f"{run} holds another run: its {name} is {getattr(there, name)}, not "
            f"{getattr(task.config, name)}; remove it, or choose another folder"
        )


def is_trained(run: Path) -> bool:
    """Whether the models of a run are the final ones."""
    return (run / "config.toml").is_file() and is_finished(run, read_config(run / "config.toml"))


def unmeasured(run: Path, measure: Measure) -> set[str]:
    """The estimators of a measure that the records do not have of the models as they are now."""
    digests = known_digests(run, "final", read_config(run / "config.toml").replicates)
    found = {
        one.estimator
        for one in known_bounds(run, split="test", weights="final", pruned=False)
        if one.record.digests == digests
        and (one.record.subset and one.record.subset.examples) == measure.examples
        and (measure.temperatures is None or _annealed_so(one, measure))
    }
    return measure.estimators() - found


def _annealed_so(known: Known, measure: Measure) -> bool:
    """Whether a bound is by the same annealing, and not the tenth of a longer one."""
    wanted = Annealing(measure.temperatures or 0, measure.chains, measure.leapfrog).values()
    return not known.short and known.record.annealing == Settings(**wanted)


# --- who is at work, and what went wrong ------------------------------------------------------


class InUseError(UserError):
    """Another process is at work on the task."""


class TakenOverError(UserError):
    """Another process has gone on with the task, which was this one's."""


@contextmanager
def held(out: Path, task: Task) -> Iterator[Claim]:
    """Keep other processes from the task.

    The lock is the file system's. It may be lost by a machine that was asleep or cut off, and some
    network file systems only pretend to have locks; so the file also says whose it is.

    Yields:
        The claim: raises TakenOverError once another process has gone on with the task.

    Raises:
        InUseError: if another process is at work on it.
        UserError: if the file system has no locks.
    """
    path, owner = _note(out, task, "lock"), f"{socket.gethostname()} {os.getpid()} {uuid4()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        for patience in (1, 1, 1, 0):  # one who only looks holds it for an instant
            if take_lock(handle):
                break
            if not patience:
                raise InUseError(f"{task.name} is in use by another process")
            time.sleep(0.1)
        handle.truncate(0)
        handle.write(owner)
        handle.flush()

        def claim() -> None:
            if not path.is_file() or path.read_text(errors="replace") != owner:
                raise TakenOverError(f"another process went on with {task.name}")

        yield claim


def _in_use(out: Path, task: Task) -> bool:
    """Whether another process is at work on the task; leaves no trace."""
    if not _note(out, task, "lock").exists():
        return False
    with _note(out, task, "lock").open() as handle:
        return not take_lock(handle, fcntl.LOCK_SH)


class Failure(NamedTuple):
    """Why a task failed, and in which command, if that has a name."""

    reason: str = ""
    command: str = ""


def write_failure(out: Path, task: Task, failure: Failure) -> None:
    """Keep why a task failed, for `state_of` and for other processes of the command."""
    with atomic_write(_note(out, task, "failure")) as path:
        path.write_text(f"{failure.command}\n{failure.reason}")


def read_failure(out: Path, task: Task) -> Failure:
    """Why a task failed; an empty reason if it did not."""
    path = _note(out, task, "failure")
    if not path.is_file():
        return Failure()
    command, _, reason = path.read_text(errors="replace").partition("\n")
    return Failure(reason, command)


def forget_failure(out: Path, task: Task) -> None:
    """The task is tried again."""
    _note(out, task, "failure").unlink(missing_ok=True)


def _note(out: Path, task: Task, kind: str) -> Path:
    return Path(out) / ".queue" / f"{task.name.replace('/', '--')}.{kind}"

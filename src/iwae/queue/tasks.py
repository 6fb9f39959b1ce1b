"""What is to be done, and how far it is. Nothing is kept of this but what the run folders hold."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from iwae._types import UserError, atomic_write
from iwae.config import TrainConfig, read_config
from iwae.jobs import is_finished
from iwae.measure.ordering import known_bounds, models_of
from iwae.measure.records import model_sha256


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

    def estimators(self) -> set[str]:
        """What the bounds are called in the records."""
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


class State(NamedTuple):
    """How far a task is.

    Attributes:
        word: "waiting", "stopped" (in training), "trained", "done", "failed" or "in use".
        epoch: of the replicate that is behind the others.
        reason: why it failed.
    """

    word: str
    epoch: int = 0
    reason: str = ""


def state_of(out: Path, task: Task) -> State:
    """How far a task is, from its folder alone."""
    run = Path(out) / task.name
    epoch = trained_epochs(run)
    if _in_use(out, task):
        return State("in use", epoch)
    if reason := read_failure(out, task):
        return State("failed", epoch, reason)
    if not is_trained(run):
        return State("stopped" if (run / "config.toml").exists() else "waiting", epoch)
    measured = all(is_measured(run, measure) for measure in task.measures)
    return State("done" if measured else "trained", epoch)


def is_trained(run: Path) -> bool:
    """Whether the models of a run are the final ones."""
    return (run / "config.toml").is_file() and is_finished(run, read_config(run / "config.toml"))


def trained_epochs(run: Path) -> int:
    """The last epoch in the metrics of a run; 0 before the first."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return max((row["epoch"] for row in _whole_rows(lines)), default=0)


def _whole_rows(lines: list[str]) -> Iterator[dict[str, Any]]:
    """The last lines that were written to their ends."""
    for line in lines[-2:]:
        try:
            yield json.loads(line)
        except ValueError:  # a kill cut it off
            continue


def is_measured(run: Path, measure: Measure) -> bool:
    """Whether the records of a run hold a measurement of the models as they are now."""
    config = read_config(run / "config.toml")
    digests = [model_sha256(run, "final", r) for r in range(config.replicates)]
    found = {
        one.estimator
        for one in known_bounds(run, split="test", weights="final", pruned=False)
        if models_of(one.record) == digests
        and (one.record["subset"] or {}).get("examples") == measure.examples
    }
    return measure.estimators() <= found


# --- who is at work, and what went wrong ------------------------------------------------------


class InUseError(UserError):
    """Another process is at work on the task."""


@contextmanager
def held(out: Path, task: Task) -> Iterator[None]:
    """Keep other processes from the task.

    Raises:
        InUseError: if one of them is at work on it.
    """
    path = _note(out, task, "lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(f"{task.name} is in use by another process") from error
        yield


def _in_use(out: Path, task: Task) -> bool:
    """Whether another process is at work on the task; leaves no trace."""
    if not _note(out, task, "lock").exists():
        return False
    try:
        with held(out, task):
            return False
    except InUseError:
        return True


def write_failure(out: Path, task: Task, reason: str) -> None:
    """Keep why a task failed, for `state_of`."""
    with atomic_write(_note(out, task, "failure")) as path:
        path.write_text(reason)


def read_failure(out: Path, task: Task) -> str:
    """Why a task failed; empty if it did not."""
    path = _note(out, task, "failure")
    return path.read_text() if path.is_file() else ""


def forget_failure(out: Path, task: Task) -> None:
    """The task is tried again."""
    _note(out, task, "failure").unlink(missing_ok=True)


def _note(out: Path, task: Task, kind: str) -> Path:
    return Path(out) / ".queue" / f"{task.name.replace('/', '--')}.{kind}"

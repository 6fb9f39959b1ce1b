"""The queue on this machine: train and measure tasks one after another."""

import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from iwae.errors import OUT_OF_MEMORY, UserError, is_memory_error
from iwae.experiments.tasks import (
    Failure,
    InUseError,
    Measure,
    Status,
    TakenOverError,
    Task,
    check_task_folder,
    forget_task_failure,
    is_done,
    lock_task,
    missing_task_estimators,
    read_task_failure,
    write_task_failure,
)
from iwae.results.ais import Annealing, anneal_run
from iwae.results.likelihood import evaluate_run
from iwae.results.subjects import Track
from iwae.runs.folder import Claim
from iwae.runs.measurement_progress import no_progress
from iwae.runs.shared_stages import shared_stage_candidates
from iwae.runs.start_and_resume import resume_run, start_run
from iwae.runs.stopping import Stopped
from iwae.runs.trained import is_trained_run
from iwae.training.loop import Report

KEPT = 20
"""Tasks between clearings of compiled programs: a process cannot map those of hundreds."""

Show = Callable[[Iterable[Report]], None]


def exhaust(reports: Iterable[Report]) -> None:
    """Train without showing progress."""
    for _ in reports:
        pass


class Outcome(NamedTuple):
    """The outcome of a task.

    Attributes:
        task: the task.
        status: how the attempt at it ended.
        reason: why it did not succeed.
    """

    task: Task
    status: Status
    reason: str = ""


def work(
    out: Path,
    tasks: Sequence[Task],
    *,
    data_dir: Path | None = None,
    deadline: float = math.inf,
    command: str = "",
    show: Show = exhaust,
    track: Track = no_progress,
    begin: Callable[[Task], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Work on tasks one after another; each resumes where it was stopped.

    A task that fails is reported with its reason, and the others continue. Finished work is not
    repeated. Several processes may share the folder: each takes tasks that no other is working on.

    Args:
        out: folder of all runs.
        tasks: tasks in order, each after the one that it needs.
        data_dir: folder to search first for data files.
        deadline: when to stop, by `time.monotonic`.
        command: name that the processes of one command share: a task that failed in one of them is
            not tried again by the others.
        show: exhausts the reports of a run in training.
        track: shows the progress of measurements.
        begin: called with each task before work on it.

    Raises:
        Stopped: after Ctrl-C or SIGTERM in training, once a checkpoint is written.
        KeyboardInterrupt: after Ctrl-C in a measurement, whose finished part is kept.
    """
    missing: set[str] = set()  # tasks that are not done, which others may need
    begun = 0

    def do(out: Path, task: Task) -> None:
        nonlocal begun
        if is_done(out, task):
            return
        if time.monotonic() >= deadline:
            raise Stopped(None)
        begin(task)
        begun += 1
        if begun % KEPT == 0:
            jax.clear_caches()
        do_local_task(out, task, data_dir=data_dir, deadline=deadline, show=show, track=track)

    for task in tasks:
        if task.needs in missing:
            outcome = Outcome(task, Status.WAITING, f"it starts from {task.needs}")
        elif command and (failure := read_task_failure(out, task)).command == command:
            outcome = Outcome(task, Status.FAILED, failure.reason)
        else:
            outcome = attempt_local_task(out, task, do, command)
        if outcome.status != Status.DONE:
            missing.add(task.name)
        yield outcome


def attempt_local_task(
    out: Path, task: Task, do: Callable[[Path, Task], None], command: str = ""
) -> Outcome:
    """Work on a task, and return the outcome; a failure is stored."""
    try:
        do(out, task)
    except InUseError as error:
        return Outcome(task, Status.IN_USE, str(error))
    except TakenOverError as error:
        return Outcome(task, Status.TAKEN_OVER, str(error))
    except Stopped as stopped:
        if stopped.signal_number is not None:
            raise
        return Outcome(task, Status.STOPPED, "the time is up")
    except Exception as error:  # reported and stored, so that other tasks continue
        reason = _failure_reason(error)
        try:
            write_task_failure(out, task, Failure(reason, command))
        except OSError as not_stored:
            reason += f" (which could not be stored: {not_stored})"
        return Outcome(task, Status.FAILED, reason)
    return Outcome(task, Status.DONE)


def _failure_reason(error: Exception) -> str:
    """The message of an error: one line, or the traceback of an unexpected error."""
    if is_memory_error(error):
        return OUT_OF_MEMORY
    known = isinstance(error, UserError | FloatingPointError | OSError)
    return str(error) if known else "".join(traceback.format_exception(error)).strip()


def do_local_task(
    out: Path,
    task: Task,
    *,
    data_dir: Path | None,
    deadline: float,
    show: Show,
    track: Track,
    prepare: Callable[[Task], Task] = lambda task: task,
) -> None:
    """Train a task's run and measure it, unless that is done.

    Args:
        prepare: brings existing files of the task into place, once the task is locked.

    Raises:
        UserError: for unavailable data, or if the folder holds another run.
        InUseError: if another process is working on the task.
        TakenOverError: if another process has taken it over.
        Stopped: at the deadline, or after a signal.
    """
    run = Path(out) / task.name
    with lock_task(out, task) as claim:
        task = prepare(task)
        forget_task_failure(out, task)
        check_task_folder(task, run)
        if not is_trained_run(run):
            show(_training(out, task, data_dir, deadline, claim))
        for measure in task.measures:
            if missing := missing_task_estimators(run, measure):
                _measure_missing(run, measure, missing, data_dir, _until(deadline, claim, track))


def _training(
    out: Path, task: Task, data_dir: Path | None, deadline: float, claim: Claim
) -> Iterator[Report]:
    """The reports of a run: new, from the beginning that it shares with others, or resumed."""
    run = Path(out) / task.name
    if not (run / "config.toml").is_file():
        others = shared_stage_candidates(Path(out), run)
        return start_run(task.config, run, data_dir, deadline=deadline, claim=claim, others=others)
    return resume_run(run, data_dir, deadline=deadline, claim=claim)


def _measure_missing(
    run: Path, measure: Measure, missing: set[str], data_dir: Path | None, track: Track
) -> None:
    """Measure the missing estimators; existing records are not overwritten."""
    options: Any = {"examples": measure.examples, "data_dir": data_dir, "track": track}
    if measure.temperatures is None:
        evaluate_run(run, ks=[k for k in measure.ks if f"L_{k}" in missing], **options)
    else:
        annealing = Annealing(measure.temperatures, measure.chains, measure.leapfrog)
        anneal_run(run, annealing=annealing, **options)


def _until(deadline: float, claim: Claim, track: Track) -> Track:
    """A tracker that stops a measurement at the deadline, or once another process took it over."""

    def tracked(slabs: Iterable[Any], total: int, label: str) -> Iterator[Any]:
        for slab in track(slabs, total, label):
            claim()
            yield slab
            if time.monotonic() > deadline:
                raise Stopped(None)
        claim()  # a record comes next

    return tracked

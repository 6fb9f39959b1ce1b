"""Doing what is to be done, here."""

import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from iwae.errors import OUT_OF_MEMORY, UserError, is_out_of_memory
from iwae.experiments.tasks import (
    Failure,
    InUseError,
    Measure,
    Status,
    TakenOverError,
    Task,
    forget_failure,
    held,
    is_done,
    is_trained,
    read_failure,
    refuse_other_run,
    unmeasured,
    write_failure,
)
from iwae.results.annealed import Annealing, anneal_run
from iwae.results.importance import evaluate_run
from iwae.results.records import Track, untracked
from iwae.runs.beginnings import runs_with_checkpoints
from iwae.runs.course import resume_run, start_run
from iwae.runs.folder import Claim, Stopped
from iwae.training.loop import Report

KEPT = 20
"""Tasks whose compiled programs are kept: a process may not map those of hundreds."""

Show = Callable[[Iterable[Report], Path], None]


def exhaust(reports: Iterable[Report], run: Path) -> None:  # noqa: ARG001
    """Train without showing anything."""
    for _ in reports:
        pass


class Outcome(NamedTuple):
    """The outcome of a task.

    Attributes:
        task: the task.
        status: how the attempt at it ended.
        reason: of anything but success.
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
    track: Track = untracked,
    begin: Callable[[Task], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Do the tasks one after another; each resumes where it was stopped.

    A task that fails is reported with its reason, and the others go on. What is finished is not
    done again. Several processes may work on the same folder: each takes what no other has.

    Args:
        out: the folder of all runs.
        tasks: in this order, what another one needs before it.
        data_dir: where data files are looked for first.
        deadline: when to stop, on the clock of `time.monotonic`.
        command: a name that the processes of one command share: what failed in one of them is not
            tried again by the others.
        show: exhausts the reports of a run that is being trained.
        track: shows the progress of measurements.
        begin: is told each task before anything is done.

    Raises:
        Stopped: after Ctrl-C or SIGTERM in training, once a checkpoint is written.
        KeyboardInterrupt: after Ctrl-C in a measurement, of which what was done is kept.
    """
    missing: set[str] = set()  # what others may need, and there is not
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
        do_task(out, task, data_dir=data_dir, deadline=deadline, show=show, track=track)

    for task in tasks:
        if task.needs in missing:
            outcome = Outcome(task, Status.WAITING, f"it starts from {task.needs}")
        elif command and (failure := read_failure(out, task)).command == command:
            outcome = Outcome(task, Status.FAILED, failure.reason)
        else:
            outcome = attempt(out, task, do, command)
        if outcome.status != Status.DONE:
            missing.add(task.name)
        yield outcome


def attempt(out: Path, task: Task, do: Callable[[Path, Task], None], command: str = "") -> Outcome:
    """Do a task; whatever goes wrong with it is its outcome, and is kept."""
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
    except Exception as error:  # it is told and kept, and the other tasks go on
        words = _words_of(error)
        try:
            write_failure(out, task, Failure(words, command))
        except OSError as unkept:
            words += f" (which could not be kept: {unkept})"
        return Outcome(task, Status.FAILED, words)
    return Outcome(task, Status.DONE)


def _words_of(error: Exception) -> str:
    """The message of a failure: one line, or the traceback if the program is at fault."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    known = isinstance(error, UserError | FloatingPointError | OSError)
    return str(error) if known else "".join(traceback.format_exception(error)).strip()


def do_task(
    out: Path,
    task: Task,
    *,
    data_dir: Path | None = None,
    deadline: float = math.inf,
    show: Show = exhaust,
    track: Track = untracked,
    prepare: Callable[[Task], Task] = lambda task: task,
) -> None:
    """Train what is not trained, and measure what is not measured.

    Args:
        prepare: puts what there is of the task in its place, once no other process can.

    Raises:
        UserError: for data that cannot be had, or a run in the folder that is another one.
        InUseError: if another process is at work on the task.
        TakenOverError: if another process has gone on with it.
        Stopped: at the deadline, or after a signal.
    """
    run = Path(out) / task.name
    with held(out, task) as claim:
        task = prepare(task)
        forget_failure(out, task)
        refuse_other_run(task, run)
        if not is_trained(run):
            show(_training(out, task, data_dir, deadline, claim), run)
        for measure in task.measures:
            if missing := unmeasured(run, measure):
                _measure(run, measure, missing, data_dir, _until(deadline, claim, track))


def _training(
    out: Path, task: Task, data_dir: Path | None, deadline: float, claim: Claim
) -> Iterator[Report]:
    """The run from its beginning, or from what it shares with others, or where it was stopped."""
    run = Path(out) / task.name
    if not (run / "config.toml").is_file():
        others = runs_with_checkpoints(Path(out), run)
        return start_run(task.config, run, data_dir, deadline=deadline, claim=claim, others=others)
    return resume_run(run, data_dir, deadline=deadline, claim=claim)


def _measure(
    run: Path, measure: Measure, missing: set[str], data_dir: Path | None, track: Track
) -> None:
    """Measure what the records lack; existing records are not overwritten."""
    about: Any = {"examples": measure.examples, "data_dir": data_dir, "track": track}
    if measure.temperatures is None:
        evaluate_run(run, ks=[k for k in measure.ks if f"L_{k}" in missing], **about)
    else:
        annealing = Annealing(measure.temperatures, measure.chains, measure.leapfrog)
        anneal_run(run, annealing=annealing, **about)


def _until(deadline: float, claim: Claim, track: Track) -> Track:
    """A tracker that ends the measurement when its time is up, or when another process does it.

    What is done is kept.
    """

    def tracked(slabs: Iterable[Any], total: int, label: str) -> Iterator[Any]:
        for slab in track(slabs, total, label):
            claim()
            yield slab
            if time.monotonic() > deadline:
                raise Stopped(None)
        claim()  # a record comes next

    return tracked

"""`iwae sweep`, and the work of all queues: many runs, in sequence or on many machines."""

import dataclasses
import math
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from iwae.cli import parsing
from iwae.cli.interrupts import Terminated, sigterm_as_ctrl_c
from iwae.cli.jax_setup import cores_for_jax, set_up_jax
from iwae.errors import UserError
from iwae.wording import count_in_words

if TYPE_CHECKING:
    from iwae.experiments.local import Outcome
    from iwae.experiments.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueueOptions:
    """Options shared by all queues."""

    out: Path
    """Folder for all runs. Existing results are kept and not computed again."""
    budget: str | None = None
    """Stop cleanly after this time, e.g. 2h, 90m or 1h30m; repeat the command to resume (default:
    no limit)."""
    dry_run: bool = False
    """Print what would be done, with the estimated training time."""
    workers: int = 1
    """here: processes that divide the runs, each with its share of the cores."""
    engine: Literal["here", "ray"] = "here"
    """Run on this machine, or on a Ray cluster."""
    address: str | None = None
    """ray: address of the cluster, e.g. auto (default: start one on this machine)."""
    scratch: Path | None = None
    """ray: working folder on machines that do not share --out; results return through Ray."""
    cpus: int = 1
    """ray: CPU cores per run."""
    gpus: float = 0.0
    """ray: GPUs per run."""
    data_dir: parsing.DataDir = None
    quiet: parsing.Quiet = False


def refuse_queue_options(options: Any, names: Collection[str], rule: str) -> None:
    """Raise UserError for the first of these options that is not at its default."""
    for field in dataclasses.fields(options):
        if field.name in names and getattr(options, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')} {rule}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(QueueOptions):
    """Train and measure every combination of the lists in an experiment file.

    A file with `k = [1, 5, 50]` and `seed = [0, 1, 2]` defines three runs of three seeds each.
    """

    file: tyro.conf.Positional[Path]
    """The experiment file (TOML)."""
    out: Path
    """Folder for all runs. Existing results are kept and not computed again."""
    k: tuple[int, ...] = (5000,)
    """Importance samples for the test log-likelihood, one number or several."""
    examples: int | None = None
    """Measure a seeded random subset of this many test examples (default: all)."""
    ais: int | None = None
    """Also measure by annealed importance sampling, with this many temperatures, e.g. 500."""


def sweep_command(arguments: Sequence[str]) -> int:
    """`iwae sweep`."""
    options = parsing.parse(Sweep, "sweep", arguments)
    set_up_jax()
    from iwae.experiments.sweep import read_sweep
    from iwae.experiments.tasks import Measure

    measures = [Measure(options.k, examples=options.examples)]
    if options.ais is not None:
        measures.append(Measure(temperatures=options.ais, examples=options.examples))
    for measure in measures:
        measure.check()
    check_queue_out(options.out)
    tasks = read_sweep(options.file, options.out, tuple(measures))
    return work(options, tasks, ["sweep", *arguments])


def work(options: Any, tasks: Sequence["Task"], arguments: Sequence[str]) -> int:
    """Run the tasks, or print what would be done; returns the exit status.

    Args:
        arguments: the command line, which worker processes repeat.
    """
    _check_options(options)
    budget = math.inf if options.budget is None else parse_queue_budget(options.budget)
    if options.dry_run:
        return _print_plan(options, tasks)
    _check_writable(options.out)
    from iwae.experiments.tasks import Status
    from iwae.runs.stopping import Stopped

    command, deadline = os.environ.get(COMMAND) or uuid.uuid4().hex, time.monotonic() + budget
    failed = 0
    try:
        with sigterm_as_ctrl_c():
            if options.workers > 1:
                _run_processes(options, tasks, arguments, command)
            for outcome in _outcomes(options, tasks, deadline, command):
                reason = f": {outcome.reason}" if outcome.reason else ""
                print(f"{outcome.task.name}: {outcome.status}{reason}", flush=True)
                failed += outcome.status == Status.FAILED
    except (Stopped, KeyboardInterrupt) as stopped:
        status = getattr(stopped, "status", 143 if isinstance(stopped, Terminated) else 130)
        print("stopped; repeat the command to resume", file=sys.stderr)
        return status
    return parsing.FAILURE if failed else 0


def _check_options(options: Any) -> None:
    """Raise UserError for options that are invalid or contradict each other."""
    if options.engine != "ray":
        refuse_queue_options(options, {"address", "scratch", "cpus", "gpus"}, "needs --engine ray")
    if options.cpus < 1 or options.gpus < 0:
        raise UserError(
            f"--cpus is {options.cpus} and --gpus {options.gpus:g}; choose at least 1 and 0"
        )
    if options.engine == "ray":
        refuse_queue_options(options, {"workers"}, "needs --engine here; a Ray cluster has its own")
    cores = len(cores_for_jax())
    if not 1 <= options.workers <= cores:
        raise UserError(f"--workers is {options.workers}; choose 1 to {cores}, the number of cores")


def check_queue_out(out: Path) -> None:
    """Raise UserError if the folder for the runs is a file."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the runs")


def _check_writable(out: Path) -> None:
    """Raise UserError unless runs can be written to a folder, which is created if necessary."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out} cannot be created ({error.strerror}); name another --out"
        ) from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"{out} is not writable; name another --out")


COMMAND = "IWAE_COMMAND"
"""Environment variable with the name that the processes of one command share."""


def _run_processes(
    options: Any, tasks: Sequence["Task"], arguments: Sequence[str], command: str
) -> None:
    """Run the tasks in several processes, and wait for them.

    Each process takes tasks that no other is working on. They leave tasks that start from one in
    use to the caller.
    """
    cores = cores_for_jax()
    shares = [cores[i :: options.workers] for i in range(options.workers)]
    # Of a repeated option, the last counts.
    line = [sys.executable, "-m", "iwae", *arguments, "--workers", "1", "--quiet"]
    processes = [
        subprocess.Popen(  # noqa: S603 - ourselves
            line,
            env={**os.environ, COMMAND: command, "JAX_NUM_CPU_DEVICES": str(len(share))},
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # so that Ctrl-C reaches this process only, which ends them
        )
        for share in shares
    ]
    last = time.monotonic()
    try:
        for process, share in zip(processes, shares, strict=True):
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(process.pid, share)
        while any(process.poll() is None for process in processes):
            time.sleep(0.2)
            if not options.quiet and time.monotonic() - last > PROGRESS_SECONDS:
                last = time.monotonic()
                _print_progress(options.out, tasks)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


PROGRESS_SECONDS = 30.0
"""Seconds between progress lines of the worker processes."""


def _print_progress(out: Path, tasks: Sequence["Task"]) -> None:
    """Print the epochs of the tasks that a process is working on."""
    from iwae.experiments.tasks import Status, task_state

    for task in tasks:
        if (state := task_state(out, task)).status == Status.IN_USE:
            epochs = f"epoch {state.epoch:,} of {task.config.epochs:,}"
            print(f"{task.name}: {epochs}", file=sys.stderr, flush=True)


def _outcomes(
    options: Any, tasks: Sequence["Task"], deadline: float, command: str
) -> Iterator["Outcome"]:
    """The outcomes of the tasks, in the order in which they end."""
    from iwae.experiments import local
    from iwae.experiments.cluster import work_on_ray
    from iwae.runs.measurement_progress import measurement_progress
    from iwae.training.progress import show_training

    shared = {"data_dir": options.data_dir, "deadline": deadline}
    if options.engine == "ray":
        return work_on_ray(
            options.out,
            tasks,
            address=options.address,
            scratch=options.scratch,
            cpus=options.cpus,
            gpus=options.gpus,
            **shared,
        )

    def begin(task: "Task") -> None:
        if not options.quiet:
            print(f"{task.name} ({tasks.index(task) + 1} of {len(tasks)})", file=sys.stderr)

    return local.work(
        options.out,
        tasks,
        command=command,
        show=partial(show_training, quiet=options.quiet),
        track=measurement_progress(quiet=options.quiet),
        begin=begin,
        **shared,
    )


def _print_plan(options: Any, tasks: Sequence["Task"]) -> int:
    """Print what would be done; returns the exit status."""
    from iwae.experiments.costs import cost_hours, cost_in_words
    from iwae.experiments.tasks import Status, task_state

    total = 0.0
    for task in tasks:
        state, cost = task_state(options.out, task), cost_hours(task.config)
        if cost is not None:
            trained = state.status in (Status.TRAINED, Status.DONE)
            cost *= 0.0 if trained else 1 - state.epoch / task.config.epochs
            total += cost
        seeds = count_in_words(task.config.replicates, "seed")
        print(
            f"{task.name:44} {state.status:8} {seeds:8} {cost_in_words(cost):>9} of training left"
        )
    print(
        f"{count_in_words(len(tasks), 'run')}, {cost_in_words(total)} of training, where the costs "
        "are known"
    )
    return 0


def parse_queue_budget(text: str) -> float:
    """Convert a time such as 2h, 90m, 1h30m or 45s to seconds.

    Raises:
        UserError: for anything else.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if found is None or not text:
        raise UserError(f"{text!r} is not a time: give one such as 2h, 90m or 1h30m")
    hours, minutes, rest = (float(number or 0) for number in found.groups())
    return 3600 * hours + 60 * minutes + rest

"""`iwae reproduce` and `iwae sweep`: many runs, in sequence or on many machines."""

import dataclasses
import math
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from iwae.cli import parsing
from iwae.cli.evaluate import Terminated, sigterm_as_ctrl_c
from iwae.config.presets import cells as matching_cells
from iwae.config.presets import with_baselines
from iwae.errors import UserError, counted

if TYPE_CHECKING:
    from iwae.experiments.cells import Wanted
    from iwae.experiments.local import Outcome
    from iwae.experiments.table import Cell
    from iwae.experiments.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Working:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce(Working):
    """Reproduce published tables, cell by cell: train, measure, and compare.

    Actions:

    - list: the cells, with the published number, ours if there is one, and the training time
    - run: train and measure cells, e.g. `run table1/mnist/1l/vae-k1 --seeds 5 --budget 2h`
    - status: progress of the cells
    - table: our numbers beside the published ones, from the records
    """

    action: Annotated[
        Literal["list", "run", "status", "table"],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="{list,run,status,table}"),
    ]
    """Action; see above."""
    cells: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[CELL ...]")
    ] = ()
    """Names, prefixes or patterns of cells: table1/mnist, 'table1/*/k50' (default: all)."""
    out: Path = Path("results")
    """Folder for all runs. Existing results are kept and not computed again."""
    recipe: Literal["published", "fast"] = "published"
    """Train as published, or with our fast recipe for the same model and objective."""
    seeds: int = 1
    """Number of seeds per cell, from 0."""
    epochs_scale: float = 1.0
    """Scale all schedules by this factor in (0, 1], for a trial run and not a reproduction."""
    ais: int | None = None
    """Also measure by annealed importance sampling, with this many temperatures, e.g. 500."""
    examples: int = 1000
    """Size of the seeded random subset of test examples to anneal; with --ais."""
    format: Literal["markdown", "latex", "html"] = "markdown"
    """Format of the table."""


_OF_ACTIONS = (
    ({field.name for field in dataclasses.fields(Working)} - {"out"}, ("run",)),
    ({"ais", "examples"}, ("run", "status")),
    ({"format"}, ("table",)),
)
"""Options -> the actions that they go with; all others go with every action."""


def reproduce(arguments: Sequence[str]) -> int:
    """`iwae reproduce`."""
    options = parsing.parse(Reproduce, "reproduce", arguments, hidden=_ignored(arguments))
    cells = matching_cells(options.cells or ("*",), options.recipe)
    if options.action == "run" and not options.cells:
        raise UserError("name the cells to run; `iwae reproduce list` lists them")
    parsing.set_up_jax()
    from iwae.experiments.cells import Wanted, plan
    from iwae.experiments.table import read_cells

    annealed = {"temperatures": options.ais, "examples": options.examples}
    wanted = Wanted(options.seeds, options.epochs_scale, **annealed)
    wanted.check()
    _check_out(options)
    _check_action(options)
    if options.action in ("list", "table"):
        cells = with_baselines(cells) if options.action == "table" else cells
        return _results(options, read_cells(options.out, cells, wanted), wanted)
    if options.action == "status":
        return _status(options, plan(options.out, cells, wanted))
    return _work(options, plan(options.out, cells, wanted), ["reproduce", *arguments])


def _ignored(arguments: Sequence[str]) -> set[str]:
    """The options that an action ignores, where its help is wanted."""
    action = next((word for word in arguments if word in ("list", "run", "status", "table")), None)
    if action is None or not {"-h", "--help"} & set(arguments):
        return set()
    return {name for names, actions in _OF_ACTIONS if action not in actions for name in names}


def _check_action(options: Any) -> None:
    """Raise UserError for an option that the action would ignore."""
    for names, actions in _OF_ACTIONS:
        if options.action not in actions:
            _refuse(options, names, f"goes with these actions: {', '.join(actions)}")
    if options.ais is None:
        _refuse(options, {"examples"}, "is the number of examples to anneal: it needs --ais")


def _refuse(options: Any, names: Collection[str], rule: str) -> None:
    """Raise UserError for the first of these options that is not at its default."""
    for field in dataclasses.fields(options):
        if field.name in names and getattr(options, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')} {rule}")


def _results(options: Any, cells: Sequence["Cell"], wanted: "Wanted") -> int:
    """Print the results of cells; name those that cannot be read at the end."""
    from iwae.config.presets import FAST, PRESETS
    from iwae.experiments.table import read_cells, table

    if options.action == "table":
        names = [FAST + cell.name for cell in cells if FAST + cell.name in PRESETS]
        fast = read_cells(options.out, names, wanted)
        print(table(cells, wanted, options.format, fast), end="", flush=True)
        cells = [*cells, *fast]
    else:
        print("\n".join(_listed(cell, wanted) for cell in cells), flush=True)
    troubles = [cell.trouble for cell in cells if cell.trouble]
    for trouble in troubles:
        print(f"iwae: {trouble}", file=sys.stderr)
    return parsing.FAILURE if troubles else 0


def _listed(cell: "Cell", wanted: "Wanted") -> str:
    """A line of the list of cells."""
    from iwae.experiments.costs import hours

    published = "-" if cell.entry.nll is None else f"{cell.entry.nll:.2f}"
    ours = "-" if cell.nll is None else f"{cell.nll:.2f}"
    config = cell.entry.config(epochs=wanted.epochs(cell.entry), replicates=wanted.seeds)
    if cell.trouble:
        ours = "cannot be read"
    elif wanted.epochs_scale < 1 or cell.is_shortened:
        ours += " (shortened: no reproduction)"
    return (
        f"{cell.name:36} published {published:>7}  ours {ours:>7}  {_time(hours(config)):>9}  "
        f"{cell.entry.source}"
    )


def _time(hours: float | None) -> str:
    from iwae.experiments.table import duration

    return "-" if hours is None else duration(hours)


def _status(options: Any, tasks: Sequence["Task"]) -> int:
    """Print the progress of tasks; those that have not started only if they are named."""
    from iwae.experiments.tasks import Status, state_of

    states = [(task, state_of(options.out, task)) for task in tasks]
    shown = [one for one in states if options.cells or one[1].status != Status.WAITING]
    for task, state in shown:
        words = f"epoch {state.epoch:,} of {task.config.epochs:,}"
        reason = f"  {state.reason.splitlines()[-1]}" if state.reason else ""
        print(f"{task.name:44} {state.status:8} {words}{reason}")
    if not shown:
        print(f"no run has started in {options.out}")
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Working):
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


def sweep(arguments: Sequence[str]) -> int:
    """`iwae sweep`."""
    options = parsing.parse(Sweep, "sweep", arguments)
    parsing.set_up_jax()
    from iwae.experiments.sweep import read_sweep
    from iwae.experiments.tasks import Measure

    measures = [Measure(options.k, examples=options.examples)]
    if options.ais is not None:
        measures.append(Measure(temperatures=options.ais, examples=options.examples))
    for measure in measures:
        measure.check()
    _check_out(options)
    tasks = read_sweep(options.file, options.out, tuple(measures))
    return _work(options, tasks, ["sweep", *arguments])


# --- working --------------------------------------------------------------------------------


def _work(options: Any, tasks: Sequence["Task"], words: Sequence[str]) -> int:
    """Do the tasks, or print what would be done; returns the exit status."""
    _check(options)
    if options.dry_run:
        return _plan(options, tasks)
    _check_writable(options.out)
    from iwae.experiments.tasks import Status
    from iwae.runs.folder import Stopped

    command = os.environ.get(COMMAND) or uuid.uuid4().hex
    deadline = math.inf if options.budget is None else time.monotonic() + seconds(options.budget)
    failed = 0
    try:
        with sigterm_as_ctrl_c():
            if options.workers > 1:
                _share_out(options, tasks, words, command)
            for outcome in _outcomes(options, tasks, deadline, command):
                reason = f": {outcome.reason}" if outcome.reason else ""
                print(f"{outcome.task.name}: {outcome.status}{reason}", flush=True)
                failed += outcome.status == Status.FAILED
    except (Stopped, KeyboardInterrupt) as stopped:
        status = getattr(stopped, "status", 143 if isinstance(stopped, Terminated) else 130)
        print("stopped; repeat the command to resume", file=sys.stderr)
        return status
    return parsing.FAILURE if failed else 0


def _check(options: Any) -> None:
    """Raise UserError for options that are invalid or contradict each other."""
    if options.budget is not None:
        seconds(options.budget)
    if options.engine != "ray":
        _refuse(options, _RAY, "needs --engine ray")
    if options.cpus < 1 or options.gpus < 0:
        raise UserError(
            f"--cpus is {options.cpus} and --gpus {options.gpus:g}; choose at least 1 and 0"
        )
    if options.engine == "ray":
        _refuse(options, {"workers"}, "needs --engine here; a Ray cluster has its own")
    cores = len(parsing.cores())
    if not 1 <= options.workers <= cores:
        raise UserError(f"--workers is {options.workers}; choose 1 to {cores}, the number of cores")


_RAY = {"address", "scratch", "cpus", "gpus"}


def _check_out(options: Any) -> None:
    """Raise UserError if the folder for the runs is a file."""
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out} is a file; name a folder for the runs")


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
"""Environment variable that identifies the processes of one command to each other."""


def _share_out(options: Any, tasks: Sequence["Task"], words: Sequence[str], command: str) -> None:
    """Run the tasks in several processes, and wait for them.

    Each takes tasks that no other is working on. The caller does the tasks that they leave because
    these start from one that another process was working on.
    """
    cores = parsing.cores()
    shares = [cores[i :: options.workers] for i in range(options.workers)]
    line = [sys.executable, "-m", "iwae", *words, "--workers", "1", "--quiet"]  # the last counts
    processes = [
        subprocess.Popen(  # noqa: S603 - ourselves
            line,
            env={**os.environ, COMMAND: command, "JAX_NUM_CPU_DEVICES": str(len(share))},
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches this process only, which ends them
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
            if not options.quiet and time.monotonic() - last > TELL_SECONDS:
                last = time.monotonic()
                _tell(options, tasks)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


TELL_SECONDS = 30.0
"""Seconds between progress lines of the worker processes."""


def _tell(options: Any, tasks: Sequence["Task"]) -> None:
    """Print the tasks that the processes are working on."""
    from iwae.experiments.tasks import Status, state_of

    for task in tasks:
        if (state := state_of(options.out, task)).status == Status.IN_USE:
            words = f"epoch {state.epoch:,} of {task.config.epochs:,}"
            print(f"{task.name}: {words}", file=sys.stderr, flush=True)


def _outcomes(
    options: Any, tasks: Sequence["Task"], deadline: float, command: str
) -> Iterator["Outcome"]:
    """The outcomes of the tasks, as they finish."""
    from iwae.experiments.cluster import work_on_ray
    from iwae.experiments.local import work
    from iwae.runs.progress import tracker
    from iwae.training.progress import show_training

    about = {"data_dir": options.data_dir, "deadline": deadline}
    if options.engine == "ray":
        return work_on_ray(
            options.out,
            tasks,
            address=options.address,
            scratch=options.scratch,
            cpus=options.cpus,
            gpus=options.gpus,
            **about,
        )

    def show(reports: Any, run: Path) -> None:  # noqa: ARG001
        show_training(reports, quiet=options.quiet)

    def begin(task: "Task") -> None:
        if not options.quiet:
            print(f"{task.name} ({tasks.index(task) + 1} of {len(tasks)})", file=sys.stderr)

    track = tracker(quiet=options.quiet)
    return work(options.out, tasks, command=command, show=show, track=track, begin=begin, **about)


def _plan(options: Any, tasks: Sequence["Task"]) -> int:
    """Print what would be done; returns the exit status."""
    from iwae.experiments.costs import hours
    from iwae.experiments.tasks import Status, state_of

    total = 0.0
    for task in tasks:
        state, cost = state_of(options.out, task), hours(task.config)
        if cost is not None:
            trained = state.status in (Status.TRAINED, Status.DONE)
            cost *= 0.0 if trained else 1 - state.epoch / task.config.epochs
            total += cost
        seeds = counted(task.config.replicates, "seed")
        print(f"{task.name:44} {state.status:8} {seeds:8} {_time(cost):>9} of training left")
    print(f"{counted(len(tasks), 'run')}, {_time(total)} of training, where the costs are known")
    return 0


def seconds(words: str) -> float:
    """Convert a time such as 2h, 90m, 1h30m or 45s to seconds.

    Raises:
        UserError: for anything else.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+)m)?(?:(\d+)s)?", words)
    if found is None or not words:
        raise UserError(f"{words!r} is not a time: give one such as 2h, 90m or 1h30m")
    hours, minutes, rest = (float(number or 0) for number in found.groups())
    return 3600 * hours + 60 * minutes + rest

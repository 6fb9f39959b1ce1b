"""`iwae reproduce`: cells of published tables."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from iwae.cli import parsing
from iwae.cli.jax_setup import set_up_jax
from iwae.cli.queue import QueueOptions, check_queue_out, refuse_queue_options, work
from iwae.config.presets import FAST, PRESETS, preset_cells, presets_with_baselines
from iwae.errors import UserError

if TYPE_CHECKING:
    from iwae.experiments.cell_results import Cell
    from iwae.experiments.cells import Wanted
    from iwae.experiments.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce(QueueOptions):
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


RESTRICTED = (
    ({field.name for field in dataclasses.fields(QueueOptions)} - {"out"}, ("run",)),
    ({"ais", "examples"}, ("run", "status")),
    ({"format"}, ("table",)),
)
"""Options, and the only actions that use them; every action uses all others."""


def reproduce_command(arguments: Sequence[str]) -> int:
    """`iwae reproduce`."""
    options = parsing.parse(Reproduce, "reproduce", arguments, hidden=_ignored(arguments))
    cells = preset_cells(options.cells or ("*",), options.recipe)
    if options.action == "run" and not options.cells:
        raise UserError("name the cells to run; `iwae reproduce list` lists them")
    set_up_jax()
    from iwae.experiments.cell_results import read_cell_results
    from iwae.experiments.cells import Wanted, plan_cells

    annealed = {"temperatures": options.ais, "examples": options.examples}
    wanted = Wanted(options.seeds, options.epochs_scale, **annealed)
    wanted.check()
    check_queue_out(options.out)
    _check_action(options)
    if options.action in ("list", "table"):
        cells = presets_with_baselines(cells) if options.action == "table" else cells
        return _print_results(options, read_cell_results(options.out, cells, wanted), wanted)
    if options.action == "status":
        return _print_status(options, plan_cells(options.out, cells, wanted))
    return work(options, plan_cells(options.out, cells, wanted), ["reproduce", *arguments])


def _ignored(arguments: Sequence[str]) -> set[str]:
    """The options that an action ignores, if its help is requested."""
    action = next((word for word in arguments if word in ("list", "run", "status", "table")), None)
    if action is None or not {"-h", "--help"} & set(arguments):
        return set()
    return {name for names, actions in RESTRICTED if action not in actions for name in names}


def _check_action(options: Any) -> None:
    """Raise UserError for an option that the action would ignore."""
    for names, actions in RESTRICTED:
        if options.action not in actions:
            refuse_queue_options(options, names, f"goes with these actions: {', '.join(actions)}")
    if options.ais is None:
        refuse_queue_options(
            options, {"examples"}, "is the number of examples to anneal: it needs --ais"
        )


def _print_results(options: Any, cells: Sequence["Cell"], wanted: "Wanted") -> int:
    """Print the results of cells, and at the end why some cannot be read."""
    from iwae.experiments.cell_results import cell_results_table, read_cell_results

    if options.action == "table":
        names = [FAST + cell.name for cell in cells if FAST + cell.name in PRESETS]
        fast = read_cell_results(options.out, names, wanted)
        print(cell_results_table(cells, wanted, options.format, fast), end="", flush=True)
        cells = [*cells, *fast]
    else:
        print("\n".join(_list_line(cell, wanted) for cell in cells), flush=True)
    errors = [cell.error for cell in cells if cell.error]
    for error in errors:
        print(f"iwae: {error}", file=sys.stderr)
    return parsing.FAILURE if errors else 0


def _list_line(cell: "Cell", wanted: "Wanted") -> str:
    """A line of the list of cells."""
    from iwae.experiments.costs import cost_hours, cost_in_words

    published = "-" if cell.entry.nll is None else f"{cell.entry.nll:.2f}"
    ours = "-" if cell.nll is None else f"{cell.nll:.2f}"
    config = cell.entry.config(epochs=wanted.epochs(cell.entry), replicates=wanted.seeds)
    if cell.error:
        ours = "cannot be read"
    elif wanted.epochs_scale < 1 or cell.is_shortened:
        ours += " (shortened: no reproduction)"
    return (
        f"{cell.name:36} published {published:>7}  ours {ours:>7}  "
        f"{cost_in_words(cost_hours(config)):>9}  {cell.entry.source}"
    )


def _print_status(options: Any, tasks: Sequence["Task"]) -> int:
    """Print the progress of tasks; omit those that have not started, unless cells are named."""
    from iwae.experiments.tasks import Status, task_state

    states = [(task, task_state(options.out, task)) for task in tasks]
    started = [one for one in states if options.cells or one[1].status != Status.WAITING]
    for task, state in started:
        epochs = f"epoch {state.epoch:,} of {task.config.epochs:,}"
        reason = f"  {state.reason.splitlines()[-1]}" if state.reason else ""
        print(f"{task.name:44} {state.status:8} {epochs}{reason}")
    if not started:
        print(f"no run has started in {options.out}")
    return 0

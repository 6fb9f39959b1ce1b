"""The tables of the page. Every number comes from a record."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from iwae.config.experiment import TrainConfig
from iwae.config.same_experiment import published_nll
from iwae.errors import UserError
from iwae.objectives.declaration import ALL_OPTIONS, OBJECTIVES
from iwae.reports.estimates_row import Row, estimates_row
from iwae.reports.page.page_runs import (
    Run,
    page_run_annealing,
    page_run_khat_share,
    page_run_verdicts,
    page_runs_by_test_set,
)
from iwae.results.compare import compare_models
from iwae.results.formatting import (
    UNRELIABLE,
    format_errors,
    format_minus,
    format_short_path,
    plus_minus,
)
from iwae.results.reading import Estimate


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        text: the text; "" if nothing is known.
        value: the key by which the column is sorted.
        note: smaller text below.
        alarm: whether the cell is highlighted as a warning.
    """

    text: str = ""
    value: float | str | None = None
    note: str = ""
    alarm: bool = False


class Column(NamedTuple):
    """A column of the comparison: its title, an explanation, and a cell for each run."""

    title: str
    hint: str
    cells: list[Cell]
    numeric: bool = True


def page_comparison_table(runs: Sequence[Run]) -> list[Column]:
    """The columns of the table of all runs, without empty ones."""
    bounds = {name: one for run in runs for name, one in run.bounds.items()}
    hint = "Mean bound on log p(x) ± standard error, nats per example; higher is better."
    column = partial(_column_of, runs)
    columns = [
        column("data", "", _data_cell, False),
        column("objective", "", _objective_cell, False),
        column("gradient", "Where it is not the objective's own.", _gradient_cell, False),
        column("layers", "Sizes of the latent layers, nearest the data first.", _layers_cell),
        column("epochs", "", _epochs_cell),
        column("seeds", "", _seeds_cell),
        *(
            Column(name, hint, [_bound_cell(run.bounds.get(name)) for run in runs])
            for name in sorted(bounds, key=lambda name: bounds[name].rank)
        ),
        column("true log p(x)", "Of the distribution that made the data.", _truth_cell),
        column("active units", "Of each layer; means over the seeds.", _active_cell),
        column("published NLL", "What the paper reports of this experiment.", _published_cell),
        column("annealing", "The verdict on the longest annealing run.", _verdict_cell, False),
        column("k̂ too large", "Share of examples with unreliable weights.", _khat_cell),
    ]
    return [column for column in columns if any(cell.text for cell in column.cells)]


def _column_of(
    runs: Sequence[Run], title: str, hint: str, cell: Callable[[Run], Cell], numeric: bool = True
) -> Column:
    return Column(title, hint, [cell(run) for run in runs], numeric)


def _bound_cell(bound: Estimate | None) -> Cell:
    if bound is None:
        return Cell()
    digits = 2 if bound.record.true_log_likelihood is None else 4
    mean, stderr = bound.quoted
    notes = [f"n = {bound.examples}", *format_errors(bound.row, digits + 1)]
    if bound.spread is not None:
        notes.append(f"sd of seeds {bound.spread:.{digits}f}")
    text = format_minus(plus_minus(mean, stderr, digits))
    return Cell(text, mean, "\n".join(notes), alarm=mean is None)


def _data_cell(run: Run) -> Cell:
    name = format_short_path(run.config.dataset)
    return Cell(name, name)


def _layers_cell(run: Run) -> Cell:
    config = run.config
    sizes = config.sizes()[0]
    note = "of " + " + ".join(map(str, sizes))
    if config.latents is not None:
        note += f" ({', '.join(config.latents)})"
    if config.network != "mlp" or config.blocks:
        note += "\n" + " ".join([config.network, *map(str, config.channels or ())])
        note += f", {config.blocks} residual blocks" if config.blocks else ""
    for name in ("prior", "posterior"):
        if (value := getattr(config, name)) != "normal":
            note += f"\n{name} {value}"
    return Cell(str(len(sizes)), len(sizes), note)


def _objective_cell(run: Run) -> Cell:
    config = run.config.final()
    options = [
        f"{name.replace('_', ' ')} {value}"
        for name in ALL_OPTIONS
        if (value := getattr(config, name)) not in (None, 0)
    ]
    text = f"{config.objective}, k = {config.k}"
    if run.config.stages:
        options.append(f"the last of {len(run.config.stages)} stages")
    return Cell(text, text, ", ".join(options))


def _gradient_cell(run: Run) -> Cell:
    config = run.config.final()
    own = OBJECTIVES[config.objective].gradients[0]
    name = config.declaration().gradient or own
    return Cell() if name == own else Cell(name, name)


def _epochs_cell(run: Run) -> Cell:
    trained = {one.epoch for record in run.records for one in record.models if one.epoch}
    trained = trained or {row["epoch"] for row in run.metrics[-1:]}
    if not trained:
        return Cell(note=f"of {run.config.epochs:,}")
    note = "" if trained == {run.config.epochs} else f"of {run.config.epochs:,}"
    return Cell("/".join(f"{epoch:,}" for epoch in sorted(trained)), max(trained), note)


def _seeds_cell(run: Run) -> Cell:
    return Cell(str(run.config.replicates), run.config.replicates)


def _field_of_widest(run: Run, name: str) -> Any:
    """A field of the record with the most examples; None without records."""
    record = max(run.records, key=lambda record: record.n, default=None)
    return None if record is None else getattr(record, name)


def _truth_cell(run: Run) -> Cell:
    truth = _field_of_widest(run, "true_log_likelihood")
    return Cell() if truth is None else Cell(format_minus(f"{truth:.4f}"), truth)


def _active_cell(run: Run) -> Cell:
    units = _field_of_widest(run, "active_units")
    return Cell("+".join(f"{count:g}" for count in units), sum(units)) if units else Cell()


def _published_cell(run: Run) -> Cell:
    latent, hidden = run.config.sizes()
    sizes = {"latent_sizes": list(latent), "hidden_sizes": [list(one) for one in hidden]}
    text = published_nll(run.config.model_dump(mode="json") | sizes)
    if text == "-":
        return Cell()
    number, _, about = text.partition(" ")
    return Cell(number, float(number), about.strip("()"))


def _verdict_cell(run: Run) -> Cell:
    bound = page_run_annealing(run)
    found = page_run_verdicts(bound) if bound else []
    text = " / ".join(dict.fromkeys(one.word for one in found))
    return Cell(text, text or None, alarm=not all(one.converged for one in found))


def _khat_cell(run: Run) -> Cell:
    found = page_run_khat_share(run)
    if found is None:
        return Cell()
    bound, share = found
    return Cell(f"{share:.0%}", share, f"of {bound.name}", alarm=share >= UNRELIABLE)


# --- paired differences and estimates on the same examples ----------------------------------


class Table(NamedTuple):
    """A plain table with its caption."""

    caption: str
    columns: list[Cell]
    rows: list[list[Cell]]


def difference_tables(runs: Sequence[Run]) -> list[Table]:
    """Paired differences to the first run, for each test set that runs share."""
    groups = [
        [run for run in group if not run.stale and run.bounds]
        for group in page_runs_by_test_set(runs).values()
    ]
    tables = (_differences_table(group) for group in groups if len(group) > 1)
    return [table for table in tables if table is not None]


def _differences_table(runs: Sequence[Run]) -> Table | None:
    columns: dict[Cell, dict[str, Cell]] = {}
    for name in runs[0].bounds:
        measured = [run for run in runs if name in run.bounds]
        if len(measured) < 2:
            continue
        try:
            record = compare_models([(run.path, run.weights) for run in measured], estimator=name)
        except UserError:
            continue  # not comparable
        first, *others = record["runs"]
        cells = [Cell(_mean_text(first)), *map(_difference_cell, others)]
        names = [run.name for run in measured]
        note = f"n = {record['n']:,}" + (", a subset" if record["subset"] else "")
        columns[Cell(name, note=note)] = dict(zip(names, cells, strict=True))
    if not columns:
        return None
    rows = [
        [Cell(run.name), *(column.get(run.name, Cell()) for column in columns.values())]
        for run in runs
    ]
    return Table(f"Difference to {runs[0].name}", [Cell("run"), *columns], rows)


def _mean_text(row: Mapping[str, Any]) -> str:
    return format_minus(plus_minus(row["log_likelihood"], row["stderr"]))


def _difference_cell(row: Mapping[str, Any]) -> Cell:
    if row["difference"] is None:
        return Cell("not finite", alarm=True)
    text = plus_minus(row["difference"], row["difference_stderr"], sign="+")
    chance = [] if row["significant"] else ["may be chance"]
    return Cell(format_minus(text), note="\n".join([*chance, f"mean {_mean_text(row)}"]))


def page_estimates_table(runs: Sequence[Run]) -> Table | None:
    """All bounds of the annealed runs, each row on the same examples."""
    current = [run for run in runs if not run.stale]
    rows = list(filter(None, (estimates_row(run.path, run.name, run.weights) for run in current)))
    if not rows:
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Table(
        "Nats per example, each row on the same examples",
        [Cell(name) for name in columns],
        [[_estimate_cell(row, name) for name in columns] for row in rows],
    )


def _estimate_cell(row: Row, name: str) -> Cell:
    text = row.get(name, "-")
    if name == "run" or text == "-":
        return Cell(text.removeprefix("-") if text == "-" else text)
    text, _, note = format_minus(text).partition(" (")  # the number of temperatures is in brackets
    return Cell(text, note=note.removesuffix(")"))


# --- configurations -------------------------------------------------------------------------


def configuration_table(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Each key, its value in each run, and whether the values differ."""
    configs = [run.config.model_dump(mode="json") for run in runs]
    rows = []
    for key in TrainConfig.model_fields:
        values = [_option_text(config[key]) for config in configs]
        if any(values):
            rows.append((key, values, len(set(values)) > 1))
    return rows


def _option_text(value: Any) -> str:
    """A value as written on the command line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(
            ",".join(map(str, one)) if isinstance(one, list) else str(one) for one in value
        )
    return format_short_path(value)

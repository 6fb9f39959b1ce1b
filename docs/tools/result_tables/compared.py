"""Cells beside the baseline that they are compared with."""

from pathlib import Path

from iwae.config.presets import matching, presets_with_baselines
from iwae.config.same_experiment import differing_settings
from iwae.config.toml import read_config
from iwae.experiments.cell_means import Annealed
from iwae.experiments.cell_results import Cell, read_cell_result
from iwae.experiments.cells import Wanted, cell_folder, cell_runs
from iwae.experiments.costs import cost_in_words
from iwae.reports.estimates_row import Row
from iwae.results.formatting import plus_minus
from iwae.results.reading import read_records
from iwae.results.record_files import refuse_damaged_record
from iwae.results.schema import Method
from result_tables.tables import markdown


def compared_table(results: Path, cells: str) -> str:
    """Markdown: a row for each measured cell of some, and of their baselines.

    Patterns are as for `iwae reproduce`, with commas. Empty columns are omitted.
    """
    names = presets_with_baselines(matching(cells.split(",")))
    found = [read_cell_result(results, name, Wanted()) for name in names]
    rows = [_row(results, cell) for cell in found if cell.nll is not None]
    if not rows:
        return "No cell of these has been measured yet.\n"
    empty = [column for column in rows[0] if not any(row[column] for row in rows)]
    return markdown({k: v for k, v in row.items() if k not in empty} for row in rows)


def _row(results: Path, cell: Cell) -> Row:
    """One row; unmeasured values are empty."""
    config = cell.entry.config()
    return {
        "cell": cell.name,
        "prior": "" if config.kinds()[-1].is_discrete else config.prior,
        "NLL (L_5000), nats": plus_minus(
            cell.nll, cell.stderr, 2, spread=cell.spread, of=f" of {cell.seeds} seeds"
        ),
        "other errors": cell.others,
        "AIS - L_5000": _annealed(cell.annealed),
        "gap between both sides": _sides(results, cell.name),
        "trained otherwise": ", ".join(_otherwise(results, cell)),
        "active units": "+".join(f"{count:.3g}" for count in cell.active),
        "epochs": f"{cell.epochs:,}",
        "training": "" if cell.hours is None else cost_in_words(cell.hours),
    }


def _otherwise(results: Path, cell: Cell) -> list[str]:
    """The settings, besides the prior, in which a cell's runs differ from its baseline's."""
    if cell.entry.beside is None:
        return []
    ours, theirs = (
        [read_config(run / "config.toml") for run in cell_runs(results, Path(name))]
        for name in (cell.name, cell.entry.beside)
    )
    found = {name for one in ours for other in theirs for name in differing_settings(other, one)}
    return sorted(found - _FREE)


_FREE = {"prior", "seed", "replicates"}
"""Settings in which a cell and its baseline must differ, or may."""


def _annealed(found: Annealed | None) -> str:
    """The annealed log-likelihood minus L_5000, nats."""
    if found is None:
        return ""
    return plus_minus(found.gap, found.error or None, 2, sign="+")


def _sides(results: Path, name: str) -> str:
    """The gap between a lower and an upper bound on test examples, from the first record."""
    for run in cell_runs(results, cell_folder(name, Wanted())):
        for _, record in read_records(run, (Method.SANDWICH,), refuse_damaged_record):
            if record.split == "test" and record.weights == "final" and not record.pruned:
                settings = f"T = {record.annealing.temperatures}, {record.n:,} images"
                return f"{plus_minus(*record.models[0].mean('gap'))} ({settings})"
    return ""

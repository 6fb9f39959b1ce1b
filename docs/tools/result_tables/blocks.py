"""Marked blocks of Markdown files, filled from the records of a results folder."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import tyro

from iwae.config.presets import FAST, PRESETS, matching
from iwae.errors import UserError
from iwae.experiments.cell_results import Cell, cell_results_table, read_cell_result
from iwae.experiments.cells import Wanted
from iwae.experiments.costs import cost_in_words
from iwae.files import atomic_write
from iwae.results.formatting import plus_minus
from result_tables import experiments, gradients, likelihoods, objectives, own_data, speed
from result_tables.compared import compared_table
from result_tables.tables import markdown


def cells_table(results: Path, cells: str) -> str:
    """Markdown: cells of published tables; patterns as for `iwae reproduce`, with commas."""
    ours, fast = _both(results, cells)
    return cell_results_table(ours, Wanted(), fast=fast.values())


def run_cells_table(results: Path, cells: str) -> str:
    """Markdown: a row for each schedule, published or fast, by which one of some cells was run."""
    published, fast = _both(results, cells)
    rows = [
        _run_row(cell.name, schedule, one)
        for cell in published
        for schedule, one in (("published", cell), ("fast recipe", fast.get(cell.name)))
        if one is not None and one.nll is not None
    ]
    return markdown(rows)


def _run_row(name: str, schedule: str, cell: Cell) -> dict[str, str]:
    """The row of a cell that was run."""
    seeds = [] if cell.spread is None else [f"sd of {cell.seeds} seeds {cell.spread:.2f}"]
    active = "+".join(f"{count:.3g}" for count in cell.active)
    published = "+".join(map(str, cell.entry.active))
    return {
        "cell": name,
        "schedule": f"{schedule}, {cell.epochs:,} epochs",
        "published": plus_minus(cell.entry.nll, None, 2),
        "NLL": plus_minus(cell.nll, cell.stderr, 2),
        "other errors": "; ".join(words for words in (cell.others, *seeds) if words),
        "active units": f"{active} ({published})" if published else active,
        "time": "" if cell.hours is None else cost_in_words(cell.hours),
    }


def _both(results: Path, cells: str) -> tuple[list[Cell], dict[str, Cell]]:
    """Cells as published, and by their fast recipes under the same names."""
    names = matching(cells.split(","))
    ours = [read_cell_result(results, name, Wanted()) for name in names]
    fast = {n: read_cell_result(results, FAST + n, Wanted()) for n in names if FAST + n in PRESETS}
    return ours, fast


BLOCKS: dict[str, Callable[[Path], str]] = {
    "likelihoods": likelihoods.likelihood_table,
    "estimates": likelihoods.estimates_table,
    "objectives-digits": partial(objectives.objectives_table, name="digits"),
    "objectives-mnist": partial(objectives.objectives_table, name="mnist"),
    "labels": experiments.labels_table,
    "networks-digits": partial(objectives.objectives_table, name="networks"),
    "kinds-digits": partial(objectives.objectives_table, name="kinds"),
    "differences": objectives.differences_table,
    "protocols": objectives.protocols_table,
    "costs": speed.costs_table,
    "aiwae-step": speed.aiwae_table,
    "densities": experiments.densities_table,
    "speed": speed.speed_table,
    "time-to-nll": speed.training_table,
    "whole-trainings": speed.whole_training_table,
    "recipes": experiments.recipes_table,
    "resampling": gradients.resampling_table,
    "schedules": speed.schedules_table,
    "large-files": speed.memory_table,
    "large-csv": speed.csv_table,
    "prior-step": speed.priors_table,
    "sides": likelihoods.sides_table,
    "queue": speed.queue_table,
    "imputation": experiments.imputation_table,
    "hide": own_data.hide_table,
    "own-densities": own_data.own_densities_table,
    "own-imputations": own_data.own_imputations_table,
}
"""Name of a marked block -> its table; those with an argument are in `_TABLES`."""

_TABLES = {
    "cells": cells_table,
    "run-cells": run_cells_table,
    "compared-cells": compared_table,
    "slopes": gradients.slopes_table,
}
"""Blocks with an argument, such as `cells:NAME` -> their tables of cells, or of one run."""


def fill_blocks(text: str, results: Path) -> str:
    """The text with all marked blocks rewritten from the records."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        kind, _, cells = name.partition(":")
        if kind in _TABLES and cells:
            made = _TABLES[kind](results, cells)
        elif name in BLOCKS:
            made = BLOCKS[name](results)
        else:
            raise UserError(
                f"no block {name!r}; known: {', '.join([*BLOCKS, *(f'{t}:NAME' for t in _TABLES)])}"
            )
        return f"<!-- results:{name} -->\n{made}<!-- /results:{name} -->"

    return re.sub(r"<!-- results:(\S+) -->\n.*?<!-- /results:\1 -->", fill, text, flags=re.DOTALL)


ROOT = Path(__file__).parents[3]


def main(
    results: tyro.conf.Positional[Path] = ROOT / "results", *files: tyro.conf.Positional[Path]
) -> None:
    """Rewrite the blocks of Markdown files; by default, of all pages of this repository."""
    if not results.is_dir():
        raise UserError(f"there is no folder {results}: give one of records")
    pages = (ROOT / "README.md", ROOT / "results" / "README.md", *sorted(ROOT.glob("docs/*.md")))
    for path in files or pages:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        with atomic_write(path) as temporary:
            temporary.write_text(fill_blocks(path.read_text(), results))

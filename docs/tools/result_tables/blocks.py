"""Marked blocks of Markdown files, filled from the records of a results folder."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from iwae.config.presets import FAST, PRESETS, matching
from iwae.errors import UserError
from iwae.experiments.cells import Wanted
from iwae.experiments.table import Cell, duration, read_cell, table
from iwae.files import atomic_write
from iwae.results.text import plus_minus
from result_tables.compared import compared_table
from result_tables.experiments import densities_table, imputation_table, labels_table, recipes_table
from result_tables.hide import hide_table
from result_tables.likelihoods import estimates_table, likelihood_table, sides_table
from result_tables.objectives import differences_table, objectives_table, protocols_table
from result_tables.own_data import own_densities_table, own_imputations_table
from result_tables.resampling import resampling_table
from result_tables.slopes import slopes_table
from result_tables.speed import (
    aiwae_table,
    costs_table,
    csv_table,
    memory_table,
    priors_table,
    queue_table,
    schedules_table,
    speed_table,
    training_table,
)
from result_tables.tables import markdown


def cells_table(results: Path, cells: str) -> str:
    """Markdown: cells of published tables, named as `iwae reproduce` names them and with commas."""
    ours, fast = _both(results, cells)
    return table(ours, Wanted(), fast=fast.values())


def run_cells_table(results: Path, cells: str) -> str:
    """Markdown: a line for each of some cells that was run, by either schedule."""
    ours, fast = _both(results, cells)
    both = [(cell, fast.get(cell.name)) for cell in ours]
    rows = [
        (cell.name, way, one)
        for cell, its in both
        for way, one in zip(WAYS, (cell, its), strict=True)
    ]
    return markdown(_line(name, way, one) for name, way, one in rows if one and one.nll is not None)


WAYS = ("published", "fast recipe")


def _line(name: str, way: str, cell: Cell) -> dict[str, str]:
    seeds = [] if cell.spread is None else [f"sd of {cell.seeds} seeds {cell.spread:.2f}"]
    active = "+".join(f"{count:.3g}" for count in cell.active)
    published = "+".join(map(str, cell.entry.active))
    return {
        "cell": name,
        "schedule": way,
        "published": plus_minus(cell.entry.nll, None, 2),
        "NLL": plus_minus(cell.nll, cell.stderr, 2),
        "other errors": "; ".join(words for words in (cell.others, *seeds) if words),
        "active units": f"{active} ({published})" if published else active,
        "time": "" if cell.hours is None else duration(cell.hours),
    }


def _both(results: Path, cells: str) -> tuple[list[Cell], dict[str, Cell]]:
    """Cells as published, and by their fast recipes under the same names."""
    names = matching(cells.split(","))
    ours = [read_cell(results, name, Wanted()) for name in names]
    fast = {n: read_cell(results, FAST + n, Wanted()) for n in names if FAST + n in PRESETS}
    return ours, fast


BLOCKS: dict[str, Callable[[Path], str]] = {
    "likelihoods": likelihood_table,
    "estimates": estimates_table,
    "objectives-digits": partial(objectives_table, name="digits"),
    "objectives-mnist": partial(objectives_table, name="mnist"),
    "labels": labels_table,
    "networks-digits": partial(objectives_table, name="networks"),
    "kinds-digits": partial(objectives_table, name="kinds"),
    "differences": differences_table,
    "protocols": protocols_table,
    "costs": costs_table,
    "aiwae-step": aiwae_table,
    "densities": densities_table,
    "speed": speed_table,
    "time-to-nll": training_table,
    "recipes": recipes_table,
    "resampling": resampling_table,
    "schedules": schedules_table,
    "large-files": memory_table,
    "large-csv": csv_table,
    "prior-step": priors_table,
    "sides": sides_table,
    "queue": queue_table,
    "imputation": imputation_table,
    "hide": hide_table,
    "own-densities": own_densities_table,
    "own-imputations": own_imputations_table,
}
"""Name of a marked block -> its table, for all but those of `_TABLES`."""

_TABLES = {
    "cells": cells_table,
    "run-cells": run_cells_table,
    "compared-cells": compared_table,
    "slopes": slopes_table,
}
"""Blocks such as `cells:NAME`: of all cells of that name, those that were run, or one run."""


def fill_blocks(text: str, results: Path) -> str:
    """The text with every marked block made anew from the records."""

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


def main(results: str | Path = ROOT / "results", *files: str | Path) -> None:
    """Rewrite the blocks of Markdown files; by default, of all pages of this repository."""
    pages = (ROOT / "README.md", ROOT / "results" / "README.md", *sorted(ROOT.glob("docs/*.md")))
    for file in files or pages:
        path = Path(file)
        if not path.is_file():
            raise UserError(f"no file {path} whose blocks could be filled")
        with atomic_write(path) as temporary:
            temporary.write_text(fill_blocks(path.read_text(), Path(results)))

"""Marked blocks of Markdown files, filled from the records of a results folder."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from iwae._types import UserError, atomic_write
from iwae.presets import FAST, PRESETS, matching
from iwae.report.experiments import (
    densities_table,
    imputation_table,
    labels_table,
    recipes_table,
)
from iwae.report.likelihoods import estimates_table, likelihood_table
from iwae.report.objectives import differences_table, objectives_table, protocols_table
from iwae.report.speed import aiwae_table, costs_table, queue_table, speed_table
from iwae.reproduce import Wanted, read_cell, table


def cells_table(results: Path, cells: str, *, run_only: bool = False) -> str:
    """Markdown: cells of published tables, named as `iwae reproduce` names them and with commas.

    Args:
        run_only: leave out what was run neither as published nor by a fast recipe.
    """
    wanted, names = Wanted(), matching(cells.split(","))
    fast = [FAST + name for name in names if FAST + name in PRESETS]
    ours, theirs = ([read_cell(results, n, wanted) for n in some] for some in (names, fast))
    if run_only:
        known = {c.name.removeprefix(FAST) for c in (*ours, *theirs) if c.nll is not None}
        ours = [cell for cell in ours if cell.name in known]
    return table(ours, wanted, fast=theirs)


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
    "recipes": recipes_table,
    "queue": queue_table,
    "imputation": imputation_table,
}
"""What a marked block is filled with; `cells:NAME` and `cells-run:NAME` are tables of cells."""


def fill_blocks(text: str, results: Path) -> str:
    """The text with every marked block made anew from the records."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        kind, _, cells = name.partition(":")
        if kind in ("cells", "cells-run") and cells:
            made = cells_table(results, cells, run_only=kind == "cells-run")
        elif name in BLOCKS:
            made = BLOCKS[name](results)
        else:
            raise UserError(
                f"no block {name!r}; known: {', '.join(BLOCKS)}, cells:NAME, cells-run:NAME"
            )
        return f"<!-- results:{name} -->\n{made}<!-- /results:{name} -->"

    return re.sub(r"<!-- results:(\S+) -->\n.*?<!-- /results:\1 -->", fill, text, flags=re.DOTALL)


def main(results: str = "results", *files: str) -> None:
    """Rewrite the blocks of Markdown files: `python -m iwae.report results README.md`."""
    for file in files or ("README.md",):
        path = Path(file)
        if not path.is_file():
            raise UserError(f"no file {path} whose blocks could be filled")
        with atomic_write(path) as temporary:
            temporary.write_text(fill_blocks(path.read_text(), Path(results)))

"""Marked blocks of Markdown files, filled from the records of a results folder."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from iwae._types import UserError, atomic_write
from iwae.presets import matching
from iwae.report.experiments import densities_table, imputation_table, labels_table
from iwae.report.likelihoods import estimates_table, likelihood_table
from iwae.report.objectives import differences_table, objectives_table, protocols_table
from iwae.report.resampling import resampling_table
from iwae.report.speed import aiwae_table, costs_table, queue_table, speed_table
from iwae.reproduce import Wanted, read_cell, table


def cells_table(results: Path, cells: str) -> str:
    """Markdown: cells of published tables, named as `iwae reproduce` names them and with commas."""
    wanted, names = Wanted(), matching(cells.split(","))
    return table([read_cell(results, name, wanted) for name in names], wanted)


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
    "resampling": resampling_table,
    "queue": queue_table,
    "imputation": imputation_table,
}
"""What a marked block is filled with; `cells:NAME` is a table of these cells."""


def fill_blocks(text: str, results: Path) -> str:
    """The text with every marked block made anew from the records."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        kind, _, cells = name.partition(":")
        if kind == "cells" and cells:
            made = cells_table(results, cells)
        elif name in BLOCKS:
            made = BLOCKS[name](results)
        else:
            raise UserError(f"no block {name!r}; known: {', '.join(BLOCKS)}, cells:NAME")
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

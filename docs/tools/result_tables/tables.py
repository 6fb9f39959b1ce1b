"""Runs, records and Markdown for all tables."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from iwae.errors import UserError
from iwae.reports.estimates_row import Row
from iwae.results.formatting import plus_minus
from iwae.results.reading import Known, read_bounds
from iwae.results.summaries import summarise_replicates

OBJECTIVES_FOLDER, LABELS_FOLDER = "objectives", "labels"
"""Folders of the records of `experiments/objectives.py` and `experiments/labels.py`."""

_APART = {OBJECTIVES_FOLDER, LABELS_FOLDER}


def runs_in(results: Path) -> list[Path]:
    """The folders of all runs, except comparisons of objectives or labels and unfinished ones."""
    found = sorted(path.parent for path in Path(results).rglob("config.toml"))
    parts = [(run, run.relative_to(results).parts) for run in found]
    return [
        run
        for run, names in parts
        if names[0] not in _APART and not any(name.startswith(".") for name in names)
    ]


def runs_of(table: Path) -> dict[str, list[Known]]:
    """The bounds of each measured run of a comparison, loosest first, by the run's name."""
    runs = sorted(path.parent for path in table.glob("*/config.toml"))
    return {run.name: known for run in runs if (known := final_bounds(run))}


def final_bounds(run: Path) -> list[Known]:
    """The bounds of a run's final models on test examples, loosest first."""
    return read_bounds(run, split="test", weights="final", pruned=False)


def markdown(rows: Iterable[Row], if_none: str = "") -> str:
    """Rows as a Markdown table; columns in the order of their first appearance.

    Raises:
        UserError: with the text `if_none`, if that is given and there are no rows.
    """
    rows = list(rows)
    if if_none and not rows:
        raise UserError(if_none)
    return tabulate(rows, "keys", "github", disable_numparse=True, missingval="") + "\n"


def benchmark(results: Path, name: str, command: str = "") -> Any:
    """The record of a script in `benchmarks/`, or of another command; UserError without one."""
    path = Path(results) / "benchmarks" / f"{name}.json"
    if not path.is_file():
        command = command or f"benchmarks/{name}.py --json {path}"
        raise UserError(f"no record {path}: python {command}")
    return json.loads(path.read_text())


def mean_and_spread(one: Known) -> str:
    """The mean over examples and seeds, its standard error, and the deviation between seeds."""
    mean, error, spread = summarise_replicates(one.values).values()
    return plus_minus(mean, error, 2, spread=spread)

"""What all tables share."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from iwae.errors import UserError
from iwae.reports.estimates import Row
from iwae.results.reading import Known
from iwae.results.records import summary_over_replicates
from iwae.results.text import plus_minus

OBJECTIVES_FOLDER, LABELS_FOLDER = "objectives", "labels"
"""Where `experiments/objectives.py` and `experiments/labels.py` keep their records."""

_APART = {OBJECTIVES_FOLDER, LABELS_FOLDER}


def runs_in(results: Path) -> list[Path]:
    """The folders of all runs, but for those that were made to compare objectives or labels."""
    found = sorted(path.parent for path in Path(results).rglob("config.toml"))
    parts = [(run, run.relative_to(results).parts) for run in found]
    return [run for run, names in parts if not _is_hidden(names) and names[0] not in _APART]


def _is_hidden(names: Sequence[str]) -> bool:
    """Whether a folder is one that a kill left half made."""
    return any(name.startswith(".") for name in names)


def markdown(rows: Iterable[Row], if_none: str = "") -> str:
    """Rows as a Markdown table; columns in the order of their first appearance.

    Raises:
        UserError: says `if_none`, if that is given and there are no rows.
    """
    rows = list(rows)
    if if_none and not rows:
        raise UserError(if_none)
    return tabulate(rows, "keys", "github", disable_numparse=True, missingval="") + "\n"


def benchmark(results: Path, name: str) -> Any:
    """The record of a script in `benchmarks/`; UserError if there is none."""
    path = Path(results) / "benchmarks" / f"{name}.json"
    if not path.is_file():
        raise UserError(f"no record {path}: run benchmarks/{name}.py --json {path}")
    return json.loads(path.read_text())


def mean_and_spread(one: Known) -> str:
    """Mean over examples and seeds, its standard error, and the deviation between seeds."""
    mean, error, spread = summary_over_replicates(one.values).values()
    return plus_minus(mean, error, 2, spread=spread)

"""Records of `experiments/resampling.py`: ways of drawing the few particles of a gradient."""

import json
from pathlib import Path
from typing import Any

from iwae.errors import UserError
from iwae.results.text import plus_minus
from result_tables.tables import Row, markdown


def resampling_table(results: Path) -> str:
    """Markdown: what each way of drawing S particles adds to a gradient's variance, and its worth.

    A cell has the added variance in shares of the full gradient's own, and in brackets variance
    times seconds of the gradient through S particles over that of the full one.
    """
    path = Path(results) / "benchmarks" / "resampling.json"
    if not path.is_file():
        raise UserError(f"no record {path}: python experiments/resampling.py")
    cells = json.loads(path.read_text())["cells"]
    cells.sort(key=lambda cell: (cell["run"], cell["gradient"] != "reparam", cell["k"]))
    return markdown(row for cell in cells for row in _rows(cell))


def _rows(cell: dict[str, Any]) -> list[Row]:
    """A line for each way of drawing."""
    rows: dict[str, Row] = {}
    for few in cell["few"]:
        what = {"model": cell["run"], "gradient": cell["gradient"], "k": str(cell["k"])}
        row = rows.setdefault(few["draw"], {**what, "draw": few["draw"]})
        added = plus_minus(few["relative"], few["relative_stderr"])
        row[f"S = {few['backward']}"] = f"{added} ({few['variance_times_seconds']:.2f})"
    return list(rows.values())

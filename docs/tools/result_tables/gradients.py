"""Records about gradients: `experiments/resampling.py` and `iwae gradients`."""

from pathlib import Path
from typing import Any

from iwae.reports.estimates_row import Row
from iwae.results.formatting import plus_minus
from iwae.results.gradient_signal import gradient_signal_powers
from iwae.results.reading import read_records
from iwae.results.record_files import refuse_damaged_record
from iwae.results.schema import Method, Record
from result_tables.tables import benchmark, markdown


def resampling_table(results: Path) -> str:
    """Markdown: the variance that each scheme of drawing S particles adds to a gradient.

    A cell has the added variance relative to that of the full gradient, and in brackets variance
    times seconds of the gradient through S particles relative to the full one.
    """
    cells = benchmark(results, "resampling", "experiments/resampling.py")["cells"]
    cells.sort(key=lambda cell: (cell["run"], cell["gradient"] != "reparam", cell["k"]))
    return markdown(row for cell in cells for row in _draw_rows(cell))


def _draw_rows(cell: dict[str, Any]) -> list[Row]:
    """A row for each scheme."""
    rows: dict[str, Row] = {}
    setting = {"model": cell["run"], "gradient": cell["gradient"], "k": str(cell["k"])}
    for few in cell["few"]:
        row = rows.setdefault(few["draw"], {**setting, "draw": few["draw"]})
        added = plus_minus(few["relative"], few["relative_stderr"])
        row[f"S = {few['backward']}"] = f"{added} ({few['variance_times_seconds']:.2f})"
    return list(rows.values())


def slopes_table(results: Path, run: str) -> str:
    """Markdown: the power of k by which signal over noise grows, with the error of the draws.

    There is a row for each objective and estimator of a run, and a column for each group of
    parameters. Cells whose signal is lost in noise are empty.
    """
    found = read_records(Path(results) / run, (Method.GRADIENTS,), refuse_damaged_record)
    rows = [row for _, record in found for row in _slope_rows(record)]
    return markdown(rows, f"{results}/{run} holds no record of iwae gradients")


def _slope_rows(record: Record) -> list[Row]:
    ks = [row.k for row in record.rows if row.k >= record.slope_from]
    by_group = gradient_signal_powers(record.slopes)
    names = dict.fromkeys(name for powers in by_group.values() for name in powers)
    return [
        {
            "objective": str(record.objective),
            "gradient": name,
            "k": f"{min(ks)} to {max(ks)}",
            **{
                group: plus_minus(*powers[name], 2, sign="+") if name in powers else ""
                for group, powers in by_group.items()
            },
        }
        for name in names
    ]

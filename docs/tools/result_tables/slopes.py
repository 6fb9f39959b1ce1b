"""Records of `iwae gradients`: how signal over noise grows with the number of particles."""

from pathlib import Path

from iwae.reports.estimates import Row
from iwae.results.reading import read_records
from iwae.results.schema import Method, Record
from iwae.results.signal import signal_powers
from iwae.results.store import refuse_damage
from iwae.results.text import plus_minus
from result_tables.tables import markdown


def slopes_table(results: Path, run: str) -> str:
    """Markdown: a line for each objective and estimator of a run, and a column for each group.

    Powers of k with the error of the draws; empty where the signal is lost in noise.
    """
    found = read_records(Path(results) / run, (Method.GRADIENTS,), refuse_damage)
    rows = [row for _, record in found for row in _rows(record)]
    return markdown(rows, f"{results}/{run} holds no record of iwae gradients")


def _rows(record: Record) -> list[Row]:
    ks = [row.k for row in record.rows if row.k >= record.slope_from]
    by_group = signal_powers(record.slopes)
    names = dict.fromkeys(name for of_group in by_group.values() for name in of_group)
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

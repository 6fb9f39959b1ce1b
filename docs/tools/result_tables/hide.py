"""The record of `benchmarks/hide.py`: values hidden in training, for rows that later have gaps."""

from pathlib import Path

import numpy as np

from iwae.results.text import plus_minus
from result_tables.tables import benchmark, markdown


def hide_table(results: Path) -> str:
    """Markdown: errors of imputed values, and likelihoods against no hidden values, by share.

    ± is the standard error over seeds.
    """
    rows = []
    for name, seeds in benchmark(results, "hide")["results"].items():
        for share in next(iter(seeds.values())):
            errors, leads = (
                np.array([found[share][key] for found in seeds.values()])
                for key in ("error", "lead")
            )
            lead = "" if float(share) == 0 else plus_minus(*_mean(leads), 2, sign="+")
            row = {"table": name, "hidden": f"{float(share):.0%}", "seeds": len(seeds)}
            rows.append({**row, "error": plus_minus(*_mean(errors), 3), "nats per row": lead})
    return markdown(rows)


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    """The mean and its standard error, which one seed does not have."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return float(values.mean()), error

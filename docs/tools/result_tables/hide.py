"""The record of `benchmarks/hide.py`: values hidden in training, for rows that later have gaps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iwae.results.text import plus_minus
from result_tables.tables import benchmark, markdown


def hide_table(results: Path) -> str:
    """Markdown: errors of imputed values and likelihoods by share, against no hidden values.

    ± is the standard error of the mean difference over seeds.
    """
    return markdown(
        {"table": name, "hidden": f"{float(share):.0%}", "seeds": len(seeds), **_row(seeds, share)}
        for name, seeds in benchmark(results, "hide")["results"].items()
        for share in next(iter(seeds.values()))
    )


def _row(seeds: Mapping[str, Any], share: str) -> dict[str, str]:
    """One share of one table."""
    each = list(seeds.values())
    errors = np.array([found[share]["error"] for found in each])
    against = errors - [found["0.0"]["error"] for found in each]
    leads = np.array([found[share]["lead"] for found in each])
    changes = {
        "change": plus_minus(*_mean(against), 3, sign="+"),
        "nats per row": plus_minus(*_mean(leads), 2, sign="+"),
    }
    return {"error": f"{errors.mean():.3f}", **(changes if float(share) else {})}


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    """The mean and its standard error, which one seed does not have."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return float(values.mean()), error

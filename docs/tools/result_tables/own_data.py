"""Records of `benchmarks/own_data.py` and `benchmarks/hide.py`: models of a user's own tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iwae.results.formatting import plus_minus
from result_tables.tables import benchmark, markdown

SIMPLE = ("Gaussian", "independent")
"""The densities without latents, of which each table has one."""


def own_densities_table(results: Path) -> str:
    """Markdown: held-out log-likelihoods of `iwae train`'s defaults, and their lead over others.

    ± is the standard error of the mean difference over the rows of all test sets.
    """
    rows = []
    for name, found in benchmark(results, "own_data")["results"].items():
        each = found["densities"]
        leads = {
            method: plus_minus(one["lead"], one["lead_stderr"], 2, sign="+")
            for method, one in each.items()
            if method != "iwae"
        }
        simple = next(method for method in SIMPLE if method in each)
        against = "a Gaussian" if simple == "Gaussian" else "independent columns"
        rows.append(
            {
                "table": name,
                "rows x columns": f"{found['rows']:,} x {found['columns']}",
                "splits": str(found["splits"]),
                "nats per row": f"{each['iwae']['nats']:.2f}",
                "above the estimator": leads.get("estimator", ""),
                "above a density without latents": f"{leads[simple]} ({against})",
            }
        )
    return markdown(rows)


def own_imputations_table(results: Path) -> str:
    """Markdown: root mean squared errors of hidden numbers by method, in standard deviations.

    Brackets have the error of `iwae` minus that of the method, with the standard error over rows.
    """
    rows = []
    for name, found in benchmark(results, "own_data")["results"].items():
        row = {"table": name}
        for method, one in found["imputations"].items():
            change = plus_minus(one["change"], one["change_stderr"], sign="+")
            row[method] = f"{one['error']:.3f}" + f" ({change})" * (method != "iwae")
        rows.append(row)
    return markdown(rows)


def hide_table(results: Path) -> str:
    """Markdown: errors of imputed values, and likelihoods, by the share of values hidden.

    Differences are to no hidden values; ± is the standard error of their mean over seeds.
    """
    return markdown(
        {"table": name, "hidden": f"{float(share):.0%}", "seeds": len(seeds)} | _cells(seeds, share)
        for name, seeds in benchmark(results, "hide")["results"].items()
        for share in next(iter(seeds.values()))
    )


def _cells(seeds: Mapping[str, Any], share: str) -> dict[str, str]:
    """The cells of one share of one table."""
    each = list(seeds.values())
    errors = np.array([found[share]["error"] for found in each])
    against = errors - [found["0.0"]["error"] for found in each]
    leads = np.array([found[share]["lead"] for found in each])
    changes = {
        "change": plus_minus(*_mean_and_error(against), 3, sign="+"),
        "nats per row": plus_minus(*_mean_and_error(leads), 2, sign="+"),
    }
    return {"error": f"{errors.mean():.3f}", **(changes if float(share) else {})}


def _mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """The mean and its standard error; None for one seed."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
    return float(values.mean()), error

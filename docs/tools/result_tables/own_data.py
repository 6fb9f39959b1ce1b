"""The record of `benchmarks/own_data.py`: tables of one's own against simple rivals."""

from pathlib import Path

from iwae.results.text import plus_minus
from result_tables.tables import benchmark, markdown

SIMPLE = ("Gaussian", "independent")
"""The densities without latents; a table has one of them."""


def own_densities_table(results: Path) -> str:
    """Markdown: held-out log-likelihoods of `iwae train`'s defaults, and their lead over others.

    ± is the standard error of the mean difference between the rows of all test sets.
    """
    rows = []
    for name, found in benchmark(results, "own_data")["results"].items():
        each = found["densities"]
        leads = {
            way: plus_minus(one["lead"], one["lead_stderr"], 2, sign="+")
            for way, one in each.items()
            if way != "iwae"
        }
        simple = next(way for way in SIMPLE if way in each)
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
    """Markdown: root mean squared errors of hidden numbers by each way, in standard deviations.

    In brackets, how far that of `iwae` is from it, with the standard error over rows.
    """
    rows = []
    for name, found in benchmark(results, "own_data")["results"].items():
        each = found["imputations"]
        changes = {
            way: plus_minus(one["change"], one["change_stderr"], sign="+")
            for way, one in each.items()
        }
        rivals = {
            way: f"{each[way]['error']:.3f} ({changes[way]})" for way in each if way != "iwae"
        }
        rows.append({"table": name, "iwae": f"{each['iwae']['error']:.3f}", **rivals})
    return markdown(rows)

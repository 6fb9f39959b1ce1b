"""Records of the scripts in `experiments/` that make no runs, or more than runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwae.config.experiment import make_config, stages_text
from iwae.results.reading import Method, each_model, known_bounds, read_records
from result_tables.tables import LABELS_FOLDER, Row, markdown, mean_and_spread

IMPUTATION_FOLDER = "imputation"
"""Where `experiments/imputation.py` keeps its records."""

DENSITIES_FOLDER = "densities"
"""Where `experiments/densities.py` keeps its records."""


RECIPES_FOLDER = "recipes"
"""Where `experiments/recipes.py` keeps its records."""


def recipes_table(results: Path) -> str:
    """Markdown: the trials of `experiments/recipes.py`, by the bound of held-out images."""
    folder = Path(results) / RECIPES_FOLDER
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))]
    rows = (
        {
            "trial": record["trial"],
            "stages": _stages_of(record["config"]),
            "epochs": str(record["config"]["epochs"]),
            f"L_{record['k']}, {record['n']:,} held-out images": f"{record['bound']:.2f} ± "
            f"{record['stderr']:.2f}",
            "seconds": f"{record['seconds']:.0f} on {record['cores']} core"
            + ("s" if record["cores"] > 1 else ""),
        }
        for record in records
    )
    return markdown(rows, f"{folder} holds no records: python experiments/recipes.py")


def _stages_of(config: Mapping[str, Any]) -> str:
    """The stages of a trial, as one writes them."""
    found = make_config(dict(config), "the configuration of a trial")
    if found.stages:
        return stages_text(found.stages)
    return (
        f"k={found.k} batch_size={found.batch_size} optimizer={found.optimizer} "
        f"learning_rate={found.learning_rate:g} schedule={found.schedule}"
    )


def labels_table(results: Path) -> str:
    """Markdown: the conditional models of `experiments/labels.py` as classifiers."""
    folder = Path(results) / LABELS_FOLDER
    rows = [
        _labels_row(run, record)
        for run in sorted(folder.glob("*/*/"))
        for _, record in read_records(run, (Method.CLASSIFICATION,))
    ]
    return markdown(rows, f"{folder} holds no records: python experiments/labels.py digits")


def _labels_row(run: Path, record: Mapping[str, Any]) -> Row:
    """One line: means over seeds, with the error from the examples and the deviation of seeds."""
    known = known_bounds(run, split="test", weights="final", pruned=False)
    seeds = each_model(record)
    row = {
        "data": record["dataset"],
        "p(z)": "of each label" if record["config"].get("label_prior") else "N(0, I)",
        "seeds": str(len(seeds)),
        "examples": f"{record['n']:,}",
        **{f"{one.estimator} of p(x given y), nats": mean_and_spread(one) for one in known},
    }
    for name, title in (("accuracy", "accuracy"), ("auroc", f"AUROC against {record['others']}")):
        each = [one[name] for one in seeds if name in one]
        if each:
            error = np.mean([one[f"{name}_stderr"] for one in seeds])
            spread = f" (sd {np.std(each, ddof=1):.3f})" if len(each) > 1 else ""
            row[title] = f"{np.mean(each):.3f} ± {error:.3f}{spread}"
    return row


def densities_table(results: Path) -> str:
    """Markdown: the estimator beside Gaussian mixtures, from `experiments/densities.py`.

    Means over splits, with the standard error of their mean.
    """
    folder, rows = Path(results) / DENSITIES_FOLDER, []
    for name in sorted(path.name for path in folder.glob("*/")):
        records = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}/*.json"))]
        first = records[0]
        row = {
            "data": name,
            "rows": f"{first['train_rows'] + first['test_rows']:,}",
            "columns": str(first["columns"]),
        }
        for key, words in (
            ("ours", "ours, nats"),
            ("mixture", "mixture, nats"),
            ("difference", "difference"),
        ):
            means = np.array([record[key]["mean"] for record in records])
            row[words] = f"{means.mean():.2f}"
            if len(means) > 1:
                row[words] += f" ± {means.std(ddof=1) / np.sqrt(len(means)):.2f}"
        row["splits"] = str(len(records))
        chosen = {(r["mixture"]["components"], r["mixture"]["covariance"]) for r in records}
        row["mixtures chosen"] = ", ".join(f"{n} {form}" for n, form in sorted(chosen))
        rows.append(row)
    return markdown(rows, f"{folder} holds no records: python experiments/densities.py")


def imputation_table(results: Path) -> str:
    """Markdown: errors of imputed values by each method, the least of a line in bold.

    A dagger says that a method had not converged at one of the seeds.
    """
    folder = Path(results) / IMPUTATION_FOLDER
    cases: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("[!.]*.json")):
        record = json.loads(path.read_text())
        case = record["table"], record["mechanism"], record["share"]
        cases.setdefault(case, []).append(record)
    rows = (imputation_row(case, records) for case, records in sorted(cases.items()))
    return markdown(rows, f"{folder} holds no records: python experiments/imputation.py")


def imputation_row(case: tuple[str, str, float], records: Sequence[dict[str, Any]]) -> Row:
    """One line: the root mean squared error of each method, mean ± standard error over seeds."""
    name, mechanism, share = case
    sizes = records[0]["sizes"]
    row = {
        "table": name,
        "rows": f"{sizes['train'] + sizes['test']}",
        "hidden": f"{share:.0%} {mechanism}",
        "seeds": str(len(records)),
    }
    errors = {
        method: np.array([record["rmse"][method] for record in records])
        for method in records[0]["rmse"]
    }
    least = min(errors, key=lambda method: errors[method].mean())
    unfinished = {method for record in records for method in record["not_converged"]}
    for method, each in errors.items():
        spread = f" ± {each.std(ddof=1) / np.sqrt(len(each)):.3f}" if len(each) > 1 else ""
        words = f"{each.mean():.3f}{spread}{' †' * (method in unfinished)}"
        row[method] = f"**{words}**" if method == least else words
    return row

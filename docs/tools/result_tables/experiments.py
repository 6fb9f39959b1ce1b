"""Records of the scripts in `experiments/` that make no runs, or more than runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwae.config.experiment import make_config
from iwae.config.stages import stages_text
from iwae.results.formatting import plus_minus
from iwae.results.reading import read_records
from iwae.results.record_files import read_documents
from iwae.results.schema import Method, Record
from iwae.results.summaries import summarise_mean
from result_tables.tables import LABELS_FOLDER, Row, final_bounds, markdown, mean_and_spread


def recipes_table(results: Path) -> str:
    """Markdown: the trials of `experiments/recipes.py`, by the bound of held-out images."""
    folder = Path(results) / "recipes"
    records = [one for its in sorted(folder.glob("*/")) for one in read_documents(its).values()]
    rows = (
        {
            "trial": record["trial"],
            "stages": _stages_of(record["config"]),
            "epochs": str(record["config"]["epochs"]),
            f"L_{record['k']}, {record['n']:,} held-out images": plus_minus(
                record["bound"], record["stderr"], 2
            ),
            "seconds": f"{record['seconds']:.0f} on {record['cores']} core"
            + ("s" if record["cores"] > 1 else ""),
        }
        for record in records
    )
    return markdown(rows, f"{folder} holds no records: python experiments/recipes.py")


def _stages_of(config: Mapping[str, Any]) -> str:
    """The stages of a trial, as in an experiment file."""
    found = make_config(dict(config), "the configuration of a trial")
    if found.stages:
        return stages_text(found.stages)
    return (
        f"k={found.k} gradient={found.gradient} batch_size={found.batch_size} "
        f"optimizer={found.optimizer} "
        f"learning_rate={found.learning_rate:g} schedule={found.schedule}"
        + f" kl_warmup={found.kl_warmup}" * bool(found.kl_warmup)
        + f" prior={found.prior}" * (found.prior != "normal")
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


def _labels_row(run: Path, record: Record) -> Row:
    """A row of means over seeds, with the error from examples and the deviation of seeds."""
    seeds = record.models
    row = {
        "data": record.dataset,
        "p(z)": "of each label" if record.config.get("label_prior") else "N(0, I)",
        "seeds": str(len(seeds)),
        "examples": f"{record.n:,}",
        **{
            f"{one.estimator} of p(x given y), nats": mean_and_spread(one)
            for one in final_bounds(run)
        },
    }
    for name, title in (("accuracy", "accuracy"), ("auroc", f"AUROC against {record.others}")):
        each = [one.mean(name) for one in seeds if name in one.model_fields_set]
        if each:
            means, errors = np.array(each).T
            spread = means.std(ddof=1) if len(each) > 1 else None
            row[title] = plus_minus(means.mean(), errors.mean(), spread=spread)
    return row


def densities_table(results: Path) -> str:
    """Markdown: the estimator beside Gaussian mixtures, from `experiments/densities.py`.

    Means over splits, with the standard error of their mean.
    """
    folder, rows = Path(results) / "densities", []
    for name in sorted(path.name for path in folder.glob("*/")):
        records = list(read_documents(folder / name).values())
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
            row[words] = plus_minus(*summarise_mean(means), 2)
        row["splits"] = str(len(records))
        chosen = {(r["mixture"]["components"], r["mixture"]["covariance"]) for r in records}
        row["mixtures chosen"] = ", ".join(f"{n} {form}" for n, form in sorted(chosen))
        rows.append(row)
    return markdown(rows, f"{folder} holds no records: python experiments/densities.py")


def imputation_table(results: Path) -> str:
    """Markdown: errors of imputed values by each method, the least of a line in bold.

    A dagger says that a method had not converged at one of the seeds.
    """
    folder = Path(results) / "imputation"
    cases: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for record in read_documents(folder).values():
        case = record["table"], record["mechanism"], record["share"]
        cases.setdefault(case, []).append(record)
    rows = (imputation_row(case, records) for case, records in sorted(cases.items()))
    return markdown(rows, f"{folder} holds no records: python experiments/imputation.py")


def imputation_row(case: tuple[str, str, float], records: Sequence[dict[str, Any]]) -> Row:
    """A row: the root mean squared error of each method, mean ± standard error over seeds."""
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
        words = plus_minus(*summarise_mean(each)) + " †" * (method in unfinished)
        row[method] = f"**{words}**" if method == least else words
    return row

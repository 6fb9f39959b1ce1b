"""Runs that were measured on a whole test set, or annealed."""

import json
from pathlib import Path
from typing import Any

from iwae.config.experiment import make_config
from iwae.errors import UserError
from iwae.reports.estimates import Row, estimates_row, published_nll
from iwae.results.reading import Method, each_model
from result_tables.tables import markdown, runs_in


def read_records(results: Path) -> dict[str, dict[str, Any]]:
    """The likelihood record of the largest k of every run, by the run's folder."""
    records: dict[str, dict[str, Any]] = {}
    folders = [run / "evaluations" for run in runs_in(results)]
    for path in (path for folder in folders for path in sorted(folder.glob("[!.]*.json"))):
        record = json.loads(path.read_text())
        if record["method"] != Method.IMPORTANCE:
            continue
        name = str(path.parent.parent.relative_to(results))
        whole = record["split"] == "test" and not record["pruned"] and record["subset"] is None
        if whole and record["k"] >= records.get(name, {"k": 0})["k"]:
            if record["log_likelihood"] is None:
                raise UserError(f"{path}: the mean log-likelihood is not finite; it fits no table")
            records[name] = record
    return records


def likelihood_row(name: str, record: dict[str, Any], published: str) -> Row:
    """One line of the likelihood table: NLL is minus the mean bound, nats per example."""
    config = record["config"]
    final = make_config(dict(config), f"the record of {name}").final()
    each = each_model(record)
    spread = record.get("between_replicates_sd")
    epochs, truth = {one["epoch"] for one in each}, record.get("true_log_likelihood")
    digits = 2 if truth is None else 4  # where the truth is known, more of them mean something
    return {
        "run": name,
        "data": record["dataset"],
        "layers": str(config["layers"]),
        "objective": f"{final.objective}, k = {final.k}",
        "epochs": "/".join(str(epoch) for epoch in sorted(epochs)),
        f"NLL (L_{record['k']})": f"{-record['log_likelihood']:.{digits}f} ± "
        + ("-" if record["stderr"] is None else f"{record['stderr']:.{digits}f}")
        + ("" if spread is None else f" (sd of {len(each)} seeds {spread:.{digits}f})"),
        "NLL of the truth": "-" if truth is None else f"{-truth:.{digits}f}",
        "active units": "+".join(f"{count:g}" for count in record["active_units"]),
        "test images": f"{record['n']:,}",
        "published NLL": published,
    }


def likelihood_table(results: Path) -> str:
    """Markdown: every run under `results` that has been measured on its whole test set."""
    rows = [
        likelihood_row(name, record, published_nll(record["config"]))
        for name, record in read_records(results).items()
    ]
    return markdown(rows, f"{results} holds no record of a whole test set")


def estimates_table(results: Path) -> str:
    """Markdown: every bound known of each run that was annealed, on the same examples.

    The examples are those of the longest annealing run; the bounds by importance sampling are
    averaged over them alone, so that all numbers of a row can be compared.
    """
    rows = [
        row
        for run in runs_in(results)
        if (row := estimates_row(run, str(run.relative_to(results)))) is not None
    ]
    return markdown(rows, f"{results} holds no record of annealing: iwae evaluate --method ais")

"""Runs that were measured on a whole test set, or annealed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwae.config.experiment import make_config
from iwae.config.presets import PRESETS, same_experiment
from iwae.errors import UserError
from iwae.report.tables import Row, markdown, runs_in
from iwae.results.importance import IMPORTANCE
from iwae.results.ordering import Known, known_bounds, models_of
from iwae.results.ordering import read_records as bounds_records
from iwae.results.text import each_model


def read_records(results: Path) -> dict[str, dict[str, Any]]:
    """The likelihood record of the largest k of every run, by the run's folder."""
    records: dict[str, dict[str, Any]] = {}
    folders = [run / "evaluations" for run in runs_in(results)]
    for path in (path for folder in folders for path in sorted(folder.glob("[!.]*.json"))):
        record = json.loads(path.read_text())
        if record["method"] != IMPORTANCE:
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


def published_nll(config: dict[str, Any]) -> str:
    """What the paper reports for this experiment, at how many epochs; "-" if there is nothing."""
    for entry in PRESETS.values():
        if entry.nll is not None and same_experiment(entry, config):
            about = [f"{'+'.join(map(str, entry.active))} active"] if entry.active else []
            epochs = f"{entry.config().epochs:,} epochs"
            about.append("not as published" if entry.is_fast else epochs)
            return f"{entry.nll:.2f} ({', '.join(about)})"
    return "-"


def likelihood_table(results: Path) -> str:
    """Markdown: every run under `results` that has been measured on its whole test set."""
    rows = [
        likelihood_row(name, record, published_nll(record["config"]))
        for name, record in read_records(results).items()
    ]
    if not rows:
        raise UserError(f"{results} holds no record of a whole test set")
    return markdown(rows)


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
    if not rows:
        raise UserError(f"{results} holds no record of annealing: iwae evaluate --method ais")
    return markdown(rows)


def estimates_row(run: Path, name: str) -> Row | None:
    """One line of the table of estimates; None for a run that was not annealed."""
    bounds = known_bounds(run, split="test", weights="final", pruned=False)
    if not bounds or bounds[-1].rank[0] == 0:
        return None
    samples = {one.estimator: one for one in bounds if one.rank[0] == 0}
    record = bounds[-1].record
    shorter, longest = (one for one in bounds if one.record is record)
    row = {"run": name, "examples": f"{record['n']:,}"}
    for estimator, one in samples.items():
        row[estimator] = _mean_on(one, longest)
    for one, words in ((shorter, "AIS, short"), (longest, "AIS, long")):
        row[words] = f"{_mean_on(one, longest)} (T = {one.rank[1]})"
    verdicts = [one["verdict"]["word"] for one in each_model(record)]
    row["verdict"] = " / ".join(dict.fromkeys(verdicts))
    if (both := _bidirectional(run, record)) is not None:
        each = each_model(both)
        sampled = [one["importance"] for one in each]
        row["gap of AIS"] = _plus_minus(each, "gap")
        row[f"gap of {sampled[0]['k']:,} samples"] = _plus_minus(sampled, "gap")
    if samples:
        most = list(samples.values())[-1]
        last = [one["by_k"][-1] for one in each_model(most.record)]
        row[f"ESS of {most.estimator}"] = f"{np.mean([one['ess_mean'] for one in last]):.0f}"
        unreliable = [one["pareto_k_unreliable"] for one in last]
        row["k-hat too large"] = "-" if None in unreliable else f"{np.mean(unreliable):.0%}"
    return row


def _mean_on(one: Known, other: Known) -> str:
    """A bound's mean and standard error over the examples of another one."""
    values = one.values.mean(axis=0)[np.isin(one.places, other.places)]
    if len(values) < len(other.places):
        return "-"
    return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def _bidirectional(run: Path, record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The bounds from both sides by the same annealing of the same models, on most examples."""
    wanted = record["annealing"], record["weights"], record["pruned"], models_of(record)
    found = [
        both
        for _, both in bounds_records(run, ("bidirectional Monte Carlo",))
        if (both["annealing"], both["weights"], both["pruned"], models_of(both)) == wanted
    ]
    if not found:
        return None
    return max(found, key=lambda both: both["n"])


def _plus_minus(each: Sequence[Mapping[str, Any]], name: str) -> str:
    """The mean over replicates, whose examples differ, and its standard error."""
    mean = round(np.mean([one[name] for one in each]), 2) + 0.0  # no minus before a zero
    error = np.sqrt(np.mean([one[f"{name}_stderr"] ** 2 for one in each]) / len(each))
    return f"{mean:.2f} ± {error:.2f}"

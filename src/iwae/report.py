"""Records into tables. No number is typed: `python -m iwae.report` rewrites the marked blocks.

A results folder holds one folder per run (configuration, models, metrics, records). A Markdown
file has blocks `<!-- results:NAME -->` ... `<!-- /results:NAME -->` that this module fills.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from iwae._types import UserError, atomic_write
from iwae.declaration import OBJECTIVES
from iwae.diagnostics import paired_difference, test_sample_error
from iwae.measure.importance import IMPORTANCE
from iwae.measure.ordering import Known, known_bounds, models_of
from iwae.measure.ordering import read_records as bounds_records
from iwae.presets import PRESETS, matching, same_experiment
from iwae.reproduce import Wanted, table

Row = dict[str, str]

IMPUTATION_FOLDER = "imputation"
"""Where `experiments/imputation.py` keeps its records."""

OBJECTIVES_FOLDER, LABELS_FOLDER = "objectives", "labels"
"""Where `experiments/objectives.py` and `experiments/labels.py` keep their records."""

DENSITIES_FOLDER = "densities"
"""Where `experiments/densities.py` keeps its records."""


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


def runs_in(results: Path) -> list[Path]:
    """The folders of all runs, but for those that were made to compare objectives or labels."""
    found = sorted(path.parent for path in Path(results).rglob("config.toml"))
    parts = [(run, run.relative_to(results).parts) for run in found]
    return [run for run, names in parts if not _is_hidden(names) and names[0] not in _APART]


_APART = {OBJECTIVES_FOLDER, LABELS_FOLDER}


def _is_hidden(names: Sequence[str]) -> bool:
    """Whether a folder is one that a kill left half made."""
    return any(name.startswith(".") for name in names)


def likelihood_row(name: str, record: dict[str, Any], published: str) -> Row:
    """One line of the likelihood table: NLL is minus the mean bound, nats per example."""
    config = record["config"]
    each = record.get("replicates", [record])
    spread = record.get("between_replicates_sd")
    epochs, truth = {one["epoch"] for one in each}, record.get("true_log_likelihood")
    digits = 2 if truth is None else 4  # where the truth is known, more of them mean something
    return {
        "run": name,
        "data": record["dataset"],
        "layers": str(config["layers"]),
        "objective": f"{config['objective']}, k = {config['k']}",
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
    """What the paper reports for this experiment, at 3,280 epochs; "-" if it is none of its own."""
    for entry in PRESETS.values():
        if entry.nll is not None and same_experiment(entry, config):
            active = "+".join(map(str, entry.active))
            return f"{entry.nll:.2f} ({active} active)"
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
    verdicts = [one["verdict"]["word"] for one in record.get("replicates", [record])]
    row["verdict"] = " / ".join(dict.fromkeys(verdicts))
    if (both := _bidirectional(run, record)) is not None:
        each = both.get("replicates", [both])
        sampled = [one["importance"] for one in each]
        row["gap of AIS"] = _plus_minus(each, "gap")
        row[f"gap of {sampled[0]['k']:,} samples"] = _plus_minus(sampled, "gap")
    if samples:
        most = list(samples.values())[-1]
        last = [one["by_k"][-1] for one in most.record.get("replicates", [most.record])]
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


def _plus_minus(each: Sequence[dict[str, Any]], name: str) -> str:
    """The mean over replicates, whose examples differ, and its standard error."""
    mean = round(np.mean([one[name] for one in each]), 2) + 0.0  # no minus before a zero
    error = np.sqrt(np.mean([one[f"{name}_stderr"] ** 2 for one in each]) / len(each))
    return f"{mean:.2f} ± {error:.2f}"


def markdown(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table; columns in the order of their first appearance."""
    return tabulate(list(rows), "keys", "github", disable_numparse=True, missingval="") + "\n"


def objectives_table(results: Path, name: str) -> str:
    """Markdown: the lines of a table of `experiments/objectives.py`, the best first."""
    folder = Path(results) / OBJECTIVES_FOLDER / name
    rows = [
        row
        for run in sorted(path.parent for path in folder.glob("*/config.toml"))
        if (row := objective_row(run)) is not None
    ]
    if not rows:
        raise UserError(f"{folder} holds no records: python experiments/objectives.py {name}")
    return markdown(row for _, row in sorted(rows, key=lambda pair: -pair[0]))


def objective_row(run: Path) -> tuple[float, Row] | None:
    """The best bound known of a run, and its line; None if it was not measured."""
    known = known_bounds(run, split="test", weights="final", pruned=False)
    if not known:
        return None
    config = known[0].record["config"]
    options = [
        f"{name} {config[name]}"
        for name in ("m", "k", "alpha", "beta", "temperatures", "leapfrog", "phase", "kl_warmup")
        if config.get(name) not in (None, 0)
    ]
    if config.get("network", "mlp") != "mlp" or config.get("blocks"):
        words = " ".join(map(str, (config["network"], *(config.get("channels") or ()))))
        options.append(f"{words}, blocks {config['blocks']}")
    if config.get("free_bits"):
        options.append(f"free bits {config['free_bits']}")
    row = {
        "objective": config["objective"],
        "gradient": config.get("gradient") or OBJECTIVES[config["objective"]].gradients[0],
        "options": ", ".join(options),
        "epochs": str(config["epochs"]),
        "seeds": str(config["replicates"]),
    }
    sampled = [one for one in known if one.rank[0] == 0]
    for one in known:
        most = bool(sampled) and one is sampled[-1]
        if most or (one.rank[0] > 0 and not one.short):
            row[f"{one.estimator}, nats"] = _mean_and_spread(one)
    if len(sampled) > 1:
        low, high = sampled[0], sampled[-1]
        gap = high.values.mean() - low.values.mean()
        row[f"{high.estimator} - {low.estimator}"] = f"{gap:.2f}"
    each = known[0].record
    row["active units"] = "+".join(f"{count:.1f}" for count in each["active_units"])
    return float(known[-1].values.mean()), row


def _mean_and_spread(one: Known) -> str:
    """Mean over examples and seeds, its standard error, and the deviation between seeds."""
    over = one.values.mean(axis=0)
    words = f"{over.mean():.2f} ± {over.std(ddof=1) / np.sqrt(over.size):.2f}"
    if len(one.values) > 1:
        words += f" (sd {one.values.mean(axis=1).std(ddof=1):.2f})"
    return words


def differences_table(results: Path) -> str:
    """Markdown: how much the choice of estimator, examples, seed and objective moves a number."""
    rows = []
    for run in runs_in(results):
        known = known_bounds(run, split="test", weights="final", pruned=False)
        if known and known[0].record["config"]["replicates"] == 1:
            rows += _rows_of_estimators(known, str(run.relative_to(results)))
    rows += _rows_of_training(Path(results) / OBJECTIVES_FOLDER / "digits")
    if not rows:
        raise UserError(f"{results} holds no records from which differences could be taken")
    return markdown(sorted(rows, key=lambda row: REASONS.index(row["reason"])))


REASONS = (
    "k in measuring",
    "annealing instead of samples",
    "which test examples",
    "objective and gradient",
    "k in training",
    "seed",
)
"""Why numbers differ, in the order of the table."""


def _rows_of_estimators(known: Sequence[Known], name: str) -> list[Row]:
    """Paired differences of the bounds of one run, and the error from the choice of examples."""
    samples, rows = [one for one in known if one.rank[0] == 0], []
    most, longest = samples[-1], known[-1]
    pairs = [("k in measuring", low, most) for low in samples[:-1]]
    if longest.rank[0] > 0:
        pairs.append(("annealing instead of samples", most, longest))
    for reason, low, high in pairs:
        _, mine, theirs = np.intersect1d(low.places, high.places, return_indices=True)
        found = paired_difference(high.values[0][theirs], low.values[0][mine])
        what = f"{high.estimator} - {low.estimator}, {len(mine):,} examples"
        rows.append(_difference(reason, what, f"{found.mean:+.2f} ± {found.stderr:.2f}", name))
    for one in {len(one.places): one for one in (most, longest)}.values():
        error, n = test_sample_error(one.values[0]), f"{len(one.places):,} test examples"
        rows.append(_difference("which test examples", n, f"± {error:.2f}", name))
    return rows


def _rows_of_training(folder: Path) -> list[Row]:
    """What the objective, k and the seed are worth, between lines of the table of objectives."""
    known = {
        run.parent.name: known_bounds(run.parent, split="test", weights="final", pruned=False)[-1]
        for run in sorted(folder.glob("*/config.toml"))
    }
    means = {name: one.values.mean() for name, one in known.items()}
    spreads = [one.values.mean(axis=1).std(ddof=1) for one in known.values()]
    order, where = sorted(means, key=means.__getitem__), f"{OBJECTIVES_FOLDER}/digits"
    pairs = [("objective and gradient", order[-1], order[0])] if order else []
    pairs += [("k in training", "iwae", "iwae-k5")] if {"iwae", "iwae-k5"} <= set(known) else []
    rows = [
        _difference(reason, f"{high} - {low}", _between_seeds(known[high], known[low]), where)
        for reason, high, low in pairs
    ]
    if spreads:
        low, high = min(spreads), max(spreads)
        seeds = f"deviation between {len(known[order[0]].values)} seeds"
        rows.append(_difference("seed", seeds, f"{low:.2f} to {high:.2f}", where))
    return rows


def _between_seeds(one: Known, other: Known) -> str:
    """The difference of two means over seeds on the same examples, and its error from the seeds."""
    a, b = one.values.mean(axis=1), other.values.mean(axis=1)
    error = np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return f"{a.mean() - b.mean():+.2f} ± {error:.2f}"


def _difference(reason: str, what: str, nats: str, where: str) -> Row:
    return {"reason": reason, "what": what, "nats": nats, "records": where}


def labels_table(results: Path) -> str:
    """Markdown: conditional models, as `experiments/labels.py` judged them."""
    folder = Path(results) / LABELS_FOLDER
    rows = [_labels_row(path) for path in sorted(folder.glob("*/*/evaluations/labels.json"))]
    if not rows:
        raise UserError(f"{folder} holds no records: python experiments/labels.py digits")
    return markdown(rows)


def _labels_row(path: Path) -> Row:
    """One line: means over seeds, with the error from the examples and the deviation of seeds."""
    record = json.loads(path.read_text())
    known = known_bounds(path.parents[1], split="test", weights="final", pruned=False)
    row = {
        "data": record["dataset"],
        "p(z)": "of each label" if record["config"].get("label_prior") else "N(0, I)",
        "seeds": str(len(record["replicates"])),
        "examples": f"{record['n']:,}",
        **{f"{one.estimator} of p(x given y), nats": _mean_and_spread(one) for one in known},
    }
    for name, title in (("accuracy", "accuracy"), ("auroc", f"AUROC against {record['others']}")):
        each = [one[name] for one in record["replicates"] if name in one]
        if each:
            error = np.mean([one[f"{name}_stderr"] for one in record["replicates"]])
            spread = f" (sd {np.std(each, ddof=1):.3f})" if len(each) > 1 else ""
            row[title] = f"{np.mean(each):.3f} ± {error:.3f}{spread}"
    return row


def speed_table(results: Path) -> str:
    """Markdown: milliseconds per training step in the committed run of `benchmarks/train_step.py`.

    Medians over the blocks of that run; the ratio is to the fastest variant of PyTorch.
    """
    path = Path(results) / "benchmarks" / "train_step.json"
    if not path.is_file():
        raise UserError(f"no record {path}: run benchmarks/train_step.py --json {path}")
    record = json.loads(path.read_text())
    medians = {name: timing[0] for name, (timing, _) in record["results"].items()}
    rows = []
    for k, flops in record["flops_per_step"].items():
        ours = medians[f"iwae k={k}"]
        rivals = [ms for name, ms in medians.items() if re.fullmatch(rf"torch .* k={k}", name)]
        row = {"k": k, "ours, ms/step": f"{ours:.2f}"}
        if rivals:
            row["fastest PyTorch, ms/step"] = f"{min(rivals):.2f}"
            row["ratio"] = f"{min(rivals) / ours:.1f}"
        row["of the matrix-product peak"] = f"{flops / ours / 1e6 / record['peak_gflops']:.0%}"
        rows.append(row)
    return markdown(rows)


def costs_table(results: Path) -> str:
    """Markdown: a training step of every objective in the run of `benchmarks/objective_step.py`.

    Medians over the blocks of that run; in brackets the ratio to the IWAE of as many particles, and
    the peak memory of the process.
    """
    path = Path(results) / "benchmarks" / "objective_step.json"
    if not path.is_file():
        raise UserError(f"no record {path}: run benchmarks/objective_step.py --json {path}")
    timed = {}
    for words, (timing, mebibytes) in json.loads(path.read_text())["results"].items():
        name, _, setting = words.rpartition(" k=")
        timed[name or words, setting] = timing[0], mebibytes
    rows: dict[str, Row] = {}
    for (name, k), (ms, mebibytes) in timed.items():
        if ("iwae", k) in timed:
            ratio = ms / timed["iwae", k][0]
            cell = f"{ms:.2f} ms ({ratio:.2f}), {mebibytes / 1024:.1f} GiB"
            rows.setdefault(name, {"objective, gradient": name})[f"k = {k}"] = cell
    return markdown(rows.values())


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
            error = means.std(ddof=1) / np.sqrt(len(means))
            row[words] = f"{means.mean():.2f} ± {error:.2f}"
        row["splits"] = str(len(records))
        chosen = {(r["mixture"]["components"], r["mixture"]["covariance"]) for r in records}
        row["mixtures chosen"] = ", ".join(f"{n} {form}" for n, form in sorted(chosen))
        rows.append(row)
    if not rows:
        raise UserError(f"{folder} holds no records: python experiments/densities.py")
    return markdown(rows)


def imputation_table(results: Path) -> str:
    """Markdown: errors of imputed values by each method, the least of a line in bold."""
    folder = Path(results) / IMPUTATION_FOLDER
    cases: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("[!.]*.json")):
        record = json.loads(path.read_text())
        case = record["table"], record["mechanism"], record["share"]
        cases.setdefault(case, []).append(record)
    if not cases:
        raise UserError(f"{folder} holds no records: python experiments/imputation.py")
    return markdown(imputation_row(case, records) for case, records in sorted(cases.items()))


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
    for method, each in errors.items():
        spread = f" ± {each.std(ddof=1) / np.sqrt(len(each)):.3f}" if len(each) > 1 else ""
        words = f"{each.mean():.3f}{spread}"
        row[method] = f"**{words}**" if method == least else words
    return row


def cells_table(results: Path, cells: str) -> str:
    """Markdown: cells of published tables, ours beside theirs."""
    return table(results, matching([cells]), Wanted())


BLOCKS: dict[str, Callable[[Path], str]] = {
    "likelihoods": likelihood_table,
    "estimates": estimates_table,
    "objectives-digits": partial(objectives_table, name="digits"),
    "objectives-mnist": partial(objectives_table, name="mnist"),
    "labels": labels_table,
    "networks-digits": partial(objectives_table, name="networks"),
    "differences": differences_table,
    "costs": costs_table,
    "densities": densities_table,
    "speed": speed_table,
    "imputation": imputation_table,
}
"""What a marked block is filled with; `cells:NAME` is a table of these cells."""


def fill_blocks(text: str, results: Path) -> str:
    """The text with every marked block made anew from the records."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        kind, _, cells = name.partition(":")
        if kind == "cells" and cells:
            made = cells_table(results, cells)
        elif name in BLOCKS:
            made = BLOCKS[name](results)
        else:
            raise UserError(f"no block {name!r}; known: {', '.join(BLOCKS)}, cells:NAME")
        return f"<!-- results:{name} -->\n{made}<!-- /results:{name} -->"

    return re.sub(r"<!-- results:(\S+) -->\n.*?<!-- /results:\1 -->", fill, text, flags=re.DOTALL)


def main(results: str = "results", *files: str) -> None:
    """Rewrite the blocks of Markdown files: `python -m iwae.report results README.md`."""
    for file in files or ("README.md",):
        path = Path(file)
        if not path.is_file():
            raise UserError(f"no file {path} whose blocks could be filled")
        with atomic_write(path) as temporary:
            temporary.write_text(fill_blocks(path.read_text(), Path(results)))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"iwae.report: {error}")

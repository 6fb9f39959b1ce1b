"""Records into tables. No number is typed: `python -m iwae.report` rewrites the marked blocks.

A results folder holds one folder per run (configuration, models, metrics, records). A Markdown
file has blocks `<!-- results:NAME -->` ... `<!-- /results:NAME -->` that this module fills.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iwae._types import UserError, atomic_write
from iwae.config import TrainConfig
from iwae.declaration import OBJECTIVES
from iwae.measure.importance import IMPORTANCE
from iwae.measure.ordering import Known, known_bounds, models_of
from iwae.measure.ordering import read_records as bounds_records

Row = dict[str, str]


def read_records(results: Path) -> dict[str, dict[str, Any]]:
    """The likelihood record of the largest k of every run, by the run's folder."""
    records: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(results).glob("*/evaluations/*.json")):
        record = json.loads(path.read_text())
        if record["method"] != IMPORTANCE:
            continue
        name = path.parent.parent.name
        whole = record["split"] == "test" and not record["pruned"] and record["subset"] is None
        if whole and record["k"] >= records.get(name, {"k": 0})["k"]:
            if record["log_likelihood"] is None:
                raise UserError(f"{path}: the mean log-likelihood is not finite; it fits no table")
            records[name] = record
    return records


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
    from iwae.presets import PRESETS

    for entry in PRESETS.values():
        if entry.nll is not None and entry.needs is None and _same(entry.config(), config):
            active = "+".join(map(str, entry.active))
            return f"{entry.nll:.2f} ({active} active)"
    return "-"


_DEFINING = """
    dataset binarization observation activation output_bias optimizer schedule learning_rate
    batch_size shuffle
""".split()  # noqa: SIM905
"""What makes an experiment the published one, besides its sizes and objective."""


def _same(published: TrainConfig, config: dict[str, Any]) -> bool:
    """Whether a run's configuration is that of a published experiment, but for its length."""
    wanted = {name: getattr(published, name) for name in _DEFINING}
    sizes = json.loads(json.dumps(published.sizes()))  # tuples as lists, as records have them
    return (
        all(value is None or config[name] == value for name, value in wanted.items())
        and config["binarization"] in ("dynamic", "none")
        and [config["latent_sizes"], config["hidden_sizes"]] == sizes
        and config.get("init_from") is None
        and config.get("gradient") in (None, "reparam")
        and not (config.get("kl_warmup") or config.get("free_bits"))
        and _family(published.objective, published.k) == _family(config["objective"], config["k"])
        and (published.k == config["k"])
    )


def _family(objective: str, k: int) -> str:
    """With one sample all bounds are the same one."""
    return "elbo" if k == 1 or objective in ("vae", "elbo") else objective


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
        for run in sorted(path.parent for path in Path(results).glob("*/config.toml"))
        if (row := estimates_row(run, run.name)) is not None
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
        row["gap of AIS"] = _plus_minus(both, "gap")
        row[f"gap of {both['importance']['k']:,} samples"] = _plus_minus(both["importance"], "gap")
    if samples:
        most = list(samples.values())[-1]
        last = most.record.get("replicates", [most.record])[0]["by_k"][-1]
        row[f"ESS of {most.estimator}"] = f"{last['ess_mean']:.0f}"
        unreliable = last["pareto_k_unreliable"]
        row["k-hat too large"] = "-" if unreliable is None else f"{unreliable:.0%}"
    return row


def _mean_on(one: Known, other: Known) -> str:
    """A bound's mean and standard error over the examples of another one."""
    values = one.values.mean(axis=0)[np.isin(one.places, other.places)]
    if len(values) < len(other.places):
        return "-"
    return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def _bidirectional(run: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first replicate's bounds from both sides by the same annealing of the same model."""
    wanted = record["annealing"], record["weights"], record["pruned"], models_of(record)
    found = [
        both
        for _, both in bounds_records(run, ("bidirectional Monte Carlo",))
        if (both["annealing"], both["weights"], both["pruned"], models_of(both)) == wanted
    ]
    if not found:
        return None
    most = max(found, key=lambda both: both["n"])
    return most.get("replicates", [most])[0]


def _plus_minus(record: dict[str, Any], name: str) -> str:
    return f"{record[name]:.2f} ± {record[f'{name}_stderr']:.2f}"


def markdown(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table; columns in the order of their first appearance."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        columns,
        ["---"] * len(columns),
        *([row.get(key, "") for key in columns] for row in rows),
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def objectives_table(results: Path, table: str) -> str:
    """Markdown: the lines of one table of `experiments/objectives.py`, the best first."""
    folder = Path(results) / "objectives" / table
    rows = [
        row
        for run in sorted(path.parent for path in folder.glob("*/config.toml"))
        if (row := objective_row(run)) is not None
    ]
    if not rows:
        raise UserError(f"{folder} holds no records: python experiments/objectives.py {table}")
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
    if config.get("free_bits"):
        options.append(f"free bits {config['free_bits']}")
    row = {
        "objective": config["objective"],
        "gradient": config.get("gradient") or OBJECTIVES[config["objective"]].gradients[0],
        "options": ", ".join(options),
        "epochs": str(config["epochs"]),
        "seeds": str(config["replicates"]),
    }
    for one in known:
        if one.rank[0] > 0 or one is [b for b in known if b.rank[0] == 0][-1]:
            row[f"{one.estimator}, nats"] = _mean_and_spread(one)
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


BLOCKS: dict[str, Callable[[Path], str]] = {
    "likelihoods": likelihood_table,
    "estimates": estimates_table,
    "objectives-digits": partial(objectives_table, table="digits"),
    "objectives-mnist": partial(objectives_table, table="mnist"),
    "speed": speed_table,
}
"""What a marked block is filled with."""


def fill_blocks(text: str, results: Path) -> str:
    """The text with every marked block made anew from the records."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in BLOCKS:
            raise UserError(f"no block {name!r}; known: {', '.join(BLOCKS)}")
        return f"<!-- results:{name} -->\n{BLOCKS[name](results)}<!-- /results:{name} -->"

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

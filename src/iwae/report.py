"""Records into tables. No number is typed: `python -m iwae.report` rewrites the marked blocks.

A results folder holds one folder per run (configuration, models, metrics, records). A Markdown
file has blocks `<!-- results:NAME -->` ... `<!-- /results:NAME -->` that this module fills.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from iwae._types import UserError, atomic_write

Row = dict[str, str]


def read_records(results: Path) -> dict[str, dict[str, Any]]:
    """The likelihood record of the largest k of every run, by the run's folder."""
    records: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(results).rglob("evaluations/*.json")):
        record = json.loads(path.read_text())
        name = str(path.parent.parent.relative_to(results))
        whole = record["split"] == "test" and not record["pruned"] and record["subset"] is None
        if whole and record["k"] >= records.get(name, {"k": 0})["k"]:
            records[name] = record
    return records


def likelihood_row(name: str, record: dict[str, Any], published: str) -> Row:
    """One line of the likelihood table: NLL is minus the mean bound, nats per example."""
    config = record["config"]
    each = record.get("replicates", [record])
    spread = record.get("between_replicates_sd")
    epochs = {one["epoch"] for one in each}
    return {
        "run": name,
        "data": record["dataset"],
        "layers": str(config["layers"]),
        "objective": f"{config['objective']}, k = {config['k']}",
        "epochs": "/".join(str(epoch) for epoch in sorted(epochs)),
        f"NLL (L_{record['k']})": f"{-record['log_likelihood']:.2f} ± {record['stderr']:.2f}"
        + ("" if spread is None else f" (sd of {len(each)} seeds {spread:.2f})"),
        "active units": "+".join(f"{count:g}" for count in record["active_units"]),
        "test images": f"{record['n']:,}",
        "published NLL": published,
    }


def published_nll(config: dict[str, Any]) -> str:
    """What the paper reports for this data, depth, objective and k, at 3,280 epochs."""
    from iwae.presets import PRESETS

    for entry in PRESETS.values():
        values = entry.values
        same = all(
            config.get(key) == value for key, value in values.items() if key != "objective"
        ) and _family(values["objective"], values["k"]) == _family(config["objective"], config["k"])
        if same and entry.nll is not None and entry.needs is None:
            active = "+".join(map(str, entry.active))
            return f"{entry.nll:.2f} ({active} active)"
    return "-"


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


BLOCKS: dict[str, Callable[[Path], str]] = {"likelihoods": likelihood_table, "speed": speed_table}
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
        with atomic_write(path) as temporary:
            temporary.write_text(fill_blocks(path.read_text(), Path(results)))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Records of `benchmarks/`."""

import json
import re
from pathlib import Path

from iwae._types import UserError
from iwae.report.tables import Row, markdown


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
    what the steps need at their peak beside data, states and programs.
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
            memory = "" if mebibytes is None else f", {mebibytes:.0f} MiB"
            cell = f"{ms:.2f} ms ({ratio:.2f}){memory}"
            rows.setdefault(name, {"objective, gradient": name})[f"k = {k}"] = cell
    return markdown(rows.values())

"""Records of the benchmarks of speed and memory."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from iwae.config.presets import FAST, PRESETS
from iwae.data import DATASETS
from iwae.errors import UserError
from iwae.experiments.cell_results import read_cell_result
from iwae.experiments.cells import Wanted
from iwae.experiments.costs import cost_hours, cost_in_words
from iwae.results.formatting import plus_minus
from result_tables.tables import Row, benchmark, markdown

AIWAE_STEP = "aiwae S=5 batch=128"
LEAPFROGS = 5 * 128 * (5 - 1) * 5


def speed_table(results: Path) -> str:
    """Markdown: milliseconds per training step in the committed run of `benchmarks/train_step.py`.

    Medians over the blocks of that run; a ratio is to the fastest variant of PyTorch in batches of
    as many examples, whose gradient goes through all k particles.
    """
    record = benchmark(results, "train_step")
    medians = _medians(record)
    backward = record.get("backward")
    batched = any(" batch=" in setting for setting in record["flops_per_step"])
    rows = []
    for setting, flops in record["flops_per_step"].items():
        k, _, batch = setting.partition(" batch=")
        ours, few = medians[f"iwae k={setting}"], f"iwae k={setting} backward={backward}"
        rivals = _torch_steps(medians, setting)
        row = {
            "k": k,
            **({"batch": batch or "20"} if batched else {}),
            "ours, ms/step": f"{ours:.2f}",
        }
        if rivals:
            row["fastest PyTorch, ms/step"] = f"{min(rivals):.2f}"
            row["ratio"] = f"{min(rivals) / ours:.1f}"
        if few in medians:
            row[f"gradient through {backward}, ms/step"] = f"{medians[few]:.2f}"
            if rivals:
                row["its ratio"] = f"{min(rivals) / medians[few]:.1f}"
        row["of the matrix-product peak"] = f"{flops / ours / 1e6 / record['peak_gflops']:.0%}"
        rows.append(row)
    return markdown(rows)


def training_table(results: Path) -> str:
    """Markdown: seconds of training to one held-out NLL, by `benchmarks/time_to_nll.py`.

    A ratio is that of PyTorch's seconds, by the published recipe, to those of the column.
    """
    return markdown(
        {
            "k": str(row["k"]),
            "held-out NLL": f"{row['target']:.2f}",
            **{name: _seconds(**found) for name, found in row["fastest"].items()},
        }
        for row in benchmark(results, "time_to_nll")["compared"]
    )


WHOLE = ("table1/mnist/1l/vae-k1", "table1/mnist/1l/iwae-k5", "table1/mnist/1l/iwae-k50")
"""Cells of the model that `benchmarks/train_step.py` trains."""


def whole_training_table(results: Path) -> str:
    """Markdown: time and NLL of a whole training, by the published schedule and a fast recipe.

    Times are those of all steps, as `benchmarks/train_step.py` (PyTorch) and `benchmarks/cells.py`
    measured them; a ratio is to the time of PyTorch. NLL is the usual one of a cell.
    """
    medians = _medians(benchmark(results, "train_step"))
    rows = []
    for name in WHOLE:
        entry, fast = PRESETS[name], read_cell_result(results, FAST + name, Wanted())
        config = entry.config()
        steps = config.epochs * (DATASETS["mnist"].sizes[0] // config.batch_size)
        torch = min(_torch_steps(medians, str(config.k)), default=np.nan) * steps / 3.6e6
        times = {"iwae, published schedule": cost_hours(config), "iwae, fast recipe": fast.hours}
        rows.append(
            {
                "k": str(config.k),
                "published NLL": plus_minus(entry.nll, None, 2),
                "NLL by the fast recipe": plus_minus(fast.nll, fast.stderr, 2),
                "PyTorch, published schedule": cost_in_words(torch),
                **{
                    column: "-"
                    if hours is None
                    else f"{cost_in_words(hours)} ({torch / hours:.1f}x)"
                    for column, hours in times.items()
                },
            }
        )
    return markdown(rows)


def _medians(record: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of each step in a record of `benchmarks/train_step.py`."""
    return {name: timing[0] for name, (timing, _) in record["results"].items()}


def _torch_steps(medians: dict[str, float], setting: str) -> list[float]:
    """Milliseconds of PyTorch's variants of a step, such as `50 batch=100`."""
    return [ms for name, ms in medians.items() if re.fullmatch(rf"torch .* k={setting}", name)]


def _seconds(seconds: float | None, ratio: float | None) -> str:
    if seconds is None:
        return "not reached"
    return f"{seconds:.0f} s" + ("" if ratio in (None, 1) else f" ({ratio:.1f}x)")


def costs_table(results: Path) -> str:
    """Markdown: a training step of every objective in the run of `benchmarks/objective_step.py`.

    Medians over the undisturbed blocks of that run; in brackets the ratio to the IWAE of as many
    particles, and the steps' peak memory besides data, states and programs. "busy" marks steps that
    were never undisturbed, or whose IWAE was not.
    """
    steps = benchmark(results, "objective_step")["results"]
    rows: dict[str, Row] = {}
    for step, ((ms, _, _, quiet, _), mebibytes) in steps.items():
        name, _, k = step.rpartition(" k=")
        if name:
            base_ms, _, _, base_quiet, _ = _timing(steps, f"iwae k={k}")
            words = f"{ms / base_ms:.2f}" if quiet and base_quiet else "busy"
            memory = "" if mebibytes is None else f", {mebibytes:.0f} MiB"
            cell = f"{ms:.2f} ms ({words}){memory}"
            rows.setdefault(name, {"objective, gradient": name})[f"k = {k}"] = cell
    return markdown(rows.values())


def aiwae_table(results: Path) -> str:
    """Markdown: AIWAE's step here and in plain PyTorch, timed in turn, and its lower bound.

    The bound is the time of the chains' multiplications alone at the fastest matrix product of
    `benchmarks/annealing.py`: S chains of each of 128 examples make T - 1 moves of L leapfrogs.
    """
    steps = benchmark(results, "objective_step")["results"]
    peak = benchmark(results, "annealing")
    ours, theirs = (_timing(steps, name)[0] for name in (AIWAE_STEP, f"torch {AIWAE_STEP}"))
    bound = LEAPFROGS * peak["flops"] / peak["peak_gflops"] / 1e6
    return markdown(
        {"a step of AIWAE, S = T = L = 5, batch 128": name, "ms": f"{ms:.0f}", "ratio": ratio}
        for name, ms, ratio in (
            ("plain PyTorch", theirs, ""),
            ("here", ours, f"{theirs / ours:.1f}"),
            ("the leapfrogs' multiplications at the cores' peak", bound, f"{theirs / bound:.1f}"),
        )
    )


def queue_table(results: Path) -> str:
    """Markdown: the overhead of the queue, and of Ray, by `benchmarks/queue_overhead.py`.

    Medians over the rounds of that run, with the range.
    """
    seconds = benchmark(results, "queue_overhead")["seconds"]
    (_, first), *others = seconds.items()
    longer = [(method, np.subtract(each, first)) for method, each in others]
    return markdown(
        {
            "one run by": method,
            "rounds": str(len(more)),
            "longer by, s": f"{np.median(more):+.1f} ({more.min():+.1f} to {more.max():+.1f})",
            "of ten minutes": f"{np.median(more) / 600:+.1%}",
        }
        for method, more in longer
    )


def _timing(steps: dict[str, Any], name: str) -> list[Any]:
    """Median, low, high, undisturbed blocks and others of a step."""
    if name not in steps:
        raise UserError(f"the record of benchmarks/objective_step.py has no {name!r}: time it too")
    return steps[name][0]


def schedules_table(results: Path) -> str:
    """Markdown: gaps of bidirectional Monte Carlo by schedule in `benchmarks/schedules.py`.

    A cell has the gap in nats, and in brackets the gap times the leapfrog steps of a chain.
    """
    rows: dict[tuple[str, str], Row] = {}
    for cell in benchmark(results, "schedules")["cells"]:
        setting = {"start": cell["start"], "schedule": cell["schedule"]}
        row = rows.setdefault((cell["start"], cell["schedule"]), setting)
        gap = plus_minus(cell["gap"], cell["gap_stderr"])
        row[f"T = {cell['temperatures']}"] = f"{gap} ({cell['gap'] * cell['leapfrogs']:.0f})"
    return markdown(rows.values())


def memory_table(results: Path) -> str:
    """Markdown: peaks of resident memory in `benchmarks/large_files.py`, a row for each file."""
    return markdown(
        {"file": f"{found['gigabytes']:g} GB, `{found['suffix']}`"}
        | {f"`{name}`": f"{one['peak']:.2f} GB" for name, one in found["commands"].items()}
        for found in benchmark(results, "large_files")["results"]
    )


CSV_WORDS = {
    "read": "reading the file",
    "train csv": "`iwae train`, one epoch",
    "score": "`iwae score`, k = 100",
}
"""Command in the record -> its name in the table."""


def csv_table(results: Path) -> str:
    """Markdown: processor time and memory for a table of text in `benchmarks/large_files.py`."""
    (found,) = benchmark(results, "large_csv")["results"]
    return markdown(
        {
            "what": CSV_WORDS[name],
            "processor time": f"{one['processor']:.1f} s",
            "memory": f"{one['peak']:.2f} GB",
        }
        for name, one in found["commands"].items()
    )


def priors_table(results: Path) -> str:
    """Markdown: a training step with each prior and posterior, by `benchmarks/prior_step.py`.

    Medians over the blocks of that run, as multiples of a step with N(0, I) and Gaussians.
    """
    record = benchmark(results, "prior_step")
    medians = {name: float(np.median(ms)) for name, ms in record["ms_per_step"].items()}
    usual = medians["prior normal"]
    times = "processor time" if record["clock"] == "cpu" else "time"
    return markdown(
        {
            "option": f"`--{name}`",
            f"{times} of a step, ms": f"{ms:.2f}",
            "ratio": f"{ms / usual:.2f}",
        }
        for name, ms in medians.items()
    )

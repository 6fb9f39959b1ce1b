"""Time for training to reach a held-out likelihood, against a plain PyTorch loop.

    python benchmarks/time_to_nll.py --json FILE [--k 1 5 50] [--seconds 600] [--epochs 50 100]
    python benchmarks/time_to_nll.py --json FILE --figure docs/images/time-to-nll.png

The task is IWAE-k of the published one-layer model (784-200-200-50) on MNIST, binarised
dynamically, with 2,000 training images held out. Three contestants train on all cores, one after
another, each in a process of its own, for a budget of seconds or to the end of their schedule:
plain PyTorch by the published recipe (`nll_torch.py`), the trainer by the published recipe, and the
trainer by a fast recipe in stages. The clock counts everything that a user waits for, such as
imports and compilation (caches are empty at the start); it stands still only while weights are
written. L_500 of the held-out images is computed afterwards from those weights, with the same code
and random numbers for all.

The published schedule takes days, so contestants are compared at the lowest NLL that all of them
have reached within the budget, or at `--target`. The learning rate of the fast recipe falls to zero
over its whole length, so a long run reaches the target late. `--epochs` scales the recipe to
several lengths, each trained in turn; the table marks the one that reaches the target first. Short
trainings bear a higher rate than the recipe: `--rate` scales its rates.

`--only` trains some of the contestants. A new run replaces that of the same k, contestant and
length in the record, which keeps all others, and all points of each.
"""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0))))

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iwae.config.experiment import TrainConfig, make_config
from iwae.config.presets import preset
from iwae.config.toml import config_toml_values, read_config, write_config
from iwae.data import load_dataset
from iwae.models.likelihoods import observation
from iwae.reports.figures.axis_scales import plain_axis_ticks
from iwae.reports.figures.saving import save_figure
from iwae.reports.figures.style import FAINT, INK, PALETTE, SMALL, apply_style, fix_figure_layout
from nll_course import POINTS
from nll_evaluate import nll
from timing import QUIET_CORES, cores, summary
from train_step import HERE, MISSING_TORCH, VARIANTS, has_torch, measure
from train_step import Contestant as Timed

HELD_OUT, EVALUATED_K = 2000, 500
TORCH, PUBLISHED, FAST = "PyTorch", "iwae", "iwae, fast recipe"
CONTESTANTS = ("torch", "published", "fast")
RATES = ("learning_rate", "lr_end")
Run = dict[str, Any]  # k, name, what, epochs, version, points, others


class Contestant(NamedTuple):
    """Something that trains in a process of its own."""

    k: int
    name: str
    what: str  # distinguishes it from others of the same name
    epochs: int
    command: list[Any]


def cell(k: int) -> str:
    """The last part of a preset's name."""
    return "vae-k1" if k == 1 else f"iwae-k{k}"


def contestants(args: argparse.Namespace, folder: Path) -> Iterator[Contestant]:
    """Yield all in turn; write their data and experiment files to the folder."""
    write_data(folder / "data.npz")
    for k in args.k:
        if args.torch_python and "torch" in args.only:
            variant = args.variant or fastest_variant(k, args.torch_python)
            command = [args.torch_python, HERE / "nll_torch.py", "--k", str(k)]
            command += ["--variant", variant, "--data", folder / "data.npz"]
            command += ["--epochs", str(args.published_epochs)]
            yield Contestant(k, TORCH, variant, args.published_epochs, command)
        published = [(PUBLISHED, f"table1/mnist/1l/{cell(k)}", args.published_epochs)]
        fast = [(FAST, args.fast.format(cell=cell(k)), epochs) for epochs in args.epochs]
        ours = published * ("published" in args.only) + fast * ("fast" in args.only)
        for number, (name, source, epochs) in enumerate(ours):
            rate = args.rate if name == FAST else None
            config, path = experiment(source, k, epochs, rate), folder / f"k{k}-{number}.toml"
            write_config(config, path)
            command = [sys.executable, HERE / "nll_iwae.py", "--config", path]
            yield Contestant(k, name, source, config.epochs, command)


def experiment(source: str, k: int, epochs: int | None, rate: float | None) -> TrainConfig:
    """The configuration of a preset or file, for this many epochs, with images held out.

    Args:
        rate: another initial learning rate, to which those of all stages are scaled.
    """
    path = Path(source)
    base = read_config(path) if path.suffix == ".toml" else preset(source).config()
    values = {**config_toml_values(base), "validation": HELD_OUT, "epochs": epochs or base.epochs}
    if rate is not None:
        scale = rate / base.learning_rate
        for stage in (values, *values.get("stages", ())):
            stage |= {name: scale * stage[name] for name in RATES if name in stage}
    config = make_config(values, source)
    final = config.final().declaration()
    if (final.k, config.sizes()) != (k, ((50,), ((200, 200),))) or config.dataset != "mnist":
        raise SystemExit(f"{source} needs k = {k}, one layer and MNIST: name another --fast")
    return config


def write_data(path: Path) -> None:
    """Grey training images for a plain loop, and the bias that gives their means."""
    data = load_dataset("mnist", validation=HELD_OUT)
    start = observation(data.kind, data.n_values).initial_output(data.train_mean[None])
    np.savez(path, train=data.train, output_bias=np.asarray(start, np.float32))


def fastest_variant(k: int, python: str) -> str:
    """The variant of the PyTorch step with the shortest median."""
    found = {}
    for variant in VARIANTS:
        print(f"k={k}: timing {variant}", file=sys.stderr)
        shape = ("--k", str(k), "--variant", variant)
        measured = measure(Timed(f"torch {variant}", python, "torch_step.py", shape), 2.0)
        if measured is not None:
            found[variant] = summary(measured.blocks).median
    return min(found, key=found.__getitem__, default="eager")


def train(contestant: Contestant, seconds: float, folder: Path) -> Run:
    """Let a contestant train, and evaluate the weights that it wrote."""
    folder.mkdir()
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),
    }
    command = [*contestant.command, "--folder", folder, "--seconds", str(seconds)]
    command += ["--start", str(time.time())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contestant.name} k={contestant.k} failed:\n{done.stderr[-2000:]}")
    lines = (folder / POINTS).read_text().splitlines()
    points = evaluated([json.loads(line) for line in lines], folder)
    return {
        **{name: getattr(contestant, name) for name in ("k", "name", "what", "epochs")},
        "version": done.stdout.splitlines()[-1],
        "others": disturbance(points),
        "points": points,
    }


def evaluated(points: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The points, with their weights replaced by their NLL."""
    images = load_dataset("mnist", validation=HELD_OUT).validation
    for point in points:
        point["nll"] = nll(folder / point.pop("weights"), images, EVALUATED_K)
    return points


def disturbance(points: list[dict[str, Any]]) -> float:
    """Cores that other programs kept busy, except in the first lap, in which compilers run."""
    laps = np.diff([point["seconds"] for point in points])
    others = [point["others"] for point in points[1:]]
    return float(np.average(others, weights=laps)) if len(laps) else points[0]["others"]


def seconds_to(run: Run, target: float) -> float | None:
    """Seconds after which a run first reached an NLL, interpolated in log seconds."""
    before = None
    for point in run["points"]:
        if point["nll"] <= target:
            if before is None:
                return point["seconds"]
            share = (before["nll"] - target) / (before["nll"] - point["nll"])
            return before["seconds"] * (point["seconds"] / before["seconds"]) ** share
        before = point
    return None


class Compared(NamedTuple):
    """The runs of one k at one target; `first` is the fastest run of each name."""

    target: float
    runs: list[Run]
    seconds: list[float | None]  # of each run, to the target
    first: dict[str, int]


def compare(record: dict[str, Any], k: int) -> Compared:
    """Compare at the target of the record, or at the lowest NLL that all contestants reached."""
    runs = [run for run in record["runs"] if run["k"] == k]
    lowest: dict[str, float] = {}
    for run in runs:
        reached = min(point["nll"] for point in run["points"])
        lowest[run["name"]] = min(reached, lowest.get(run["name"], reached))
    target = record["target"] or max(lowest.values())
    seconds = [seconds_to(run, target) for run in runs]
    first: dict[str, int] = {}
    for i in sorted(range(len(runs)), key=lambda i: seconds[i] or float("inf")):
        first.setdefault(runs[i]["name"], i)
    return Compared(target, runs, seconds, first)


def ratio(compared: Compared, i: int) -> float | None:
    """Seconds of PyTorch to the target, as a multiple of those of a run."""
    torch, ours = compared.first.get(TORCH), compared.seconds[i]
    theirs = None if torch is None else compared.seconds[torch]
    return theirs / ours if theirs and ours else None


def table(record: dict[str, Any]) -> list[str]:
    """Lines of the report."""
    lines = []
    for k in dict.fromkeys(run["k"] for run in record["runs"]):
        compared = compare(record, k)
        lines += ["", f"k = {k}: held-out NLL {compared.target:.2f}, by L_{EVALUATED_K}"]
        lines += [f"{'':28}{'epochs':>8}{'seconds':>10}{'vs torch':>10}{'end: s':>9}{'NLL':>9}"]
        for i, run in enumerate(compared.runs):
            seconds, times, last = compared.seconds[i], ratio(compared, i), run["points"][-1]
            words = [
                f"{run['name']:28}{run['epochs']:8}",
                f"{'never' if seconds is None else f'{seconds:.1f}':>10}",
                f"{'-' if times is None else f'{times:.1f}x':>10}",
                f"{last['seconds']:9.1f}{last['nll']:9.2f}",
                "  fastest of its lengths"
                * (i in compared.first.values() and is_one_of(run, record)),
                f"  disturbed: {run['others']:.1f} cores" * (run["others"] > QUIET_CORES),
            ]
            lines.append("".join(words))
    return lines


def is_one_of(run: Run, record: dict[str, Any]) -> bool:
    """Whether there are runs of the same k and name with other lengths."""
    return sum((r["k"], r["name"]) == (run["k"], run["name"]) for r in record["runs"]) > 1


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw NLL against seconds, a panel for each k, to be read at a width of 700 pixels."""
    ks = list(dict.fromkeys(run["k"] for run in record["runs"]))
    every = [compare(record, k) for k in ks]
    figure = Figure(figsize=(7.0, 3.0), dpi=200, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(ks), sharey=True, squeeze=False)[0]
    colours = dict(zip((TORCH, PUBLISHED, FAST), (PALETTE[1], PALETTE[5], PALETTE[0]), strict=True))
    lines = {}
    for axes, k, compared in zip(panels, ks, every, strict=True):
        for i, run in enumerate(compared.runs):
            name, best = run["name"], i in compared.first.values()
            xy = np.array([(p["seconds"], p["nll"]) for p in run["points"]]).T
            style = {"linewidth": 1.6 if best else 0.8, "alpha": 1.0 if best else 0.4}
            line = axes.plot(*xy, color=colours[name], marker=".", markersize=3, **style)[0]
            lines |= {name: line} if best else {}
        fast, times = compared.first.get(FAST), None
        if fast is not None and (times := ratio(compared, fast)):
            ends = [compared.seconds[i] for i in (fast, compared.first[TORCH])]
            label_gap(axes, ends, compared.target, f"{times:.1f}×")
        axes.set_xscale("log")
        axes.set_title(f"k = {k}", fontsize=SMALL + 1, color=INK)
        apply_style(axes, "seconds", "held-out NLL, nats" if axes is panels[0] else "")
        plain_axis_ticks(axes)
        axes.axhline(compared.target, color=FAINT, linewidth=0.6, linestyle=":", zorder=0)
    lowest = min(p["nll"] for run in record["runs"] for p in run["points"])
    panels[0].set_ylim(lowest - 2, max(compared.target for compared in every) + 15)
    names = [name for name in colours if name in lines]
    words = {TORCH: "PyTorch, published recipe", PUBLISHED: "iwae, published recipe"}
    figure.legend(
        [lines[name] for name in names],
        [words.get(name, name) for name in names],
        loc="outside upper center",
        ncols=3,
        fontsize=SMALL + 1,
        labelcolor=INK,
        frameon=False,
    )
    save_figure(fix_figure_layout(figure), path)


def label_gap(axes: Axes, ends: list[float], y: float, words: str) -> None:
    """Draw an arrow between two times at a height, with words at its left end."""
    arrow = {"arrowstyle": "<->", "color": INK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (ends[0], y), (ends[1], y), arrowprops=arrow)
    style = {"ha": "right", "va": "top", "fontsize": SMALL + 1, "color": INK}
    axes.annotate(words, (ends[0], y), (-3, -3), textcoords="offset points", **style)


def cpu() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def main() -> None:
    """Measure what the options name, or draw a record; print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 5, 50], help="samples per example")
    parser.add_argument("--seconds", type=float, default=600.0, help="budget of each contestant")
    parser.add_argument(
        "--fast", default="fast/table1/mnist/1l/{cell}", help="preset or .toml file"
    )
    parser.add_argument("--epochs", type=int, nargs="+", default=[None], help="of the fast recipe")
    parser.add_argument("--rate", type=float, help="initial learning rate of the fast recipe")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--published-epochs", type=int, default=3280, help="of the published one")
    parser.add_argument("--target", type=float, help="compare at this NLL")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with PyTorch")
    parser.add_argument("--variant", choices=VARIANTS, help="PyTorch step; default: the fastest")
    parser.add_argument("--json", type=Path, required=True, help="the record")
    parser.add_argument("--figure", type=Path, help="draw the record and measure nothing")
    args = parser.parse_args()
    record = json.loads(args.json.read_text()) if args.json.exists() else {"runs": []}
    record["target"] = args.target or record.get("target")
    if args.figure:
        write(args.json, record)  # with the seconds to another target, if there is one
        draw(record, args.figure)
    else:
        record = measure_all(args, record)
    print("\n".join(table(record)))


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the record, with the times of its runs compared."""
    path.write_text(json.dumps({**record, "compared": summaries(record)}, indent=1) + "\n")


def summaries(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each k: the target, and seconds to it and ratio of the fastest run of a name."""
    rows = []
    for k in dict.fromkeys(run["k"] for run in record["runs"]):
        compared = compare(record, k)
        fastest = {
            name: {"seconds": compared.seconds[i], "ratio": ratio(compared, i)}
            for name, i in sorted(compared.first.items(), key=lambda item: item[1])
        }
        rows.append({"k": k, "target": compared.target, "fastest": fastest})
    return rows


def run_name(run: Run) -> tuple[int, int, int]:
    """What distinguishes a run from all others, in the order of the record."""
    return run["k"], (TORCH, PUBLISHED, FAST).index(run["name"]), run["epochs"]


def measure_all(args: argparse.Namespace, record: dict[str, Any]) -> dict[str, Any]:
    """The record with new runs; written after each of them."""
    if "torch" in args.only and not has_torch(args.torch_python):
        print(MISSING_TORCH.format(python=args.torch_python), file=sys.stderr)
        args.torch_python = None
    about = {"machine": platform.machine(), "cpu": cpu(), "cores": cores(), "seconds": args.seconds}
    runs = {run_name(run): run for run in record["runs"]}
    with tempfile.TemporaryDirectory() as folder:
        for number, contestant in enumerate(contestants(args, Path(folder))):
            print(f"k={contestant.k}: {contestant.name}, {contestant.what}", file=sys.stderr)
            date = datetime.now(UTC).isoformat(timespec="seconds")
            trained = train(contestant, args.seconds, Path(folder) / f"{number}")
            runs[run_name(trained)] = {**trained, **about, "date": date}
            every = sorted(runs.values(), key=run_name)
            record = {
                "held_out": HELD_OUT,
                "L_k": EVALUATED_K,
                "target": record["target"],
                "runs": every,
            }
            write(args.json, record)
    return record


if __name__ == "__main__":
    main()

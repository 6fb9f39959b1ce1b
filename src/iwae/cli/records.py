"""`iwae compare`, `gradients`, `figures` and `report`: more from models and records."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from iwae.cli import parsing
from iwae.results.text import describe_comparison, describe_gradients


@dataclasses.dataclass(frozen=True)
class Compare:
    """The difference of runs to the first one, example by example, from their records."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of two or more runs that `iwae evaluate` has measured."""
    split: Literal["train", "validation", "test"] = "test"
    """Which examples."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    pruned: bool = False
    """The models without their inactive units."""
    estimator: str | None = None
    """Such as L_5000 or AIS_500 (default: the tightest that all runs have)."""
    json: bool = False
    """Print exactly one JSON object on standard output."""


def compare(arguments: Sequence[str]) -> int:
    """`iwae compare`."""
    options = parsing.parse(Compare, "compare", arguments)
    from iwae.results.compare import compare as compare_runs

    record = compare_runs(
        options.runs,
        split=options.split,
        weights=options.weights,
        pruned=options.pruned,
        estimator=options.estimator,
    )
    print(json.dumps(record, allow_nan=False) if options.json else describe_comparison(record))
    return 0


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Signal, noise and bias of gradient estimators at the models of a run.

    For each k and estimator, and each group of parameters: mean, variance, signal-to-noise ratio,
    bias against a reference by a paired test, and time and memory of one gradient. Writes a record
    and a figure to RUN/evaluations.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    k: tuple[int, ...] = (1, 10, 100)
    """Particles, one or several."""
    gradients: tuple[str, ...] | None = None
    """Estimators (default: all that go with the objective; `iwae objectives` lists them)."""
    backward: tuple[int, ...] = ()
    """Beside each estimator the same one through so many particles, where k is larger."""
    objective: str | None = None
    """The bound whose gradient it is (default: the run's)."""
    m: int | None = None
    """miwae, piwae: groups of k samples (default: the run's)."""
    alpha: float | None = None
    """vr-iwae, and the gradient dreg-alpha (default: the run's)."""
    beta: float | None = None
    """ciwae: the share of the elbo (default: the run's)."""
    reference: str | None = None
    """What biases are measured against (default: the objective's plain gradient)."""
    examples: int = 20
    """Examples of the batch, a seeded random subset."""
    draws: int = 200
    """Draws of each gradient."""
    split: Literal["train", "validation", "test"] = "train"
    """Where the batch is from."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    seed: int = 0
    """Seed of all random numbers."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""
    json: bool = False
    """Print exactly one JSON object on standard output."""
    quiet: bool = False
    """No progress."""


def gradients(arguments: Sequence[str]) -> int:
    """`iwae gradients`."""
    options = parsing.parse(Gradients, "gradients", arguments)
    parsing.set_up_jax()
    from iwae.reports.gallery import draw_gradients
    from iwae.results.signal import gradients_run
    from iwae.runs.progress import tracker

    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    run, as_json, quiet = (chosen.pop(name) for name in ("run", "json", "quiet"))
    record = gradients_run(run, ks=chosen.pop("k"), track=tracker(quiet=quiet), **chosen)
    draw_gradients(run)
    print(json.dumps(record, allow_nan=False) if as_json else describe_gradients(record))
    return 0


@dataclasses.dataclass(frozen=True)
class Figures:
    """Draw the pictures of a run into RUN/figures."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""


def draw_figures(arguments: Sequence[str]) -> int:
    """`iwae figures`."""
    options = parsing.parse(Figures, "figures", arguments)
    parsing.set_up_jax()
    from iwae.reports.gallery import draw_run

    for path in draw_run(options.run, weights=options.weights, data_dir=options.data_dir):
        print(path)
    return 0


@dataclasses.dataclass(frozen=True)
class ReportPage:
    """Put runs side by side on one page that needs no network and no other file."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the runs."""
    out: Path = Path("report.html")
    """The page."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""


def report(arguments: Sequence[str]) -> int:
    """`iwae report`."""
    options = parsing.parse(ReportPage, "report", arguments)
    parsing.set_up_jax()
    from iwae.reports.page.write import write_page

    page = write_page(options.runs, options.out, weights=options.weights, data_dir=options.data_dir)
    print(page)
    return 0

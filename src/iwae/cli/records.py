"""`iwae compare`, `gradients`, `figures` and `report`: further results from models and records."""

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
    """Compare runs with the first one, example by example, from their records."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of two or more runs that `iwae evaluate` has measured."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to compare."""
    weights: Literal["final", "best"] = "final"
    """The final weights, or those with the best validation bound."""
    pruned: bool = False
    """Compare the models with their inactive units removed."""
    estimator: str | None = None
    """Estimator, such as L_5000 or AIS_500 (default: the tightest that all runs have)."""
    json: bool = False
    """Print exactly one JSON object to standard output."""


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
    """Measure signal, noise and bias of gradient estimators on the models of a run.

    For each k, estimator and group of parameters: mean, variance, signal-to-noise ratio, bias
    against a reference by a paired test, and time and memory per gradient. Writes a record and a
    figure to RUN/evaluations.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    k: tuple[int, ...] = (1, 10, 100)
    """Number of particles, one or several."""
    gradients: tuple[str, ...] | None = None
    """Estimators (default: all that apply to the objective; see `iwae objectives`)."""
    backward: tuple[int, ...] = ()
    """Also measure each estimator through this many particles, where k is larger."""
    objective: str | None = None
    """Objective whose gradient to measure (default: the run's)."""
    m: int | None = None
    """miwae, piwae: number of groups of k samples (default: the run's)."""
    alpha: float | None = None
    """vr-iwae, and the gradient dreg-alpha (default: the run's)."""
    beta: float | None = None
    """ciwae: weight of the ELBO (default: the run's)."""
    reference: str | None = None
    """Estimator to measure biases against (default: the objective's plain one)."""
    examples: int = 20
    """Examples in the batch, a seeded random subset."""
    draws: int = 200
    """Draws of each gradient: a multiple of 10, at least 20."""
    split: Literal["train", "validation", "test"] = "train"
    """Split that the batch is drawn from."""
    weights: Literal["final", "best"] = "final"
    """The final weights, or those with the best validation bound."""
    seed: int = 0
    """Random seed."""
    data_dir: Path | None = None
    """Folder to search first for data files (default: $IWAE_DATA)."""
    json: bool = False
    """Print exactly one JSON object to standard output."""
    quiet: bool = False
    """Show no progress."""


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
    """Draw the figures of a run into RUN/figures."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    weights: Literal["final", "best"] = "final"
    """The final weights, or those with the best validation bound."""
    data_dir: Path | None = None
    """Folder to search first for data files (default: $IWAE_DATA)."""


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
    """Show runs side by side on one page that needs no network and no other file."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the runs."""
    out: Path = Path("report.html")
    """HTML file to write."""
    weights: Literal["final", "best"] = "final"
    """The final weights, or those with the best validation bound."""
    data_dir: Path | None = None
    """Folder to search first for data files (default: $IWAE_DATA)."""


def report(arguments: Sequence[str]) -> int:
    """`iwae report`."""
    options = parsing.parse(ReportPage, "report", arguments)
    parsing.set_up_jax()
    from iwae.reports.page.write import write_page

    page = write_page(options.runs, options.out, weights=options.weights, data_dir=options.data_dir)
    print(page)
    return 0

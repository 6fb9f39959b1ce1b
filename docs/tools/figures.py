"""Draw the figures of pages from records: `python docs/tools/figures.py`."""

import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iwae.config.experiment import TrainConfig
from iwae.config.presets import FAST, PRESETS, matching
from iwae.config.toml import read_config
from iwae.errors import UserError
from iwae.experiments.cell_results import Cell, read_cell_result
from iwae.experiments.cells import Wanted, cell_runs
from iwae.experiments.costs import cost_hours, costed_stages
from iwae.reports.figures import save_figure, style
from iwae.reports.figures.axis_scales import cut_axis_start
from iwae.reports.figures.style import apply_style, fix_figure_layout, styled_figure
from iwae.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]


class Course(NamedTuple):
    """The training of a cell.

    Attributes:
        cell: results of the cell.
        prior: name of the prior.
        minutes: training time until the end of each epoch, by measured steps, `[e]`.
        bound: mean of the objective over each epoch, nats, `[e]`; NaN during KL warm-up, when the
            objective is no bound.
    """

    cell: Cell
    prior: str
    minutes: Float[np.ndarray, " e"]
    bound: Float[np.ndarray, " e"]


def priors_figure(results: Path) -> Figure:
    """Compare learned priors at equal training cost, with a panel for each cell that has them.

    Lines are training bounds; the point at the end of a line is log p(x) of the test images by
    L_5000, with its standard error.

    Raises:
        UserError: if no cell with a learned prior was measured.
    """
    names = matching([f"{FAST}prior"])
    panels = {}
    for baseline, cells in groupby(names, lambda name: str(PRESETS[name].beside)):
        courses = [one for name in (baseline, *cells) if (one := read_course(results, name))]
        if {"normal"} < {one.prior for one in courses}:
            panels[baseline.removeprefix(f"{FAST}table1/")] = courses
    if not panels:
        raise UserError(f"{results} holds no cell with a learned prior beside its baseline")
    priors = dict.fromkeys(one.prior for courses in panels.values() for one in courses)
    styles = dict(zip(priors, zip(style.PALETTE, style.MARKERS, strict=False), strict=False))
    figure, charts = styled_figure(len(panels), height=3.4)
    for axes, (name, courses) in zip(charts, panels.items(), strict=True):
        _draw_courses(axes, courses, styles)
        axes.set_title(name, fontsize=style.NORMAL)
    return fix_figure_layout(figure)


def read_course(results: Path, name: str) -> Course | None:
    """The training of a cell; None if it was not measured, or its time per step is unknown."""
    cell = read_cell_result(results, name, Wanted())
    runs = list(cell_runs(results, Path(name)))
    if cell.nll is None or not runs:
        return None
    config, rows = read_config(runs[0] / "config.toml"), read_metrics(runs[0])
    epochs = np.array([row["epoch"] for row in rows], float)
    minutes = _minutes(config, epochs)
    if minutes is None:
        return None
    bound = np.array([np.mean(row["train_bound"]) for row in rows])
    bound[epochs <= costed_stages(config)[0].kl_warmup] = np.nan
    return Course(cell, config.prior, minutes, bound)


def _minutes(config: TrainConfig, epochs: np.ndarray) -> np.ndarray | None:
    """Minutes until the end of each epoch; None if the time of a step is unknown."""
    stages = costed_stages(config)
    each = [cost_hours(stage) for stage in stages]
    if None in each:
        return None
    ends = np.cumsum([0, *(stage.epochs for stage in stages)])
    return np.interp(epochs, ends, 60 * np.cumsum([0, *each]))


def _draw_courses(axes: Axes, courses: list[Course], styles: dict[str, tuple[str, str]]) -> None:
    """Draw the courses in the colour and marker of their priors."""
    for course in courses:
        colour, marker = styles[course.prior]
        axes.plot(course.minutes, course.bound, color=colour, linewidth=1.4)
        axes.errorbar(
            course.minutes[-1:],
            [-float(course.cell.nll or 0)],
            yerr=course.cell.stderr,
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2,
            linestyle="none",
            label=course.prior,
        )
    cut_axis_start(axes, [(course.minutes, course.bound) for course in courses])
    low, _ = axes.get_ylim()
    tops = [(one.cell.stderr or 0) - float(one.cell.nll or 0) for one in courses]
    axes.set_ylim(low, max(tops) + 0.5)
    axes.set_xlim(left=0)
    apply_style(
        axes, "minutes of training on two cores", "line: training bound; point: test L_5000 (nats)"
    )
    axes.legend(loc="lower right", **style.LEGEND)


FIGURES = {"priors-cost": priors_figure}
"""Name of a figure in docs/images -> the function that draws it from the results."""


def main(
    results: tyro.conf.Positional[Path] = ROOT / "results",
    images: tyro.conf.Positional[Path] = ROOT / "docs/images",
) -> None:
    """Draw all figures."""
    for name, draw in FIGURES.items():
        save_figure(draw(results), images / f"{name}.png")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except UserError as error:
        sys.exit(f"figures.py: {error}")

"""Charts of runs on the page."""

import logging
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iwae.errors import UserError
from iwae.reports.figures import style
from iwae.reports.figures.axis_scales import (
    cut_axis_start,
    integer_axis_ticks,
    plain_axis_ticks,
    scale_epoch_axis,
)
from iwae.reports.figures.charts import TrainingCurve, chart_curves
from iwae.reports.figures.error_bars import draw_error_bars
from iwae.reports.figures.style import apply_style, fix_figure_layout, styled_figure
from iwae.reports.page.page_runs import Run
from iwae.results.compare import compared_by_budget, compared_places
from iwae.results.reading import Known
from iwae.results.schema import Settings

log = logging.getLogger(__name__)

NUMBER = "{x:,.0f}"
"""Format of numbers on a logarithmic axis, as in the text of the page."""

LINES: tuple[Any, ...] = ("-", "--", ":", "-.")


class Picture(NamedTuple):
    """A figure on the page: its markup, and the caption below it."""

    markup: Markup
    caption: str
    alt: str


def run_training_chart(runs: Mapping[int, Run]) -> Figure | None:
    """The training bound (solid) and validation bound (dashed) of runs on the same data.

    Args:
        runs: the runs by their place on the page, which determines their colour.

    Returns:
        The chart; None without any bound.
    """
    drawn = []
    figure, axes = _empty_chart()
    for place, run in runs.items():
        for key, line in (("train_bound", "-"), ("validation_bound", "--")):
            for curve in _curves(run, key, key).values():
                drawn.append((curve.epochs, curve.mean()))
                _draw_line(axes, *drawn[-1], place, line)
    if not drawn:
        return None
    scale_epoch_axis(axes, [epochs for epochs, _ in drawn], NUMBER)
    cut_axis_start(axes, drawn)
    apply_style(axes, "epoch", "bound (nats)")
    return fix_figure_layout(figure)


def run_units_chart(runs: Mapping[int, Run]) -> Figure | None:
    """Active units through training, with a line style for each layer; see `run_training_chart`."""
    drawn = []
    figure, axes = _empty_chart()
    for place, run in runs.items():
        layers = _curves(run, "active_units", None).values()
        for curve, line in zip(layers, cycle(LINES), strict=False):
            _draw_line(axes, curve.epochs, curve.mean(), place, line)
            drawn.append(curve.epochs)
    if not drawn:
        return None
    scale_epoch_axis(axes, drawn, NUMBER)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.yaxis.set_major_locator(integer_axis_ticks())
    apply_style(axes, "epoch", "active units")
    return fix_figure_layout(figure)


def _curves(run: Run, key: str, name: str | None) -> dict[str, TrainingCurve]:
    """The curves of a metric; none, with a warning, if rows of the log do not fit together."""
    try:
        return chart_curves(run.metrics, key, name)
    except UserError as error:
        log.warning("%s: a curve is not on the page: %s", run.path, error)
        return {}


def _empty_chart() -> tuple[Figure, Axes]:
    figure, (axes,) = styled_figure(1)
    figure.set_size_inches(5.0, 3.2)  # small, so that the letters are large on a telephone
    return figure, axes


def _draw_line(axes: Axes, x: np.ndarray, y: np.ndarray, place: int, line: str) -> None:
    """Draw a line with the marker of its run at the end."""
    look = _look(place)
    axes.plot(x, y, color=look["color"], linestyle=line, linewidth=1.5)
    axes.plot(x[-1:], y[-1:], **look, markersize=5)


def _look(place: int) -> dict[str, Any]:
    """The colour and marker of a run."""
    palette, markers = style.PALETTE, style.MARKERS
    return {"color": palette[place % len(palette)], "marker": markers[place % len(markers)]}


def run_budgets_chart(known: Mapping[int, Sequence[Known]]) -> tuple[Figure, str, int] | None:
    """Paired differences of bounds by budget, on the examples that all bounds share.

    Args:
        known: the bounds of each run by its place on the page, all on one test set.

    Returns:
        The chart; the name of the bound subtracted from all, the tightest of the first run; and
        the number of examples. None unless two bounds share two examples.
    """
    shared = compared_places([bound for bounds in known.values() for bound in bounds])
    if shared is None:
        return None
    figure, axes = _empty_chart()
    reference = next(bounds for bounds in known.values() if bounds)[-1]
    axes.axhline(0, **style.GUIDE, zorder=1)
    for place, bounds in known.items():
        for annealing, curve in _by_method(bounds).items():
            points = compared_by_budget(curve, shared, reference)
            look = _look(place) | {"linestyle": "-" if annealing is None else "--"}
            draw_error_bars(axes, points, **look, linewidth=1.5, elinewidth=1, capsize=2.5)
    axes.set_xscale("log")
    label = f"difference to {reference.estimator} (nats)"
    apply_style(axes, "importance samples k, or temperatures T", label)
    plain_axis_ticks(axes, NUMBER)
    return fix_figure_layout(figure), reference.estimator, len(shared)


def _by_method(bounds: Sequence[Known]) -> dict[Settings | None, list[Known]]:
    """The bounds of each curve, by its annealing settings; None for importance sampling."""
    curves: dict[Settings | None, list[Known]] = {}
    for bound in bounds:
        settings = bound.record.annealing
        if settings is not None:
            settings = settings.model_copy(update={"temperatures": None})
        curves.setdefault(settings, []).append(bound)
    return curves

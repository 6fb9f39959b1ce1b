"""Figures on the page: charts that follow the page's colours, and pictures of pixels."""

import base64
import io
import logging
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iwae.errors import UserError
from iwae.reports.estimates import differences_by_budget, shared_places
from iwae.reports.figures import style
from iwae.reports.figures.charts import TrainingCurve, read_curves
from iwae.reports.figures.error_bars import draw_curve
from iwae.reports.page.facts import Run
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


# --- charts of all runs ---------------------------------------------------------------------


def training(runs: Mapping[int, Run]) -> Figure | None:
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
    style.scale_epochs(axes, [epochs for epochs, _ in drawn], NUMBER)
    style.cut_start(axes, drawn)
    style.finish(axes, "epoch", "bound (nats)")
    return style.laid_out(figure)


def units(runs: Mapping[int, Run]) -> Figure | None:
    """Active units through training, with a line style for each layer; see `training`."""
    drawn = []
    figure, axes = _empty_chart()
    for place, run in runs.items():
        layers = _curves(run, "active_units", None).values()
        for curve, line in zip(layers, cycle(LINES), strict=False):
            _draw_line(axes, curve.epochs, curve.mean(), place, line)
            drawn.append(curve.epochs)
    if not drawn:
        return None
    style.scale_epochs(axes, drawn, NUMBER)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.yaxis.set_major_locator(style.whole_ticks())
    style.finish(axes, "epoch", "active units")
    return style.laid_out(figure)


def _curves(run: Run, key: str, name: str | None) -> dict[str, TrainingCurve]:
    """The curves of a metric; none, with a warning, if rows of the log do not fit together."""
    try:
        return read_curves(run.metrics, key, name)
    except UserError as error:
        log.warning("%s: a curve is not on the page: %s", run.path, error)
        return {}


def _empty_chart() -> tuple[Figure, Axes]:
    figure, (axes,) = style.chart_figure(1)
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


def budgets(known: Mapping[int, Sequence[Known]]) -> tuple[Figure, str, int] | None:
    """Paired differences of bounds by budget, on the examples that all bounds share.

    Args:
        known: the bounds of each run by its place on the page, all on one test set.

    Returns:
        The chart; the name of the bound subtracted from all, the tightest of the first run; and
        the number of examples. None unless two bounds share two examples.
    """
    shared = shared_places([bound for bounds in known.values() for bound in bounds])
    if shared is None:
        return None
    figure, axes = _empty_chart()
    reference = next(bounds for bounds in known.values() if bounds)[-1]
    axes.axhline(0, **style.GUIDE, zorder=1)
    for place, bounds in known.items():
        for annealing, curve in _by_method(bounds).items():
            points = differences_by_budget(curve, shared, reference)
            look = _look(place) | {"linestyle": "-" if annealing is None else "--"}
            draw_curve(axes, points, **look, linewidth=1.5, elinewidth=1, capsize=2.5)
    axes.set_xscale("log")
    label = f"difference to {reference.estimator} (nats)"
    style.finish(axes, "importance samples k, or temperatures T", label)
    style.plain_numbers(axes, NUMBER)
    return style.laid_out(figure), reference.estimator, len(shared)


def _by_method(bounds: Sequence[Known]) -> dict[Settings | None, list[Known]]:
    """The bounds of each curve, by its annealing settings; None for importance sampling."""
    curves: dict[Settings | None, list[Known]] = {}
    for bound in bounds:
        settings = bound.record.annealing
        if settings is not None:
            settings = settings.model_copy(update={"temperatures": None})
        curves.setdefault(settings, []).append(bound)
    return curves


# --- markup ---------------------------------------------------------------------------------

COLOURS = {
    style.INK: "currentColor",
    style.FAINT: "var(--faint)",
    style.PALE: "var(--pale)",
    "#ffffff": "var(--paper)",
    **{colour.lower(): f"var(--run-{i})" for i, colour in enumerate(style.PALETTE)},
}
"""Colour of a chart -> its name on the page, which has a light and a dark theme."""


def svg(figure: Figure, name: str, alt: str) -> Markup:
    """A chart as inline SVG.

    Args:
        name: prefix of its identifiers, unique on the page; letters and digits.
        alt: alternative text.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "iwae", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[^"]*pt"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text).replace("url(#", f"url(#{name}-")
    text = text.replace('xlink:href="#', f'href="#{name}-').replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub("#[0-9a-f]{6}", lambda found: COLOURS.get(found[0], found[0]), text)
    label = Markup('<svg role="img" aria-label="{}"').format(alt)
    return label + Markup(text.removeprefix("<svg"))  # noqa: S704 - made by Matplotlib


def png(figure: Figure, alt: str) -> Markup:
    """A picture of pixels as an inline image, with an alternative text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
    width, height = (round(style.DPI * side) for side in figure.get_size_inches())
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" width="{}" height="{}" src="data:image/png;base64,{}">').format(
        alt, width, height, data
    )

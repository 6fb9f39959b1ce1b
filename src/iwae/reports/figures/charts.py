"""Charts of training, units and densities: curves, histograms and points."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from iwae.errors import UserError
from iwae.reports.figures import style
from iwae.reports.figures.axis_scales import cut_axis_start, integer_axis_ticks, scale_epoch_axis
from iwae.reports.figures.input_checks import checked_input
from iwae.reports.figures.style import apply_style, fix_figure_layout, styled_figure
from iwae.results.formatting import format_minus
from iwae.wording import count_in_words

THIN: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.45}
DOTTED: dict[str, Any] = {"color": style.FAINT, "linewidth": 0.9, "linestyle": ":"}

MOST = 12
"""Maximum number of columns in a figure."""

UNITS = "active units"
"""Label of the axis that starts at zero, so that the loss of a unit looks no larger than it is."""

FLOOR = 1e-10
"""Smallest variance on a logarithmic axis."""

WHOLE = 60
"""Range below which each whole number has a bar of its own."""


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Training curves from the rows of metrics.jsonl, with one panel per quantity.

    A row may have `epoch`; `train_bound`, `train_iwae` (drawn if it differs from `train_bound`),
    `validation_bound` and `reconstruction` (nats) and `learning_rate`, each a number or a list with
    one per replicate; `kl` (nats) and `active_units`, each a list with one number per layer, or one
    such list per replicate. None means no value, as for a replicate that has stopped. If two rows
    have the same epoch, the later one counts.

    Thin lines are replicates, and a thick line is the mean of those that have a value; the legend
    gives the last mean. Dotted lines mark changes of the learning rate; a rate that changes often
    has its own panel. Long training has a logarithmic axis of epochs. The vertical axis omits low
    values in the first seventh of the horizontal axis if they would squash the rest of a curve.

    Raises:
        UserError: if no row has a curve, or a value is invalid.
    """
    panels = _training_panels(rows)
    rates = chart_curves(rows, "learning_rate", "learning rate")
    steps = _rate_steps(rates)
    if len(steps) > 12:
        panels["learning rate"], steps = rates, {}
    figure, charts = styled_figure(len(panels))
    x_label = "epoch" if any("epoch" in row for row in rows) else "record"
    for axes, (label, curves) in zip(charts, panels.items(), strict=True):
        for (name, curve), colour in zip(curves.items(), cycle(style.PALETTE), strict=False):
            _draw_curve(axes, curve, name, colour)
        for epoch in steps:
            axes.axvline(epoch, zorder=1, **DOTTED)
        apply_style(axes, x_label, label)
    drawn = [curve for curves in panels.values() for curve in curves.values()]
    _share_epochs(charts, drawn)
    for axes, curves in zip(charts, panels.values(), strict=True):
        if all(_are_integers(curve.values[~np.isnan(curve.values)]) for curve in curves.values()):
            axes.yaxis.set_major_locator(integer_axis_ticks())
        if axes.get_ylabel() == UNITS:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        else:
            cut_axis_start(axes, list(curves.values()))
    _note_lines(figure, steps, max(curve.values.shape[1] for curve in drawn))
    return fix_figure_layout(figure)


def _training_panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, "TrainingCurve"]]:
    """The curves of each panel by the label of its axis; UserError if there are none."""
    has_other = any(row.get("train_iwae") != row.get("train_bound") for row in rows)
    panels = {
        "bound (nats)": chart_curves(rows, "train_bound", "training")
        | (chart_curves(rows, "train_iwae", "training, IWAE-k") if has_other else {})
        | chart_curves(rows, "validation_bound", "validation"),
        "reconstruction (nats)": chart_curves(rows, "reconstruction", "log p(x | z)"),
        "KL (nats)": chart_curves(rows, "kl", None),
        UNITS: chart_curves(rows, "active_units", None),
    }
    panels = {label: curves for label, curves in panels.items() if curves}
    if not panels:
        raise UserError(
            "no training curve to draw: no row has train_bound, validation_bound, "
            "reconstruction, kl or active_units"
        )
    return panels


def log_variance_histogram(variances: Sequence[np.ndarray], threshold: float) -> Figure:
    """Activity of each layer's units (Burda, Grosse and Salakhutdinov 2016).

    `variances` has one array [d] per stochastic layer, the first nearest the data: for each unit,
    the variance over examples of its posterior mean. A unit is active above `threshold`. The
    histogram shows log10 of the variance; values below `FLOOR`, such as 0, are drawn at `FLOOR`.
    """
    layers = [checked_input(layer, f"variances[{i}]", "d") for i, layer in enumerate(variances)]
    bins = _log_bins(np.concatenate(layers), threshold)
    figure, charts = styled_figure(len(layers))
    for number, (axes, layer) in enumerate(zip(charts, layers, strict=True), 1):
        _draw_variances(axes, layer, threshold, bins)
        at_floor = np.count_nonzero(layer < FLOOR)
        note = f"\n({at_floor} below {FLOOR:g} are drawn at it)" if at_floor else ""
        units = f"units of layer {number}" if len(layers) > 1 else "units"
        apply_style(axes, f"log10 of the variance of the posterior mean{note}", units)
    return fix_figure_layout(figure)


def density_1d(grid: np.ndarray, curves: Mapping[str, np.ndarray], *, data: np.ndarray) -> Figure:
    """Densities [g] by name on an increasing grid [g], over a histogram of data [n].

    The first curve is black, as the reference for the others: usually the true density.
    """
    figure, (axes,) = styled_figure(1)
    colours = cycle((style.INK, *style.PALETTE))
    for (name, values), colour in zip(curves.items(), colours, strict=False):
        density = checked_input(values, f"density '{name}'")
        axes.plot(grid, density, color=colour, linewidth=1.6, label=name)
    draw_histogram(axes, checked_input(data, "data"), float(grid[0]), float(grid[-1]), "data")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(bottom=0)
    apply_style(axes, "x", "density")
    return fix_figure_layout(figure)


def scatter_2d(data: np.ndarray, samples: np.ndarray) -> Figure:
    """Data [n, 2] and a model's samples [m, 2] side by side on the same scale.

    The data are also behind the samples, in grey.
    """
    pairs = checked_input(data, "data"), checked_input(samples, "samples")
    everything = np.concatenate(pairs)
    low, high = everything.min(axis=0), everything.max(axis=0)
    pad = 0.05 * (high - low).max() or 1.0
    low, high = low - pad, high + pad
    shape = (high - low)[1] / (high - low)[0]
    figure, charts = styled_figure(2, height=float(np.clip(3.2 * shape + 0.9, 1.6, 6)))
    titles = ["data ({})", "samples of the model ({}; grey: data)"]
    for axes, points, colour, title in zip(charts, pairs, style.PALETTE, titles, strict=False):
        if axes is charts[1]:
            _draw_points(axes, pairs[0], style.GREY)
        _draw_points(axes, points, colour)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
        axes.set_title(title.format(len(points)), fontsize=style.NORMAL, color=style.INK)
        axes.yaxis.set_major_locator(MaxNLocator(int(np.clip(8 * shape, 2, 8))))
        apply_style(axes, "x[0]", "x[1]")
    return fix_figure_layout(figure)


def marginals(
    samples: np.ndarray,
    *,
    data: np.ndarray | None = None,
    gaps: bool = False,
    names: Sequence[str] = (),
    levels: Sequence[Sequence[str]] = (),
) -> Figure:
    """Histograms of the first columns of samples [n, d]; whole numbers have a bar each.

    Args:
        samples: samples of a model.
        data: examples [m, d], in grey behind the samples.
        gaps: whether NaN is a missing value; histograms show the observed values.
        names: names of the columns.
        levels: for each column, the words for 0, 1, ...; empty for a column of numbers.
    """
    drawn = _observed_columns(samples, "samples", gaps)
    known = [np.empty(0)] * len(drawn) if data is None else _observed_columns(data, "data", gaps)
    more = f" (of {samples.shape[1]:,})" if samples.shape[1] > MOST else ""
    figure, charts = styled_figure(len(drawn), height=2.2)
    for number, (axes, *columns) in enumerate(zip(charts, known, drawn, strict=True)):
        front: dict[str, Any] = {"color": style.PALETTE[0], "zorder": 2}
        if data is not None:  # in front of them, the bars of samples are outlines
            front |= {"histtype": "step", "linewidth": 1.4}
        for values, look in zip(columns, ({"color": style.GREY}, front), strict=True):
            if len(values):
                axes.hist(values, _edges(np.concatenate(columns)), density=data is not None, **look)
        apply_style(axes, names[number] if names else f"x[{number}]", "")
        if levels and levels[number]:
            axes.set_xticks(range(len(levels[number])), [word[:12] for word in levels[number]])
    behind = "" if data is None else f"; grey: {len(data):,} test examples"
    count = count_in_words(len(samples), "sample", ",")
    title = f"{count} of the model, column by column{more}{behind}"
    figure.suptitle(title, fontsize=style.NORMAL, color=style.INK)
    return fix_figure_layout(figure)


def draw_histogram(
    axes: Axes, data: Float[np.ndarray, " n"], low: float, high: float, label: str | None = None
) -> Artist:
    """Draw the density of the data from low to high, normalised over all the data."""
    bins = min(80, max(10, round(len(data) ** 0.5)))
    weights = np.full(len(data), bins / (high - low) / len(data))
    span = (low, high)
    axes.hist(data, bins=bins, range=span, weights=weights, color=style.PALE, zorder=1, label=label)
    return axes.patches[-1]


def _observed_columns(rows: np.ndarray, name: str, gaps: bool) -> list[Float[np.ndarray, " _"]]:
    """The observed values of the first columns of rows [n, d]."""
    missing = np.isnan(rows) if gaps else np.zeros(np.shape(rows), bool)
    values = checked_input(np.where(missing, 0, rows), name, "n d")
    return [column[~gap] for column, gap in zip(values.T, missing.T, strict=True)][:MOST]


class TrainingCurve(NamedTuple):
    """A quantity by epoch."""

    epochs: Float[np.ndarray, " t"]
    values: Float[np.ndarray, "t r"]  # a column per replicate; NaN for no value

    def mean(self) -> Float[np.ndarray, " t"]:
        """The mean over the replicates that have a value."""
        return np.nanmean(self.values, axis=1)


def chart_curves(
    rows: Sequence[Mapping[str, Any]], key: str, name: str | None
) -> dict[str, TrainingCurve]:
    """The curve of a key in the rows of metrics.jsonl, by name; {} without values.

    Without a name, there is a curve for each layer.
    """
    found: dict[float, np.ndarray] = {}
    for number, row in enumerate(rows, 1):
        value = row.get(key)
        if value is None:
            continue
        values = _replicate_values(value, key, number, layers=name is None)
        if not np.isnan(values).all(axis=0).any():
            epoch = checked_input(row.get("epoch", number), f"the epoch in row {number}", "")
            found[float(epoch)] = values
    if not found:
        return {}
    if len({values.shape for values in found.values()}) > 1:
        raise UserError(f"the number of values of '{key}' changes from row to row")
    epochs = np.array(sorted(found))
    values = np.stack([found[epoch] for epoch in epochs])
    names = [name or f"layer {i + 1}" for i in range(values.shape[2])]
    return {name: TrainingCurve(epochs, values[..., i]) for i, name in enumerate(names)}


def _replicate_values(
    value: Any, key: str, number: int, *, layers: bool
) -> Float[np.ndarray, "r l"]:
    """A row's value with an axis of replicates and an axis of layers; NaN in place of None."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"row {number}: '{key}' is not a number or a table of them") from None
    if not array.size or array.ndim > 1 + layers:
        raise UserError(f"row {number}: '{key}' has the shape {array.shape}")
    # None becomes NaN in float64, but NaN itself is no valid value.
    missing = np.array(value, dtype=object) == np.array(None)
    if not np.all(np.isfinite(array) | missing):
        raise UserError(f"row {number}: '{key}' is NaN or infinite")
    return np.atleast_2d(array) if layers else array.reshape(-1, 1)


def _rate_steps(rates: Mapping[str, TrainingCurve]) -> dict[float, float]:
    """The epochs after which the learning rate changes -> its new value."""
    if not rates:
        return {}
    (curve,) = rates.values()
    rate = curve.mean()
    changed = 1 + np.flatnonzero(~np.isclose(rate[1:], rate[:-1], rtol=1e-6, atol=0))
    return {float(curve.epochs[i - 1]): float(rate[i]) for i in changed}


def _note_lines(figure: Figure, steps: Mapping[float, float], replicates: int) -> None:
    """Explain dotted and thin lines in a legend below the panels."""
    notes = {}
    if replicates > 1:
        notes[f"one of {replicates} replicates"] = Line2D([], [], color=style.PALETTE[0], **THIN)
    if steps:
        rates = ", ".join(f"{rate:.2g}" for rate in steps.values())
        notes[f"learning rate changes to {rates}"] = Line2D([], [], **DOTTED)
    if notes:
        below = {**style.LEGEND, "loc": "outside lower center", "ncols": 2}
        figure.legend(notes.values(), notes.keys(), **below)


def _draw_curve(axes: Axes, curve: TrainingCurve, name: str, colour: str) -> None:
    """Draw the mean over replicates, and each replicate as a thin line."""
    mean = curve.mean()
    marker = "o" if len(mean) <= 25 else None
    axes.plot(
        curve.epochs,
        mean,
        color=colour,
        linewidth=1.6,
        marker=marker,
        markersize=3,
        label=f"{name} (last {_curve_value(mean[-1], whole=_are_integers(mean))})",
    )
    if curve.values.shape[1] > 1:
        axes.plot(curve.epochs, curve.values, color=colour, **THIN)


def _are_integers(values: np.ndarray) -> bool:
    return bool(np.all(values == np.rint(values)))


def _curve_value(value: float, *, whole: bool) -> str:
    """A number with two decimals; with none if `whole`, with three digits if small."""
    form = ".0f" if whole else ".2f" if abs(value) >= 1 else ".3g"
    return format_minus(f"{value:{form}}")


def _share_epochs(charts: Sequence[Axes], curves: Sequence[TrainingCurve]) -> None:
    """Set a common axis of epochs: logarithmic for long training, as in the published schedule."""
    first, last = min(c.epochs[0] for c in curves), max(c.epochs[-1] for c in curves)
    for axes in charts:
        scale_epoch_axis(axes, [curve.epochs for curve in curves])
        if axes.get_xscale() == "log":
            axes.set_xlim(first / 1.1, last * 1.1)
        else:
            pad = 0.03 * (last - first) or 1.0
            axes.set_xlim(first - pad, last + pad)


def _log_bins(values: np.ndarray, threshold: float) -> list[float]:
    """Bins of log10, a quarter wide; an edge is at the threshold, so that no bar straddles it."""
    logs, edge, width = np.log10(np.maximum(values, FLOOR)), np.log10(threshold), 0.25
    low = min(np.floor((logs.min() - edge) / width), -2)
    high = max(np.ceil((logs.max() - edge) / width) + 1, 2)
    return list(edge + width * np.arange(low, high + 1))


def _draw_variances(
    axes: Axes, variances: Float[np.ndarray, " d"], threshold: float, bins: list[float]
) -> None:
    """Draw a layer's histogram: inactive units, left of the threshold, are grey."""
    line, log, active = np.log10(threshold), np.log10(variances.clip(FLOOR)), variances > threshold
    # A unit exactly at the threshold is inactive, so it is drawn left of it.
    below = np.minimum(log[~active], np.nextafter(line, -np.inf))
    axes.hist(below, bins=bins, color=style.GREY, label=f"{len(below)} inactive")
    axes.hist(log[active], bins=bins, color=style.PALETTE[0], label=f"{active.sum()} active")
    label = f"threshold {threshold:g}"
    axes.axvline(line, color=style.INK, linewidth=1, linestyle="--", label=label)
    axes.yaxis.set_major_locator(integer_axis_ticks())


def _draw_points(axes: Axes, points: Float[np.ndarray, "n 2"], colour: str) -> None:
    size = float(np.clip(4000 / len(points), 1, 12))
    # Viewers struggle with thousands of points as vectors.
    axes.scatter(points[:, 0], points[:, 1], size, color=colour, linewidths=0, rasterized=True)


def _edges(column: Float[np.ndarray, " n"]) -> list[float]:
    """The edges of a histogram's bars."""
    low, high = column.min(), column.max()
    if high - low < WHOLE and (column == np.rint(column)).all():
        return np.arange(low - 0.5, high + 1.0).tolist()
    return np.linspace(low, high, 41).tolist() if low < high else [low - 0.5, low + 0.5]

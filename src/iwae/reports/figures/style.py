"""Fonts, colours, the style of charts, and input checks."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from iwae.errors import UserError

Numbers: TypeAlias = np.ndarray | Sequence[float | int]

DPI = 150
SMALL, NORMAL = 8, 9  # font sizes, points
INK, FAINT, GREY, PALE = "#222222", "#8a8a8a", "#b4b4b4", "#e8e8e8"
# Okabe and Ito's colours, distinguishable with any common colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# In addition to colours, which not everybody can distinguish.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LEGEND: dict[str, Any] = {"fontsize": SMALL, "labelcolor": INK, "frameon": False}
GUIDE: dict[str, Any] = {"color": FAINT, "linewidth": 1.1, "linestyle": ":"}  # lines of reference


def checked(values: object, name: str, axes: str | None = None) -> Float[np.ndarray, "..."]:
    """The values as a float64 array, non-empty and finite, with the axes if named ("n h w")."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} must be an array of numbers, but its type is {array.dtype}")
    if axes is not None and array.ndim != len(axes.split()):
        wanted = axes.replace(" ", ", ")
        raise UserError(f"{name} must have the axes [{wanted}], but its shape is {array.shape}")
    if array.size == 0:
        raise UserError(f"{name} is empty: its shape is {array.shape}")
    array = array.astype(np.float64)
    broken = np.count_nonzero(~np.isfinite(array))
    if broken:
        raise UserError(f"{name} has {broken} of {array.size} values that are NaN or infinite")
    return array


def same_shape(first: np.ndarray, second: np.ndarray, names: str) -> None:
    """Raise UserError for two arrays of different shapes."""
    if first.shape != second.shape:
        raise UserError(
            f"{names} must have the same shape, but have {first.shape} and {second.shape}"
        )


def chart_figure(count: int, *, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each `height` inches high."""
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
    rows = -(-count // columns)
    size = (6.0, 3.6) if count == 1 else (3.6 * columns + 0.4, height * rows)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    charts = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return figure, charts


def laid_out(figure: Figure) -> Figure:
    """Fix the layout of a figure, and return it.

    Each layout starts from the one before: repeated at each save, it would change the pixels.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def finish(
    axes: Axes, x_label: str, y_label: str, *, columns: int | None = None, title: str | None = None
) -> None:
    """Apply the common style: labels, a faint grid, no box, and a legend above the data."""
    axes.set_xlabel(x_label, fontsize=NORMAL, color=INK)
    axes.set_ylabel(y_label, fontsize=NORMAL, color=INK)
    axes.tick_params(which="both", labelsize=SMALL, labelcolor=INK, color=FAINT, length=3)
    axes.tick_params(which="minor", length=0)
    axes.grid(visible=True, color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    axes.legend(
        handles,
        labels,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        ncols=columns or (4 if len(handles) == 4 else 3),
        handlelength=1.4,
        columnspacing=1.2,
        title=title,
        title_fontsize=SMALL,
        alignment="left" if title else "center",
        **LEGEND,
    )


def plain_numbers(axes: Axes, number: str = "{x:g}") -> None:
    """Label the ticks of a logarithmic axis as 1, 10, 100."""
    axes.xaxis.set_major_formatter(number)
    axes.xaxis.set_minor_formatter(NullFormatter())


def minus(text: str) -> str:
    """Replace hyphens by minus signs, as on axes."""
    return text.replace("-", "\N{MINUS SIGN}")


def whole_ticks() -> MaxNLocator:
    """Ticks at whole numbers."""
    return MaxNLocator(6, integer=True, steps=[1, 2, 5, 10])


def scale_epochs(axes: Axes, epochs: Sequence[np.ndarray], number: str = "{x:g}") -> None:
    """Scale an axis of increasing epochs: logarithmic for long training, as in the papers."""
    first, last = min(each[0] for each in epochs), max(each[-1] for each in epochs)
    if first > 0 and last >= 100 * first:
        axes.set_xscale("log")
        plain_numbers(axes, number)
    else:
        axes.xaxis.set_major_locator(whole_ticks())


def cut_start(axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Omit the start of curves (epochs, values) if it would take more than half of the height.

    The start is the first seventh of the horizontal axis.
    """
    (first, last), log = axes.get_xlim(), axes.get_xscale() == "log"
    cut = first * (last / first) ** (1 / 7) if log else first + (last - first) / 7
    everything = np.concatenate([values.ravel() for _, values in curves])
    rest = np.concatenate([values[epochs >= cut].ravel() for epochs, values in curves])
    high = np.nanmax(everything)
    low = np.nanmin(rest, initial=high)
    enough = np.count_nonzero(~np.isnan(everything)) > 25
    if enough and 0 < high - low < (high - np.nanmin(everything)) / 2:
        pad = 0.05 * (high - low)
        axes.set_ylim(low - pad, high + pad)


def draw_histogram(
    axes: Axes, data: Float[np.ndarray, " n"], low: float, high: float, label: str | None = None
) -> Artist:
    """Draw the density of the data from low to high, normalised over all the data."""
    bins = min(80, max(10, round(len(data) ** 0.5)))
    weights = np.full(len(data), bins / (high - low) / len(data))
    span = (low, high)
    axes.hist(data, bins=bins, range=span, weights=weights, color=PALE, zorder=1, label=label)
    return axes.patches[-1]

"""Scales and ticks of axes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter


def integer_axis_ticks() -> MaxNLocator:
    """Ticks at whole numbers."""
    return MaxNLocator(6, integer=True, steps=[1, 2, 5, 10])


def plain_axis_ticks(axes: Axes, number: str = "{x:g}") -> None:
    """Label the ticks of a logarithmic axis as 1, 10, 100."""
    axes.xaxis.set_major_formatter(number)
    axes.xaxis.set_minor_formatter(NullFormatter())


def scale_epoch_axis(axes: Axes, epochs: Sequence[np.ndarray], number: str = "{x:g}") -> None:
    """Scale an axis of increasing epochs: logarithmic for long training, as in the papers."""
    first, last = min(each[0] for each in epochs), max(each[-1] for each in epochs)
    if first > 0 and last >= 100 * first:
        axes.set_xscale("log")
        plain_axis_ticks(axes, number)
    else:
        axes.xaxis.set_major_locator(integer_axis_ticks())


def cut_axis_start(axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
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

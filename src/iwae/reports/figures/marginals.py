"""Histograms of samples, column by column."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from iwae.reports.figures.style import INK, NORMAL, PALETTE, chart_figure, checked, finish, laid_out

MOST = 12
"""Maximum number of columns in a figure."""

WHOLE = 60
"""Whole numbers have a bar each if they span less than this."""


def marginals(samples: np.ndarray, *, gaps: bool = False) -> Figure:
    """Histograms of the first columns of samples [n, d]; whole numbers have a bar each.

    With `gaps`, NaN is a missing value, and the histogram is of the observed values.
    """
    missing = np.isnan(samples) if gaps else np.zeros(np.shape(samples), bool)
    samples = checked(np.where(missing, 0, samples), "samples", "n d")
    columns = [column[~gap] for column, gap in zip(samples.T, missing.T, strict=True)][:MOST]
    more = f" (of {samples.shape[1]:,})" if samples.shape[1] > MOST else ""
    figure, charts = chart_figure(len(columns), height=2.2)
    for number, (axes, column) in enumerate(zip(charts, columns, strict=True)):
        if len(column):
            axes.hist(column, bins=_edges(column), color=PALETTE[0], zorder=2)
        finish(axes, f"x[{number}]", "")
    title = f"{len(samples):,} samples of the model, column by column{more}"
    figure.suptitle(title, fontsize=NORMAL, color=INK)
    return laid_out(figure)


def _edges(column: Float[np.ndarray, " n"]) -> list[float]:
    """Edges of the bars."""
    low, high = column.min(), column.max()
    if high - low < WHOLE and (column == np.rint(column)).all():
        return np.arange(low - 0.5, high + 1.0).tolist()
    return np.linspace(low, high, 41).tolist() if low < high else [low - 0.5, low + 0.5]

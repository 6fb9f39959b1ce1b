"""Fonts, colours and the style of charts."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def styled_figure(count: int, *, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, each `height` inches high."""
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
    rows = -(-count // columns)
    size = (6.0, 3.6) if count == 1 else (3.6 * columns + 0.4, height * rows)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    charts = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    return figure, charts


def fix_figure_layout(figure: Figure) -> Figure:
    """Fix the layout of a figure, and return it.

    Each layout starts from the one before: repeated at each save, it would change the pixels.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def apply_style(
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

"""Examples in the space of the latents."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from iwae.errors import UserError
from iwae.reports.figures.style import (
    INK,
    LEGEND,
    MARKERS,
    NORMAL,
    PALETTE,
    chart_figure,
    checked,
    finish,
    laid_out,
    same_shape,
)

NAMED = 20
"""Maximum number of labels in a legend; of more, the points have colours alone."""


def latent_map(
    points: np.ndarray,
    axis_names: tuple[str, str],
    *,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    outliers: np.ndarray | None = None,
    outlier_name: str = "outliers",
    title: str = "",
) -> Figure:
    """Points [n, 2], one for each example, with a colour for each label and rings at outliers.

    Args:
        axis_names: of the two coordinates.
        labels: index into `classes` of each example, [n].
        classes: names of the labels.
        outliers: which examples have a ring, [n] bool.
        outlier_name: what the legend calls them; their number is added.

    Raises:
        UserError: if the shapes do not fit, or a coordinate is not finite.
    """
    points = checked(points, "points", "n 2")
    if points.shape[1] != 2:
        raise UserError(f"points must have the shape (n, 2), but have {points.shape}")
    labels = np.zeros(len(points), int) if labels is None else np.asarray(labels)
    ringed = np.zeros(len(points), bool) if outliers is None else np.asarray(outliers, bool)
    for name, values in (("labels", labels), ("outliers", ringed)):
        same_shape(points[:, 0], values, f"a coordinate of the points and {name}")
    figure, (axes,) = chart_figure(1)
    figure.set_size_inches(6.4, 4.8)
    finish(axes, *axis_names)
    axes.set_title(title, fontsize=NORMAL, color=INK)
    named = _draw_points(axes, points, labels, classes)
    if 0 < len(named) <= NAMED:
        figure.legend(handles=named, loc="outside right upper", markerscale=1.6, **LEGEND)
    if ringed.any():
        look: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": 0.9}
        x, y = points[ringed].T
        rings = axes.scatter(x, y, s=42, zorder=3, rasterized=True, **look)
        rings.set_label(f"{outlier_name} ({ringed.sum():,} of {len(points):,})")
        figure.legend(handles=[rings], loc="outside lower center", **LEGEND)
    return laid_out(figure)


def _draw_points(
    axes: Axes, points: Float[np.ndarray, "n 2"], labels: np.ndarray, classes: Sequence[str]
) -> list[PathCollection]:
    """Draw the points in the colours of their labels; returns those of each named label."""
    size = float(np.clip(9000 / len(points), 4, 22))
    colours = _colours(max(1, len(classes)))
    drawn = []
    for label, (colour, marker) in enumerate(zip(colours, cycle(MARKERS), strict=False)):
        look: dict[str, Any] = {"color": colour, "marker": marker, "linewidths": 0, "alpha": 0.8}
        # Viewers struggle with thousands of points as vectors.
        x, y = points[labels == label].T
        drawn.append(axes.scatter(x, y, s=size, rasterized=True, **look))
    for one, name in zip(drawn, classes, strict=False):
        one.set_label(name)
    return drawn if classes else []


def _colours(n: int) -> list[Any]:
    """A colour for each of n labels."""
    if n <= len(PALETTE):
        return [*PALETTE[:n]]
    return list(colormaps["tab10" if n <= 10 else "turbo"].resampled(n)(range(n)))

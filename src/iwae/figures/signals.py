"""Signal-to-noise ratios of gradients against the number of particles."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iwae._types import UserError
from iwae.figures.style import (
    FAINT,
    PALETTE,
    SMALL,
    Numbers,
    chart_figure,
    checked,
    finish,
    laid_out,
    plain_numbers,
    same_shape,
)

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

SLOPES = {0.5: "$k^{1/2}$", -0.5: "$k^{-1/2}$"}
"""What theory says of large k (Rainforth et al. 2018; Tucker et al. 2019)."""


def signal_to_noise(
    groups: Mapping[str, Mapping[str, tuple[Numbers, Numbers, Numbers]]],
) -> Figure:
    """Signal-to-noise ratios against k, a panel for each group of parameters.

    Dotted lines have the slopes of theory. Ratios of zero, which noise hides, are left out.

    Args:
        groups: by group and gradient, k [m], the ratio there [m] and its standard error [m].

    Raises:
        UserError: if there is no curve, or a number is missing, not finite or negative.
    """
    if not groups or not all(groups.values()):
        raise UserError("there are no gradients to draw")
    figure, panels = chart_figure(len(groups))
    for axes, (group, curves) in zip(panels, groups.items(), strict=True):
        looks = zip(cycle(PALETTE), cycle(MARKERS), strict=False)
        drawn = [
            _draw(axes, name, curve, colour, marker)
            for (name, curve), (colour, marker) in zip(curves.items(), looks, strict=False)
        ]
        axes.set_xscale("log")
        axes.set_yscale("log")
        points = np.concatenate(drawn, axis=1)
        if points.size:
            _draw_slopes(axes, points)
        finish(axes, "particles k", f"signal / noise: {group}", columns=min(3, len(curves)))
        plain_numbers(axes)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    return laid_out(figure)


def _draw(
    axes: Axes, name: str, curve: tuple[Numbers, Numbers, Numbers], colour: str, marker: str
) -> np.ndarray:
    """One curve with its error bars; returns its points, `[2, m]`."""
    k, ratio, stderr = (
        checked(values, f"the {what} of '{name}'", "m")
        for what, values in zip(("k", "ratio", "standard error"), curve, strict=True)
    )
    same_shape(k, ratio, f"k and ratio of '{name}'")
    same_shape(k, stderr, f"k and standard error of '{name}'")
    if k.min() < 1 or min(ratio.min(), stderr.min()) < 0:
        raise UserError(f"'{name}' needs k of at least 1, and nothing negative")
    order = np.argsort(k)
    k, ratio, stderr = (values[order][ratio[order] > 0] for values in (k, ratio, stderr))
    container = axes.errorbar(
        k,
        ratio,
        np.minimum(stderr, 0.99 * ratio),  # a bar that reaches zero has no end on this axis
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.6,
        elinewidth=1.2,
        capsize=3,
    )
    container.lines[0].set_label(name)
    return np.array([k, ratio])


def _draw_slopes(axes: Axes, points: np.ndarray) -> None:
    """Lines of the slopes of theory, through the middle of the points."""
    limits = axes.get_xlim(), axes.get_ylim()
    centre = np.exp(np.log(points).mean(axis=1))
    ends = np.array([points[0].min(), points[0].max()])
    if ends[0] == ends[1]:
        return
    for power, words in SLOPES.items():
        line = centre[1] * (ends / centre[0]) ** power
        axes.plot(ends, line, color=FAINT, linewidth=1.1, linestyle=":", zorder=1)
        axes.annotate(words, (ends[1], line[1]), (3, 0), textcoords="offset points", fontsize=SMALL)
    axes.set_xlim(limits[0])

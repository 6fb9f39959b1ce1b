"""Signal-to-noise ratios of gradients against the number of particles."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iwae.errors import UserError
from iwae.reports.figures.style import (
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

DASHES = ((5, 2), (5, 2, 1, 2), (2, 1.5), (8, 2, 2, 2))
"""Line styles for gradients through a few particles; dotted lines are theoretical slopes."""

LONG = 12
"""With a longer name than this, a legend has two columns."""

SLOPES = {0.5: "$k^{1/2}$", -0.5: "$k^{-1/2}$"}
"""Theoretical slopes at large k (Rainforth et al. 2018; Tucker et al. 2019)."""


def signal_to_noise(
    groups: Mapping[str, Mapping[str, tuple[Numbers, Numbers, Numbers]]],
) -> Figure:
    """Signal-to-noise ratios against k, with a panel for each group of parameters.

    Dotted lines have the theoretical slopes. Ratios of zero, hidden by noise, are left out.

    Args:
        groups: by group and gradient, k [m], the ratio there [m] and its standard error [m]. In a
            name such as "dreg, backward 8", the part before the comma determines the colour of the
            line, the rest its dashes and an empty marker.

    Raises:
        UserError: if there is no curve, or a number is missing, not finite or negative.
    """
    if not groups or not all(groups.values()):
        raise UserError("there are no gradients to draw")
    figure, panels = chart_figure(len(groups))
    for axes, (group, curves) in zip(panels, groups.items(), strict=True):
        looks = _looks(curves)
        drawn = [_draw(axes, name, curve, looks[name]) for name, curve in curves.items()]
        axes.set_xscale("log")
        axes.set_yscale("log")
        points = np.concatenate(drawn, axis=1)
        if points.size:
            _draw_slopes(axes, points)
        columns = 2 if max(map(len, curves)) > LONG else 3
        finish(axes, "particles k", f"signal / noise: {group}", columns=min(columns, len(curves)))
        plain_numbers(axes)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    return laid_out(figure)


class _Look(NamedTuple):
    colour: str
    marker: str
    dashes: tuple[float, ...] | None


def _looks(names: Iterable[str]) -> dict[str, _Look]:
    """A colour and marker for each gradient; other markers and dashes through a few particles."""
    parts = {name: name.partition(", ")[::2] for name in names}
    gradients, fews = (list(dict.fromkeys(column)) for column in zip(*parts.values(), strict=True))
    fews = [few for few in fews if few]
    looks = {}
    for name, (gradient, few) in parts.items():
        place = gradients.index(gradient)
        colour, shape = PALETTE[place % len(PALETTE)], fews.index(few) if few else place
        dashes = DASHES[shape % len(DASHES)] if few else None
        looks[name] = _Look(colour, MARKERS[shape % len(MARKERS)], dashes)
    return looks


def _draw(
    axes: Axes, name: str, curve: tuple[Numbers, Numbers, Numbers], look: _Look
) -> np.ndarray:
    """Draw a curve with its error bars; returns its points, `[2, m]`."""
    k, ratio, stderr = (
        checked(values, f"the {quantity} of '{name}'", "m")
        for quantity, values in zip(("k", "ratio", "standard error"), curve, strict=True)
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
        np.minimum(stderr, 0.99 * ratio),  # a bar down to zero would have no end on this axis
        color=look.colour,
        marker=look.marker,
        markerfacecolor=look.colour if look.dashes is None else "white",
        linestyle="-" if look.dashes is None else (0, look.dashes),
        markersize=4,
        linewidth=1.6,
        elinewidth=1.2,
        capsize=3,
    )
    container.lines[0].set_label(name)
    return np.array([k, ratio])


def _draw_slopes(axes: Axes, points: np.ndarray) -> None:
    """Draw lines with the theoretical slopes through the centre of the points."""
    limits = axes.get_xlim(), axes.get_ylim()
    centre = np.exp(np.log(points).mean(axis=1))
    ends = np.array([points[0].min(), points[0].max()])
    if ends[0] == ends[1]:
        return
    for power, label in SLOPES.items():
        line = centre[1] * (ends / centre[0]) ** power
        axes.plot(ends, line, color=FAINT, linewidth=1.1, linestyle=":", zorder=1)
        axes.annotate(label, (ends[1], line[1]), (3, 0), textcoords="offset points", fontsize=SMALL)
    axes.set_xlim(limits[0])

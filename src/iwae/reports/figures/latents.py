"""Figures of latent spaces: posteriors of a few examples, a prior, and a map of examples."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from iwae.reports.figures import style
from iwae.reports.figures.charts import draw_histogram
from iwae.reports.figures.input_checks import checked_input
from iwae.reports.figures.style import apply_style, fix_figure_layout, styled_figure

MASSES = (0.5, 0.95)
"""Fractions of a density's mass on the grid that its contours enclose."""

SHOWN = 0.999
"""Minimum fraction of the mass of each density that a panel shows."""

TRUE, Q = style.PALETTE[0], style.PALETTE[1]
Grid: TypeAlias = Sequence[np.ndarray]
Density: TypeAlias = Float[np.ndarray, "..."]

SHADES = LinearSegmentedColormap.from_list("white to blue", ["white", "#8fc3e6"])


def posterior_panels(grids: Sequence[Any], titles: Sequence[str]) -> Figure:
    """The true posterior p(z|x) beside q(z|x), and draws from p(z|x): one panel per example.

    With one latent, a panel has two curves over a histogram of the draws. With two, it has a map of
    p(z|x), contours that enclose 50% and 95% of the mass of each density, and a dot per draw. The
    panel contains 99.9% of each density and all draws.

    Args:
        grids: one or more `evaluation.posterior.PosteriorGrid`, of one or two latents.
        titles: one for each panel.

    Raises:
        UserError: if a density is not finite.
    """
    figure, charts = styled_figure(len(grids))
    handles: dict[str, Artist] = {}
    for axes, grid, title in zip(charts, grids, titles, strict=True):
        p, q = _exp_density(grid.log_posterior, "log_posterior"), _exp_density(grid.log_q, "log_q")
        draw = _draw_curves if len(grid.axes) == 1 else _draw_map
        *sides, draws = (np.asarray(each, np.float64) for each in (*grid.axes, grid.draws))
        handles |= draw(axes, sides, p, q, draws)
        axes.set_title(title, fontsize=style.NORMAL, color=style.INK)
    return _with_legend(figure, handles, 3)


def prior_panel(
    axes: Sequence[np.ndarray], log_prior: np.ndarray, draws: np.ndarray, *, title: str = ""
) -> Figure:
    """The prior of two latents as a map, with a dot for a draw of q(z|x) per example.

    Dense dots on white, or few dots on colour, show that the prior does not fit the aggregate
    posterior.

    Args:
        axes: the grid of each latent, [g].
        log_prior: log density on the grid, [g, h] (first latent first), nats.
        draws: draws of q(z|x), [n, 2].
        title: title of the figure.

    Raises:
        UserError: if the density is not finite.
    """
    *axes, draws = (np.asarray(each, np.float64) for each in (*axes, draws))
    density = _exp_density(log_prior, "log_prior")
    figure, (panel,) = styled_figure(1)
    dot = _draw_shades(panel, axes, density, density, draws)
    _draw_contours(panel, axes, density, TRUE, "solid")
    panel.set_title(title, fontsize=style.NORMAL, color=style.INK)
    handles = {
        "prior; lines hold 50% and 95%": Line2D([], [], color=TRUE, linewidth=1.2),
        "a draw of q for each example": dot,
    }
    return _with_legend(figure, handles, 2)


def _with_legend(figure: Figure, handles: Mapping[str, Artist], columns: int) -> Figure:
    """Add a legend below the panels, and fix the layout."""
    below = {**style.LEGEND, "loc": "outside lower center", "ncols": columns}
    figure.legend(handles.values(), handles.keys(), **below)
    return fix_figure_layout(figure)


def _exp_density(log_density: np.ndarray, name: str) -> Density:
    """The density; minus infinity is a density of zero."""
    with np.errstate(over="ignore"):
        return checked_input(np.exp(np.asarray(log_density, np.float64)), f"the density of {name}")


def _draw_curves(
    axes: Axes, grid: Grid, p: Density, q: Density, draws: np.ndarray
) -> dict[str, Artist]:
    """Draw two curves over a histogram of draws."""
    ((low, high),) = _panel_limits(grid, p, q, draws)
    bars = draw_histogram(axes, draws[:, 0], low, high)
    (of_p,) = axes.plot(*grid, p, color=TRUE, linewidth=1.6)
    (of_q,) = axes.plot(*grid, q, color=Q, linewidth=1.6, linestyle="--")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    apply_style(axes, "latent", "density")
    return {"true posterior p(z | x)": of_p, "q(z | x)": of_q, "draws from p(z | x)": bars}


def _draw_map(
    axes: Axes, grid: Grid, p: Density, q: Density, draws: np.ndarray
) -> dict[str, Artist]:
    """Draw a map of p under the contours of p and q, and the draws."""
    dot = _draw_shades(axes, grid, p, q, draws)
    for density, colour, line in ((p, TRUE, "solid"), (q, Q, "dashed")):
        _draw_contours(axes, grid, density, colour, line)
    return {
        "true posterior p(z | x)": Line2D([], [], color=TRUE, linewidth=1.2),
        "q(z | x); lines hold 50% and 95%": Line2D([], [], color=Q, linewidth=1.2, linestyle="--"),
        "draws from p(z | x)": dot,
    }


def _draw_shades(axes: Axes, grid: Grid, p: Density, q: Density, draws: np.ndarray) -> Artist:
    """Draw a map of p and the draws; returns the legend's dot."""
    # Viewers struggle with tens of thousands of cells as vectors.
    axes.pcolormesh(*grid, p.T, cmap=SHADES, rasterized=True, zorder=0)
    size = float(np.clip(600 / len(draws), 0.5, 4))
    x, y = draws.T
    axes.scatter(x, y, size, color=style.INK, linewidths=0, zorder=2, rasterized=True)
    across, up = _panel_limits(grid, p, q, draws)
    axes.set(xlim=across, ylim=up)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    apply_style(axes, "first latent", "second latent")
    axes.grid(visible=False)
    dot: dict[str, Any] = {"marker": "o", "markersize": 3, "linestyle": "none"}
    return Line2D([], [], color=style.INK, **dot)


def _draw_contours(axes: Axes, grid: Grid, density: Density, colour: str, line: str) -> None:
    low, high = density.min(), density.max()
    levels = sorted({one for mass in MASSES if low < (one := _mass_level(density, mass)) < high})
    if levels:
        look: dict[str, Any] = {"linewidths": 1.2, "linestyles": line, "zorder": 3}
        axes.contour(*grid, density.T, levels=levels, colors=colour, **look)


def _mass_level(density: Density, mass: float) -> float:
    """The level of density above which the grid holds at least this fraction of the mass."""
    falling = np.sort(density, axis=None)[::-1]
    total = np.cumsum(falling)
    last = np.searchsorted(total, mass * total[-1])
    return float(falling[min(last, len(falling) - 1)])


def _panel_limits(
    grid: Grid, p: Density, q: Density, draws: np.ndarray
) -> list[tuple[float, float]]:
    """For each latent, the limits of the visible mass and draws, with a margin."""
    visible = np.zeros(p.shape, bool)
    for density in (p, q):
        visible |= density >= max(_mass_level(density, SHOWN), np.finfo(np.float64).tiny)
    places = np.argwhere(visible) if visible.any() else np.argwhere(~visible)
    limits = []
    for axis, at, drawn in zip(grid, places.T, draws.T, strict=True):
        low, high = min(axis[at.min()], drawn.min()), max(axis[at.max()], drawn.max())
        pad = 0.04 * (high - low) or float(np.diff(axis).max())
        limits.append((float(low - pad), float(high + pad)))
    return limits


NAMED = 20
"""Maximum number of labels in a legend; more labels have colours alone."""


def latent_map(
    points: np.ndarray,
    axis_names: tuple[str, str],
    *,
    labels: np.ndarray | None,
    classes: Sequence[str],
    label_name: str = "",
    outliers: np.ndarray,
    outlier_name: str,
    title: str,
) -> Figure:
    """Points [n, 2], one per example, coloured by label, with rings around outliers.

    Args:
        points: the points.
        axis_names: names of the two coordinates.
        labels: index into `classes` of each example, [n].
        classes: names of the labels.
        label_name: title of the legend of labels; may be empty.
        outliers: mask of the examples with a ring, [n] bool.
        outlier_name: name of the outliers in the legend, to which their number is added.
        title: title of the figure.

    Raises:
        UserError: if a coordinate is not finite.
    """
    points = checked_input(points, "points")
    labels = np.zeros(len(points), int) if labels is None else labels
    figure, (axes,) = styled_figure(1)
    figure.set_size_inches(6.4, 4.8)
    apply_style(axes, *axis_names)
    axes.set_title(title, fontsize=style.NORMAL, color=style.INK)
    named = _draw_labelled(axes, points, labels, classes)
    if 0 < len(named) <= NAMED:
        look: dict[str, Any] = {"markerscale": 1.6, **style.LEGEND}
        if label_name:
            look |= {"title": label_name, "title_fontsize": style.LEGEND["fontsize"]}
        figure.legend(handles=named, loc="outside right upper", **look)
    if outliers.any():
        look = {"facecolors": "none", "edgecolors": style.INK, "linewidths": 0.9}
        x, y = points[outliers].T
        rings = axes.scatter(x, y, s=42, zorder=3, rasterized=True, **look)
        rings.set_label(f"{outlier_name} ({outliers.sum():,} of {len(points):,})")
        figure.legend(handles=[rings], loc="outside lower center", **style.LEGEND)
    return fix_figure_layout(figure)


def _draw_labelled(
    axes: Axes, points: Float[np.ndarray, "n 2"], labels: np.ndarray, classes: Sequence[str]
) -> list[PathCollection]:
    """Draw points in the colours of their labels; returns the points of each named label."""
    size = float(np.clip(9000 / len(points), 4, 22))
    n = max(1, len(classes))
    colormap = colormaps["tab10" if n <= 10 else "turbo"].resampled(n)
    colours = style.PALETTE[:n] if n <= len(style.PALETTE) else colormap(range(n))
    drawn = []
    for label, (colour, marker) in enumerate(zip(colours, cycle(style.MARKERS), strict=False)):
        look: dict[str, Any] = {"color": colour, "marker": marker, "linewidths": 0, "alpha": 0.8}
        # Viewers struggle with thousands of points as vectors.
        x, y = points[labels == label].T
        drawn.append(axes.scatter(x, y, s=size, rasterized=True, **look))
    for one, name in zip(drawn, classes, strict=False):
        one.set_label(name)
    return drawn if classes else []

"""The true posterior of a few examples beside the encoder's distribution."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from iwae.errors import UserError
from iwae.reports.figures.style import (
    INK,
    LEGEND,
    NORMAL,
    PALETTE,
    chart_figure,
    checked,
    draw_histogram,
    finish,
    laid_out,
    same_shape,
)

MASSES = (0.5, 0.95)
"""Fractions of a density's mass on the grid that its contours enclose."""

SHOWN = 0.999
"""Minimum fraction of the mass of each density that a panel shows."""

TRUE, Q = PALETTE[0], PALETTE[1]
SHADES = LinearSegmentedColormap.from_list("white to blue", ["white", "#8fc3e6"])


@runtime_checkable
class Grid(Protocol):
    """The posterior of one example on a grid, such as `evaluation.posterior.PosteriorGrid`."""

    @property
    def axes(self) -> tuple[np.ndarray, ...]:
        """The grid of each latent, [g]; there are one or two."""

    @property
    def log_posterior(self) -> np.ndarray:
        """log p(z|x), [g] or [g, g] (first latent first), nats."""

    @property
    def log_q(self) -> np.ndarray:
        """log q(z|x) on the same grid, nats."""

    @property
    def draws(self) -> np.ndarray:
        """Draws from p(z|x), [n, 1] or [n, 2]."""


def posterior_panels(grids: Sequence[Grid], *, titles: Sequence[str] | None = None) -> Figure:
    """The true posterior p(z|x) beside q(z|x), and draws from p(z|x): one panel per example.

    With one latent, a panel has two curves over a histogram of the draws. With two, it has a map of
    p(z|x), contours that enclose 50% and 95% of the mass of each density, and a dot for each draw.
    A panel shows the region that holds 99.9% of each density and all the draws.

    Args:
        grids: one for each example.
        titles: one for each panel.

    Raises:
        UserError: if there is nothing to draw, the titles are too few or too many, or a grid does
            not fit its densities, has more than two latents, or has a number that is not finite.
    """
    if not grids:
        raise UserError("there are no posteriors to draw")
    if titles is not None and len(titles) != len(grids):
        raise UserError(f"there are {len(grids)} posteriors, but {len(titles)} titles")
    figure, charts = chart_figure(len(grids))
    handles: dict[str, Artist] = {}
    for number, (axes, grid) in enumerate(zip(charts, grids, strict=True)):
        posterior = _densities(grid, number)
        draw = _draw_curves if len(posterior.axes) == 1 else _draw_map
        handles |= draw(axes, posterior)
        if titles is not None:
            axes.set_title(titles[number], fontsize=NORMAL, color=INK)
    below = {**LEGEND, "loc": "outside lower center", "ncols": 3}
    figure.legend(handles.values(), handles.keys(), **below)
    return laid_out(figure)


def prior_panel(
    axes: Sequence[np.ndarray], log_prior: np.ndarray, draws: np.ndarray, *, title: str = ""
) -> Figure:
    """The prior of two latents as a map, and a dot for a draw of q for each example.

    Where the dots lie thick and the map is white, or the other way round, the prior does not fit
    the aggregate posterior.

    Args:
        axes: the grid of each latent, [g].
        log_prior: on the grid, [g, h] (first latent first), nats.
        draws: from q, [n, 2].

    Raises:
        UserError: if a shape does not fit, or a number is not finite.
    """
    first, second = (checked(axis, "the grid of the prior", "g") for axis in axes)
    density = _density(log_prior, "log_prior", "g h")
    same_shape(np.empty([len(first), len(second)]), density, "the grid and log_prior")
    dots = checked(draws, "the draws", "n m")
    if dots.shape[1] != 2:
        raise UserError(f"the draws have {dots.shape[1]} latents; the grid has 2")
    figure, (panel,) = chart_figure(1)
    shade = _draw_shades(panel, _Posterior([first, second], density, density, dots))
    _draw_contours(panel, (first, second), density, TRUE, "solid")
    panel.set_title(title, fontsize=NORMAL, color=INK)
    handles = {
        "prior; lines hold 50% and 95%": Line2D([], [], color=TRUE, linewidth=1.2),
        "a draw of q for each example": shade,
    }
    figure.legend(
        handles.values(), handles.keys(), **{**LEGEND, "loc": "outside lower center", "ncols": 2}
    )
    return laid_out(figure)


class _Posterior(NamedTuple):
    axes: list[Float[np.ndarray, " g"]]
    p: Float[np.ndarray, "..."]  # densities, not their logs
    q: Float[np.ndarray, "..."]
    draws: Float[np.ndarray, "n m"]


def _densities(grid: Grid, number: int) -> _Posterior:
    """The densities and draws of a grid, checked."""
    of = f"of posterior {number}"
    axes = [checked(axis, f"the grid {of}", "g") for axis in grid.axes]
    if len(axes) not in (1, 2):
        raise UserError(f"the grid {of} has {len(axes)} latents; only one or two can be drawn")
    if any(len(axis) < 2 or np.any(np.diff(axis) <= 0) for axis in axes):
        raise UserError(
            f"the grid {of} must increase and have at least two points along each latent"
        )
    sides = " ".join(("g", "h")[: len(axes)])
    p = _density(grid.log_posterior, f"log_posterior {of}", sides)
    q = _density(grid.log_q, f"log_q {of}", sides)
    draws = checked(grid.draws, f"the draws {of}", "n m")
    same_shape(np.empty([len(axis) for axis in axes]), p, f"the grid and log_posterior {of}")
    same_shape(p, q, f"log_posterior and log_q {of}")
    if draws.shape[1] != len(axes):
        raise UserError(f"the draws {of} have {draws.shape[1]} latents; its grid has {len(axes)}")
    return _Posterior(axes, p, q, draws)


def _density(log_density: np.ndarray, name: str, sides: str) -> Float[np.ndarray, "..."]:
    """The density; minus infinity is a density of zero."""
    array = np.asarray(log_density)
    if array.dtype.kind == "f":
        array = np.where(np.isneginf(array), np.finfo(array.dtype).min, array)
    with np.errstate(over="ignore"):
        return checked(np.exp(checked(array, name, sides)), name, sides)


def _draw_curves(axes: Axes, posterior: _Posterior) -> dict[str, Artist]:
    """Draw two curves over a histogram of draws."""
    (grid,) = posterior.axes
    ((low, high),) = _limits(posterior)
    bars = draw_histogram(axes, posterior.draws[:, 0], low, high)
    (p,) = axes.plot(grid, posterior.p, color=TRUE, linewidth=1.6)
    (q,) = axes.plot(grid, posterior.q, color=Q, linewidth=1.6, linestyle="--")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    finish(axes, "latent", "density")
    return {"true posterior p(z | x)": p, "q(z | x)": q, "draws from p(z | x)": bars}


def _draw_map(axes: Axes, posterior: _Posterior) -> dict[str, Artist]:
    """Draw a map of p under the contours of p and q, and the draws."""
    dots = _draw_shades(axes, posterior)
    for density, colour, style in ((posterior.p, TRUE, "solid"), (posterior.q, Q, "dashed")):
        _draw_contours(axes, posterior.axes, density, colour, style)
    return {
        "true posterior p(z | x)": Line2D([], [], color=TRUE, linewidth=1.2),
        "q(z | x); lines hold 50% and 95%": Line2D([], [], color=Q, linewidth=1.2, linestyle="--"),
        "draws from p(z | x)": dots,
    }


def _draw_shades(axes: Axes, posterior: _Posterior) -> Artist:
    """Draw a map of p and the draws; return the legend's dot."""
    # Viewers struggle with tens of thousands of cells as vectors.
    axes.pcolormesh(*posterior.axes, posterior.p.T, cmap=SHADES, rasterized=True, zorder=0)
    size = float(np.clip(600 / len(posterior.draws), 0.5, 4))
    x, y = posterior.draws.T
    axes.scatter(x, y, size, color=INK, linewidths=0, zorder=2, rasterized=True)
    (x_low, x_high), (y_low, y_high) = _limits(posterior)
    axes.set(xlim=(x_low, x_high), ylim=(y_low, y_high))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    finish(axes, "first latent", "second latent")
    axes.grid(visible=False)
    dot: dict[str, Any] = {"marker": "o", "markersize": 3, "linestyle": "none"}
    return Line2D([], [], color=INK, **dot)


def _draw_contours(
    axes: Axes, grid: Sequence[np.ndarray], density: np.ndarray, colour: str, style: str
) -> None:
    if levels := _levels(density):
        axes.contour(
            *grid,
            density.T,
            levels=levels,
            colors=colour,
            linewidths=1.2,
            linestyles=style,
            zorder=3,
        )


def _least(density: Float[np.ndarray, "..."], mass: float) -> float:
    """The density above which the cells of the grid hold at least this fraction of its mass."""
    falling = np.sort(density, axis=None)[::-1]
    total = np.cumsum(falling)
    last = np.searchsorted(total, mass * total[-1])
    return float(falling[min(last, len(falling) - 1)])


def _levels(density: Float[np.ndarray, "..."]) -> list[float]:
    """Increasing levels of the contours, all within the range of the density."""
    low, high = density.min(), density.max()
    return sorted({level for mass in MASSES if low < (level := _least(density, mass)) < high})


def _limits(posterior: _Posterior) -> list[tuple[float, float]]:
    """For each latent, the limits of the visible mass and draws, with a margin."""
    seen = np.zeros(posterior.p.shape, bool)
    for density in (posterior.p, posterior.q):
        seen |= density >= max(_least(density, SHOWN), np.finfo(np.float64).tiny)
    places = np.argwhere(seen) if seen.any() else np.argwhere(~seen)
    limits = []
    for axis, at, drawn in zip(posterior.axes, places.T, posterior.draws.T, strict=True):
        low, high = min(axis[at.min()], drawn.min()), max(axis[at.max()], drawn.max())
        pad = 0.04 * (high - low) or float(np.diff(axis).max())
        limits.append((float(low - pad), float(high + pad)))
    return limits

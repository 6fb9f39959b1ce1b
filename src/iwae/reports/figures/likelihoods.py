"""Bounds on the log-likelihood: against their cost, and as a rate-distortion curve."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iwae.errors import UserError
from iwae.reports.figures.style import (
    FAINT,
    INK,
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
LONG = 30  # a longer name has its own line in the legend


def bounds_against_budget(
    curves: Mapping[str, tuple[Numbers, Numbers, Numbers]],
    *,
    upper: Mapping[str, tuple[float | int, float | int]] | None = None,
) -> Figure:
    """Lower bounds on log p(x) against their cost (Wu et al. 2017, sec. 4).

    Args:
        curves: by name, a budget [m] (k importance samples or T temperatures; at least 1), the
            mean bound there [m] and its standard error [m], nats, in any order.
        upper: by name, an upper bound and its standard error, nats, for a dashed line in a band.

    Raises:
        UserError: if there is no curve, or a number is missing, not finite or negative.
    """
    if not curves:
        raise UserError("there are no bounds to draw")
    figure, (axes,) = chart_figure(1)
    looks = zip(cycle(PALETTE), cycle(MARKERS), strict=False)
    budgets = [
        _draw_bound(axes, name, curve, colour, marker)
        for (name, curve), (colour, marker) in zip(curves.items(), looks, strict=False)
    ]
    colours = cycle((INK, *reversed(PALETTE[:-1])))
    for (name, bound), colour in zip((upper or {}).items(), colours, strict=False):
        _draw_level(axes, name, bound, colour)
    axes.set_xscale("log")
    names = [*curves, *(upper or {})]
    _finish(axes, "importance samples k, or temperatures T", "bound ± standard error (nats)", names)
    budget = np.unique(np.concatenate(budgets))
    places = np.log10(budget)
    if np.all(np.diff(places) > 0.08 * np.ptp(places)):
        axes.set_xticks(budget)
    plain_numbers(axes)
    return laid_out(figure)


def rate_distortion_curve(betas: np.ndarray, rate: np.ndarray, distortion: np.ndarray) -> Figure:
    """The rate-distortion curve of a model: means over examples (Huang et al. 2020, fig. 2).

    The band is the standard error of the distortion over examples; the cross at beta = 1 shows the
    standard errors of both. There, rate + distortion is an upper bound on -log p(x) in expectation,
    and the dotted line of constant sum touches the curve. Without a beta of 1, both are omitted.

    Args:
        betas: increasing, [T].
        rate, distortion: for each of n examples and each beta, [n, T], nats.

    Raises:
        UserError: if the shapes do not fit, the betas do not increase, or a number is not finite.
    """
    betas = checked(betas, "betas", "t")
    rate, distortion = checked(rate, "rate", "n t"), checked(distortion, "distortion", "n t")
    same_shape(rate, distortion, "rate and distortion")
    if len(betas) != rate.shape[1]:
        raise UserError(f"there are {len(betas)} betas, but rates at {rate.shape[1]}")
    if len(betas) < 2 or np.any(np.diff(betas) <= 0):
        raise UserError("betas must increase, and there must be two or more")
    figure, (axes,) = chart_figure(1)
    means, errors = distortion.mean(axis=0), _standard_error(distortion)
    x = rate.mean(axis=0)
    label = f"mean of {len(rate):,} examples"
    if len(rate) > 1:
        label += ", and standard error"
        axes.fill_between(
            x, means - errors, means + errors, color=PALETTE[0], alpha=0.25, linewidth=0
        )
    axes.plot(x, means, color=PALETTE[0], linewidth=1.6, label=label)
    at_one = np.flatnonzero(np.isclose(betas, 1, rtol=0, atol=1e-6))
    if at_one.size:
        _mark_likelihood(axes, rate[:, at_one[0]], distortion[:, at_one[0]])
    names = axes.get_legend_handles_labels()[1]
    _finish(axes, "rate (nats)", "distortion \N{MINUS SIGN}log p(x | z) (nats)", names)
    return laid_out(figure)


def _draw_bound(
    axes: Axes, name: str, curve: tuple[Numbers, Numbers, Numbers], colour: str, marker: str
) -> Float[np.ndarray, " m"]:
    """Draw a curve with its error bars; returns its budgets."""
    budget, mean, stderr = (
        checked(values, f"the {quantity} of '{name}'", "m")
        for quantity, values in zip(("budget", "mean", "standard error"), curve, strict=True)
    )
    same_shape(budget, mean, f"budget and mean of '{name}'")
    same_shape(budget, stderr, f"budget and standard error of '{name}'")
    if budget.min() < 1 or stderr.min() < 0:
        raise UserError(
            f"'{name}' needs budgets of at least 1 and standard errors that are not negative"
        )
    order = np.argsort(budget)
    container = axes.errorbar(
        budget[order],
        mean[order],
        stderr[order],
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.6,
        elinewidth=1.2,
        capsize=3,
    )
    container.lines[0].set_label(name)  # legends list a container after all lines
    return budget


def _draw_level(axes: Axes, name: str, bound: Numbers, colour: str) -> None:
    """Draw a dashed horizontal line in a band of one standard error."""
    level, half = checked(bound, f"the upper bound '{name}'", "m")
    if half < 0:
        raise UserError(f"the standard error of '{name}' must not be negative")
    axes.axhspan(level - half, level + half, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(level, color=colour, linewidth=1.2, linestyle="--", label=name)


def _mark_likelihood(
    axes: Axes, rate: Float[np.ndarray, " n"], distortion: Float[np.ndarray, " n"]
) -> None:
    """Mark the point at beta = 1, and draw the line of constant rate + distortion through it."""
    total, x, y = (rate + distortion)[:, None], rate.mean(), distortion.mean()
    label = f"rate + distortion = {total.mean():.2f}".replace("-", "\N{MINUS SIGN}")
    if len(rate) > 1:
        label += f" ± {_standard_error(total)[0]:.2f} nats"
        errors = (_standard_error(one[:, None])[0] for one in (rate, distortion))
        axes.errorbar(x, y, *reversed([*errors]), color=PALETTE[1], elinewidth=1.2, capsize=3)
    axes.plot(x, y, "o", color=PALETTE[1], markersize=5, zorder=3)
    limits = axes.get_xlim(), axes.get_ylim()
    axes.axline((x, y), slope=-1, color=FAINT, linewidth=1.1, linestyle=":", label=label)
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.annotate("β = 1", (x, y), (6, 5), textcoords="offset points", fontsize=SMALL, color=INK)


def _standard_error(values: Float[np.ndarray, "n t"]) -> Float[np.ndarray, " t"]:
    """The standard error of the mean over examples; 0 for one example, where it is unknown."""
    n = len(values)
    return values.std(axis=0, ddof=min(1, n - 1)) / np.sqrt(n)


def _finish(axes: Axes, x_label: str, y_label: str, names: list[str]) -> None:
    """Apply the common style, with as many legend columns as there is room for."""
    finish(axes, x_label, y_label, columns=1 if max(map(len, names)) > LONG else 2)

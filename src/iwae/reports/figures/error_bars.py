"""Charts of estimates with errors: bounds, gradients, rate and distortion, ranks in a band."""

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from iwae.errors import UserError
from iwae.evaluation.ecdf_bands import Bands, ecdf_counts
from iwae.reports.figures import style
from iwae.reports.figures.axis_scales import plain_axis_ticks
from iwae.reports.figures.input_checks import check_figure_input_shapes, checked_input
from iwae.reports.figures.style import apply_style, fix_figure_layout, styled_figure
from iwae.results.formatting import format_minus
from iwae.wording import count_in_words

LONG = 30  # longest name in a legend of bounds with two columns
LONG_GRADIENT = 12  # longest name in a legend of gradients with three columns; twice that, with two

DASHES = ((5, 2), (5, 2, 1, 2), (2, 1.5), (8, 2, 2, 2))
"""Line styles of gradients through a few particles; dotted lines are theoretical slopes."""

LINEAR = 0.01
"""Largest difference on the linear part of the axis, nats."""

NOTE: dict[str, Any] = {"textcoords": "offset points", "fontsize": style.SMALL}
"""The look of an annotation."""

SLOPES = {0.5: "$k^{1/2}$", -0.5: "$k^{-1/2}$"}
"""Theoretical slopes at large k (Rainforth et al. 2018; Tucker et al. 2019)."""

Curve: TypeAlias = tuple[style.Numbers, style.Numbers, style.Numbers]
"""Positions, means and standard errors, each [m]."""


def bounds_against_budget(
    curves: Mapping[str, Curve], *, reference: tuple[str, float, float] | None = None
) -> Figure:
    """Lower bounds on log p(x) against their cost (Wu et al. 2017, sec. 4).

    Args:
        curves: by name, budgets [m] (k importance samples or T temperatures, at least 1, in any
            order), mean bounds [m] and their standard errors [m], nats.
        reference: name, mean and standard error of a bound that was subtracted from all others:
            the curves are paired differences to it, and a dotted line at zero represents it.

    Raises:
        UserError: if a number is missing or not finite.
    """
    figure, (axes,) = styled_figure(1)
    # The scale of an axis must be set before its limits are.
    names = [*([] if reference is None else [_draw_zero(axes, *reference)]), *curves]
    looks = zip(cycle(style.PALETTE), cycle(style.MARKERS), strict=False)
    budgets = []
    for (name, curve), (colour, marker) in zip(curves.items(), looks, strict=False):
        ordered = _ordered(curve, name)
        draw_error_bars(axes, ordered, name, color=colour, marker=marker)
        budgets.append(ordered[0])
    axes.set_xscale("log")
    label = "bound ± standard error" if reference is None else f"difference to {reference[0]}"
    _finish(axes, "importance samples k, or temperatures T", f"{label} (nats)", names)
    budget = np.unique(np.concatenate(budgets))
    places = np.log10(budget)
    if np.all(np.diff(places) > 0.08 * np.ptp(places)):
        axes.set_xticks(budget)
    plain_axis_ticks(axes)
    return fix_figure_layout(figure)


def rate_distortion_curve(betas: np.ndarray, rate: np.ndarray, distortion: np.ndarray) -> Figure:
    """The rate-distortion curve of a model: means over examples (Huang et al. 2020, fig. 2).

    The band is the standard error of the distortion over examples; the cross at beta = 1 shows the
    standard errors of both. There, rate + distortion is an upper bound on -log p(x) in expectation,
    and the dotted line of constant sum touches the curve. Both are omitted without a beta of 1.

    Args:
        betas: increasing values of beta, [T].
        rate, distortion: values for each example and beta, [n, T], nats.

    Raises:
        UserError: if shapes do not match, or a number is not finite.
    """
    betas = checked_input(betas, "betas", "t")
    rate = checked_input(rate, "rate", "n t")
    distortion = checked_input(distortion, "distortion", "n t")
    check_figure_input_shapes(rate, distortion, "rate and distortion")
    check_figure_input_shapes(betas, rate[0], "betas and the rates of an example")
    figure, (axes,) = styled_figure(1)
    means, errors = distortion.mean(axis=0), _standard_error(distortion)
    x = rate.mean(axis=0)
    label = f"mean of {count_in_words(len(rate), 'example', ',')}"
    if len(rate) > 1:
        label += ", and standard error"
        axes.fill_between(
            x, means - errors, means + errors, color=style.PALETTE[0], alpha=0.25, linewidth=0
        )
    axes.plot(x, means, color=style.PALETTE[0], linewidth=1.6, label=label)
    at_one = np.flatnonzero(np.isclose(betas, 1, rtol=0, atol=1e-6))
    if at_one.size:
        _mark_likelihood(axes, rate[:, at_one[0]], distortion[:, at_one[0]])
    names = axes.get_legend_handles_labels()[1]
    _finish(axes, "rate (nats)", "distortion \N{MINUS SIGN}log p(x | z) (nats)", names)
    return fix_figure_layout(figure)


def signal_to_noise(
    groups: Mapping[str, Mapping[str, Curve]],
    powers: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    power_from: int = 1,
) -> Figure:
    """Signal-to-noise ratios against k, with a panel for each group of parameters.

    Dotted lines have the theoretical slopes. Ratios of zero, hidden by noise, are omitted.

    Args:
        groups: by group and gradient, k [m], the ratio [m] and its standard error [m]. In a name
            such as "dreg, backward 8", the part before the comma determines the colour of the line,
            and the rest its dashes and an empty marker.
        powers: by group and gradient, the power of k by which the ratio grows, and its standard
            error, for the legend.
        power_from: the least k in the fit of the powers.

    Raises:
        UserError: if there is no curve, or a number is missing or not finite.
    """
    if not groups:
        raise UserError("there are no gradients to draw")
    figure, panels = styled_figure(len(groups))
    for axes, (group, curves) in zip(panels, groups.items(), strict=True):
        group_powers = powers.get(group, {})
        names = {name: _with_power(name, group_powers.get(name)) for name in curves}
        ratios = _draw_ratios(axes, curves, names)
        longest = max(map(len, names.values()))
        columns = 1 if longest > 2 * LONG_GRADIENT else 2 if longest > LONG_GRADIENT else 3
        least = f", from k = {power_from}" if power_from > 1 else ""
        title = f"grows like k to the power of{least}:" if group_powers else None
        labels = "particles k", f"signal / noise: {group}"
        apply_style(axes, *labels, columns=min(columns, len(curves)), title=title)
        plain_axis_ticks(axes)
        _scale_ratios(axes, ratios)
    return fix_figure_layout(figure)


def ecdf_differences(panels: Mapping[str, Float[np.ndarray, "n units"]], bands: Bands) -> Figure:
    """Distribution functions of ranks less the uniform one, with a line for each unit.

    Units that leave the band are in colour (Säilynoja, Bürkner & Vehtari 2022). If q is too narrow,
    small and large ranks are more frequent: the line rises, falls below zero and returns. If q is
    shifted, the line stays on one side of zero.

    Args:
        panels: by title, relative ranks between 0 and 1.
        bands: simultaneous bands of as many uniform numbers.

    Raises:
        UserError: if there are more or fewer ranks than the bands are for, or a rank is not between
            0 and 1.
    """
    figure, charts = styled_figure(len(panels))
    for axes, (title, ranks) in zip(charts, panels.items(), strict=True):
        _draw_ranks(axes, checked_input(ranks, f"the ranks of '{title}'", "n units"), bands, title)
    low = min(axes.get_ylim()[0] for axes in charts)
    high = max(axes.get_ylim()[1] for axes in charts)
    for axes in charts:
        axes.set_ylim(low, high)
    return fix_figure_layout(figure)


def _ordered(curve: Curve, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A curve in order of position; errors name the quantities."""
    x, y, stderr = (
        checked_input(values, f"the {quantity} of '{name}'", "m")
        for quantity, values in zip(("budget", "mean", "standard error"), curve, strict=True)
    )
    order = np.argsort(x)
    return x[order], y[order], stderr[order]


def draw_error_bars(axes: Axes, curve: Curve, name: str | None = None, **look: Any) -> None:
    """Draw a curve with error bars."""
    widths = {"markersize": 4, "linewidth": 1.6, "elinewidth": 1.2, "capsize": 3}
    container = axes.errorbar(*curve, **(widths | look))
    container.lines[0].set_label(name)  # legends list a container after all lines


def _draw_zero(axes: Axes, name: str, mean: float, stderr: float) -> str:
    """Draw the reference bound at a difference of zero; returns its label.

    The axis is logarithmic away from zero: L_1 may be a hundred times as far from it as L_50.
    """
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.yaxis.set_major_formatter("{x:g}")
    label = format_minus(f"{name} = {mean:.2f} ± {stderr:.2f} nats")
    axes.axhline(0, **style.GUIDE, zorder=1, label=label)
    return label


def _mark_likelihood(
    axes: Axes, rate: Float[np.ndarray, " n"], distortion: Float[np.ndarray, " n"]
) -> None:
    """Mark the point at beta = 1, and draw the line of constant rate + distortion through it."""
    total, x, y = (rate + distortion)[:, None], rate.mean(), distortion.mean()
    label = format_minus(f"rate + distortion = {total.mean():.2f}")
    if len(rate) > 1:
        label += f" ± {_standard_error(total)[0]:.2f} nats"
        errors = (_standard_error(one[:, None])[0] for one in (rate, distortion))
        axes.errorbar(x, y, *reversed([*errors]), color=style.PALETTE[1], elinewidth=1.2, capsize=3)
    axes.plot(x, y, "o", color=style.PALETTE[1], markersize=5, zorder=3)
    limits = axes.get_xlim(), axes.get_ylim()
    axes.axline((x, y), slope=-1, **style.GUIDE, label=label)
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.annotate("β = 1", (x, y), (6, 5), color=style.INK, **NOTE)


def _standard_error(values: Float[np.ndarray, "n t"]) -> Float[np.ndarray, " t"]:
    """The standard error of the mean over examples; 0 for a single example."""
    n = len(values)
    return values.std(axis=0, ddof=min(1, n - 1)) / np.sqrt(n)


def _finish(axes: Axes, x_label: str, y_label: str, names: list[str]) -> None:
    """Apply the common style, with as many columns in the legend as fit."""
    apply_style(axes, x_label, y_label, columns=1 if max(map(len, names)) > LONG else 2)


def _looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and marker for each gradient; with few particles, other markers and dashes."""
    parts = {name: name.partition(", ")[::2] for name in names}
    gradients, suffixes = (
        list(dict.fromkeys(filter(None, column))) for column in zip(*parts.values(), strict=True)
    )
    looks: dict[str, dict[str, Any]] = {}
    for name, (gradient, suffix) in parts.items():
        place = gradients.index(gradient)
        shape = suffixes.index(suffix) if suffix else place
        colour = style.PALETTE[place % len(style.PALETTE)]
        looks[name] = {"color": colour, "marker": style.MARKERS[shape % len(style.MARKERS)]}
        if suffix:
            dashes = (0, DASHES[shape % len(DASHES)])
            looks[name] |= {"linestyle": dashes, "markerfacecolor": "white"}
    return looks


def _with_power(name: str, power: tuple[float, float] | None) -> str:
    """A gradient, with the power of k by which its ratio grows, if known."""
    if power is None:
        return name
    slope = round(power[0], 2) + 0.0  # no negative zero
    return f"{name}: " + format_minus(f"{slope:+.2f} ± {power[1]:.2f}")


def _draw_ratios(axes: Axes, curves: Mapping[str, Curve], names: Mapping[str, str]) -> np.ndarray:
    """Draw the curves of a panel and the theoretical slopes; returns all positive ratios."""
    looks = _looks(curves)
    drawn = [
        _draw_ratio(axes, _ordered(curve, name), names[name], looks[name])
        for name, curve in curves.items()
    ]
    axes.set_xscale("log")
    axes.set_yscale("log")
    points = np.concatenate(drawn, axis=1)
    if points.size:
        _draw_slopes(axes, points)
    return points[1]


def _draw_ratio(axes: Axes, curve: Curve, label: str, look: Mapping[str, Any]) -> np.ndarray:
    """Draw an ordered curve with its error bars; returns its points, `[2, m]`."""
    k, ratio, stderr = (np.asarray(values)[np.asarray(curve[1]) > 0] for values in curve)
    stderr = np.minimum(stderr, 0.99 * ratio)  # a logarithmic axis has no zero
    draw_error_bars(axes, (k, ratio, stderr), label, **look)
    return np.array([k, ratio])


def _scale_ratios(axes: Axes, ratios: np.ndarray) -> None:
    """Limit the axis by the ratios: the error bar of a noisy ratio may end near zero."""
    low, high = axes.get_ylim()
    if ratios.size:
        low = max(low, ratios.min() / 2)
        axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:g}" if high < 20 * low else NullFormatter())


def _draw_slopes(axes: Axes, points: np.ndarray) -> None:
    """Draw lines with the theoretical slopes through the centre of the points."""
    limits = axes.get_xlim(), axes.get_ylim()
    centre = np.exp(np.log(points).mean(axis=1))
    ends = np.array([points[0].min(), points[0].max()])
    if ends[0] == ends[1]:
        return
    for power, label in SLOPES.items():
        line = centre[1] * (ends / centre[0]) ** power
        axes.plot(ends, line, **style.GUIDE, zorder=1)
        axes.annotate(label, (ends[1], line[1]), (3, 0), **NOTE)
    axes.set_xlim(limits[0])


def _draw_ranks(axes: Axes, ranks: np.ndarray, bands: Bands, title: str) -> None:
    """Draw a panel of `ecdf_differences`."""
    n = len(ranks)
    if n != len(bands.tails) - 1:
        raise UserError(f"{n} ranks, but bands of {len(bands.tails) - 1} numbers")
    if ranks.min() < 0 or ranks.max() > 1:
        raise UserError("relative ranks lie between 0 and 1")
    points = np.concatenate([[0], bands.points, [1]])
    low, high = (np.pad(side - bands.points, 1) for side in (bands.lower, bands.upper))
    axes.fill_between(points, low, high, color=style.PALE, linewidth=0, zorder=0, label="95% band")
    outside = bands.smallest_tail(ranks) <= bands.critical
    lines = ecdf_counts(ranks, bands.points) / n - bands.points
    lines = np.pad(lines, ((0, 0), (1, 1)))
    styles = ((~outside, style.FAINT, "units inside"), (outside, style.PALETTE[1], "units outside"))
    for chosen, colour, words in styles:
        label = f"{np.count_nonzero(chosen)} {words}"
        for line in lines[chosen]:
            axes.plot(points, line, color=colour, linewidth=0.8, label=label)
            label = "_"
    apply_style(axes, f"rank of the true latent, {title}", "share below, less uniform")

"""Ranks of true latents against the uniform distribution."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iwae.errors import UserError
from iwae.evaluation.bands import Bands, counts_below
from iwae.reports.figures.style import FAINT, PALE, PALETTE, chart_figure, checked, finish, laid_out


def ecdf_differences(panels: Mapping[str, Float[np.ndarray, "n units"]], bands: Bands) -> Figure:
    """Distribution functions of ranks less the uniform one, a line for each unit.

    Units that leave the band somewhere are drawn in colour (Säilynoja, Bürkner & Vehtari 2022).
    A q that is too narrow has more small and large ranks: its line rises, then falls below zero
    and comes back. A shifted q has a line on one side of zero.

    Args:
        panels: by title, relative ranks between 0 and 1.
        bands: of as many uniform numbers.

    Raises:
        UserError: if there is nothing to draw, the numbers are not those of the bands, or a rank
            is not between 0 and 1.
    """
    if not panels:
        raise UserError("there are no ranks to draw")
    figure, charts = chart_figure(len(panels))
    for axes, (title, ranks) in zip(charts, panels.items(), strict=True):
        _draw(axes, checked(ranks, f"the ranks of '{title}'", "n units"), bands, title)
    low = min(axes.get_ylim()[0] for axes in charts)
    high = max(axes.get_ylim()[1] for axes in charts)
    for axes in charts:
        axes.set_ylim(low, high)
    return laid_out(figure)


def _draw(axes: Axes, ranks: np.ndarray, bands: Bands, title: str) -> None:
    n = len(ranks)
    if n != len(bands.tails) - 1:
        raise UserError(f"{n} ranks, but bands of {len(bands.tails) - 1} numbers")
    if ranks.min() < 0 or ranks.max() > 1:
        raise UserError("relative ranks lie between 0 and 1")
    points = np.concatenate([[0], bands.points, [1]])
    low, high = (np.pad(side - bands.points, 1) for side in (bands.lower, bands.upper))
    axes.fill_between(points, low, high, color=PALE, linewidth=0, zorder=0, label="95% band")
    outside = bands.smallest_tail(ranks) <= bands.critical
    lines = counts_below(ranks, bands.points) / n - bands.points
    lines = np.pad(lines, ((0, 0), (1, 1)))
    styles = ((~outside, FAINT, "units inside"), (outside, PALETTE[1], "units outside"))
    for chosen, colour, words in styles:
        label = f"{np.count_nonzero(chosen)} {words}"
        for line in lines[chosen]:
            axes.plot(points, line, color=colour, linewidth=0.8, label=label)
            label = "_"
    finish(axes, f"rank of the true latent, {title}", "share below, less uniform")

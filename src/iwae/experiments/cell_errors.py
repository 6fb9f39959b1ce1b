"""The errors of a cell that its runs' records know, beside those of examples and seeds."""

from collections.abc import Sequence

import numpy as np

from iwae.results.schema import Binarizations, Number, Record, Weights
from iwae.results.text import is_heavy, monte_carlo_words

Rows = Sequence[tuple[Weights, int]]
"""For each run, its bound with what other records add to it, and its number of seeds."""


def mean_over_draws(rows: Rows) -> Binarizations | None:
    """The mean over the draws of a test set's pixels and over all seeds; None unless all have it.

    All runs were measured on the same draws, so the error of the draws is that of one run.
    """
    found = [row.binarizations for row, _ in rows]
    if any(one is None or one.log_likelihood is None for one in found):
        return None
    seeds = [number for _, number in rows]
    names = ("log_likelihood", "stderr", "draws_error", "one_draw_error")
    means = {
        name: float(np.average([getattr(one, name) for one in found], weights=seeds))
        for name in names
    }
    return None if found[0] is None else found[0].model_copy(update=means)


def other_errors(rows: Rows, record: Record, digits: int) -> str:
    """The errors from particles and from draws of pixels, in words.

    Args:
        record: of one of the runs.
        digits: of the errors of draws; those of particles have one more.
    """
    return "; ".join(
        [*_particles(rows, digits + 1), *_pixels(mean_over_draws(rows), record, digits)]
    )


def _particles(rows: Rows, digits: int) -> list[str]:
    """The Monte Carlo error of the mean over all seeds, whose particles are their own."""
    known = [(row.monte_carlo_error, seeds) for row, seeds in rows if row.monte_carlo_error]
    if len(known) < len(rows):
        return []
    total = np.linalg.norm([error * seeds for error, seeds in known])
    mean = float(total / sum(seeds for _, seeds in known))
    worst = {"monte_carlo_error": mean, "pareto_k_unreliable": _largest_share(rows)}
    return monte_carlo_words(rows[0][0].model_copy(update=worst), digits)


def _largest_share(rows: Rows) -> Number:
    """The share of too large a k-hat of the worst run; None if it is unknown and none is heavy."""
    worst, _ = max(rows, key=lambda one: one[0].pareto_k_unreliable or 0.0)
    unknown = any(row.pareto_k_unreliable is None for row, _ in rows)
    return None if unknown and not is_heavy(worst) else worst.pareto_k_unreliable


def _pixels(drawn: Binarizations | None, record: Record, digits: int) -> list[str]:
    if drawn is not None:
        by = "" if drawn.by is None else f", by {drawn.by}"
        return [f"pixel draw error {drawn.draws_error:.{digits}f} ({drawn.draws} draws{by})"]
    is_drawn = record.data.get("binarization") == "dynamic"
    return ["pixel draw error not measured"] if is_drawn else []

"""Means over the runs of a cell: errors from particles and draws of pixels, and AIS."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iwae.results.extrapolation import difference_estimate
from iwae.results.formatting import format_monte_carlo_error, has_heavy_weights
from iwae.results.reading import Known
from iwae.results.schema import Binarizations, Number, Record, Weights
from iwae.wording import count_in_words

Rows = Sequence[tuple[Weights, int]]
"""For each run, the row of its bound, completed from other records, and its number of seeds."""


def _mean_over_seeds(values: Sequence[Number], seeds: Sequence[int]) -> Number:
    """The mean over all seeds of values of runs; None if one value is unknown."""
    known = [value for value in values if value is not None]
    return float(np.average(known, weights=seeds)) if len(known) == len(values) else None


def cell_mean_over_draws(rows: Rows) -> Binarizations | None:
    """The mean over draws of the test set's pixels and over all seeds; None unless all have it.

    All runs share the draws, so the error of the draws is that of one run: the mean over seeds.
    `draws` and `by` are those of the run with the fewest draws.
    """
    found = _by_run(rows)
    if not found or any(one.log_likelihood is None for one in found):
        return None
    seeds = [number for _, number in rows]
    names = ("log_likelihood", "stderr", "draws_error", "one_draw_error")
    means = {name: _mean_over_seeds([getattr(one, name) for one in found], seeds) for name in names}
    return min(found, key=lambda one: one.draws).model_copy(update=means)


def cell_mean_errors(rows: Rows, record: Record, digits: int) -> str:
    """The errors from particles and from draws of pixels, in words.

    Args:
        record: the record of any of the runs.
        digits: digits of the errors from draws; those from particles have one more.
    """
    return "; ".join([*_particle_errors(rows, digits + 1), *_draw_errors(rows, record, digits)])


def _by_run(rows: Rows) -> list[Binarizations]:
    """The mean over draws of each run; empty unless all have one."""
    found = [row.binarizations for row, _ in rows if row.binarizations is not None]
    return found if len(found) == len(rows) else []


def _particle_errors(rows: Rows, digits: int) -> list[str]:
    """The Monte Carlo error of the mean over all seeds.

    All runs draw particles with the same keys. The mean of the errors is an upper bound, reached
    if they are perfectly correlated.
    """
    each, seeds = zip(*rows, strict=True)
    mean = _mean_over_seeds([row.monte_carlo_error for row in each], seeds)
    worst = {"monte_carlo_error": mean, "pareto_k_unreliable": _largest_share(rows)}
    return format_monte_carlo_error(each[0].model_copy(update=worst), digits)


def _largest_share(rows: Rows) -> Number:
    """The largest share of examples with too large a k-hat; None if unknown and none is heavy."""
    worst, _ = max(rows, key=lambda one: one[0].pareto_k_unreliable or 0.0)
    unknown = any(row.pareto_k_unreliable is None for row, _ in rows)
    return None if unknown and not has_heavy_weights(worst) else worst.pareto_k_unreliable


def _draw_errors(rows: Rows, record: Record, digits: int) -> list[str]:
    """The error from draws of the pixels, the numbers of draws, and the bounds measured."""
    drawn = cell_mean_over_draws(rows)
    if drawn is None:
        return ["pixel draw error not measured"] if record.is_drawn else []
    error = drawn.draws_error
    words = "unknown" if error is None else f"{error:.{digits}f}"
    draws = [
        count_in_words(one.draws, "draw") + (f", by {one.by}" if one.by else "")
        for one in _by_run(rows)
    ]
    return [f"pixel draw error {words} ({'; '.join(dict.fromkeys(draws))})"]


class Annealed(NamedTuple):
    """AIS minus L_5000 on the whole test set, the mean over the seeds that were annealed.

    Attributes:
        estimator: name of the AIS bound.
        gap: nats; None if it is not finite.
        error: from the choice of subsets; 0 if all examples were annealed, None if not finite.
        seeds: number of seeds.
    """

    estimator: str
    gap: Number
    error: Number
    seeds: int


def cell_mean_gap_of_run(annealed: Known, sampled: Known) -> Annealed:
    """A run's AIS, extrapolated to all examples of its L_5000, minus that L_5000."""
    control = sampled.values.mean(axis=0)
    found = difference_estimate(
        annealed.values.mean(axis=0), control, annealed.places, sampled.estimator
    )
    known = found.log_likelihood
    gap = None if known is None else known - float(control.mean())
    return Annealed(annealed.estimator, gap, found.subset_error, len(annealed.values))


def cell_mean_gap(found: Sequence[Annealed]) -> Annealed | None:
    """The mean gap over the seeds of all runs annealed as long as the first; None without runs.

    The subsets of runs may differ, but share most examples: the mean of their errors is an upper
    bound.
    """
    alike = [one for one in found if one.estimator == found[0].estimator]
    if not alike:
        return None
    seeds = [one.seeds for one in alike]
    gap = _mean_over_seeds([one.gap for one in alike], seeds)
    error = _mean_over_seeds([one.error for one in alike], seeds)
    return Annealed(alike[0].estimator, gap, error, sum(seeds))

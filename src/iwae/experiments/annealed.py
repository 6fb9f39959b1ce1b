"""AIS of the runs of a cell beside their L_5000."""

from collections.abc import Sequence
from typing import NamedTuple

from iwae.experiments.cell_errors import mean_over_seeds
from iwae.results.completing import carried_over
from iwae.results.reading import Known
from iwae.results.schema import Number


class Annealed(NamedTuple):
    """AIS minus L_5000 of all test examples, as the mean over the seeds that were annealed.

    Attributes:
        estimator: the name of AIS.
        gap: nats; None if it is not finite.
        error: from the choice of subsets; 0 if all examples were annealed, None if not finite.
        seeds: how many.
    """

    estimator: str
    gap: Number
    error: Number
    seeds: int


def above_samples(annealed: Known, sampled: Known) -> Annealed:
    """The AIS of a run minus its L_5000, to all of whose examples AIS is carried over."""
    control = sampled.values.mean(axis=0)
    found = carried_over(annealed.values.mean(axis=0), control, annealed.places, sampled.estimator)
    known = found.log_likelihood
    gap = None if known is None else known - float(control.mean())
    return Annealed(annealed.estimator, gap, found.subset_error, len(annealed.values))


def mean_above(found: Sequence[Annealed]) -> Annealed | None:
    """The mean gap over the seeds of all runs annealed as long as the first, and its error.

    The subsets of runs may differ but have most examples in common, so the error is bounded by the
    mean of the runs' errors. None without runs.
    """
    alike = [one for one in found if one.estimator == found[0].estimator]
    if not alike:
        return None
    seeds = [one.seeds for one in alike]
    gap = mean_over_seeds([one.gap for one in alike], seeds)
    error = mean_over_seeds([one.error for one in alike], seeds)
    return Annealed(alike[0].estimator, gap, error, sum(seeds))

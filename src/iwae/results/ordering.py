"""Whether the bounds of a run are in the order that mathematics asks for."""

import logging
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from iwae.evaluation.diagnostics import ordering_violations
from iwae.results.reading import Known, bounds_of, known_bounds
from iwae.results.schema import Record
from iwae.results.store import Arrays

log = logging.getLogger(__name__)


def check_ordering(run: Path, record: Record, arrays: Arrays) -> dict[str, list[str]]:
    """Whether L_1 <= L_50 <= L_5000 <= AIS, for this new record and the run's older ones.

    Only bounds on examples that two of them share are compared, and only of the same models.
    The shorter of two annealing runs is no part of the order: it may be looser than 5,000 samples.

    Returns:
        `checked`, the names of the bounds compared, and `violations` in words, which are also
        logged as warnings.
    """
    older = known_bounds(run, split=record.split, weights=record.weights, pruned=record.pruned)
    known = {one.estimator: one for one in older if one.record.digests == record.digests}
    known |= {one.estimator: one for one in bounds_of(record, arrays)}
    ordered = _in_order(known)
    checked, violations = set(), []
    for low, high in combinations(ordered, 2):
        _, mine, theirs = np.intersect1d(low.places, high.places, return_indices=True)
        if len(mine) < 2:
            continue
        checked |= {low.estimator, high.estimator}
        for replicate, (a, b) in enumerate(zip(low.values, high.values, strict=True)):
            found = ordering_violations({low.estimator: a[mine], high.estimator: b[theirs]})
            name = f"replicate {replicate}: " if len(low.values) > 1 else ""
            violations += [name + words for words in found]
    for words in violations:
        log.warning("THE BOUNDS ARE NOT IN ORDER: %s", words)
    return {
        "checked": [one.estimator for one in ordered if one.estimator in checked],
        "violations": violations,
    }


def _in_order(known: Mapping[str, Known]) -> list[Known]:
    """Loosest first, with only the longest of the annealing runs."""
    ordered = sorted(known.values(), key=lambda one: one.rank)
    samples = [one for one in ordered if one.rank[0] == 0]
    return samples + [one for one in ordered if one.rank[0] == 1][-1:]

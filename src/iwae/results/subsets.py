"""Which examples of a split are measured, if not all: seeded, and stratified by a known bound."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from iwae.data import choose
from iwae.data.sampling import shuffled
from iwae.results.reading import known_bounds, read_records, report_damage
from iwae.results.store import read_arrays

STRATA = 10
"""Groups of equally many examples, by their bounds, that a subset has its share of."""


def subset_places(
    run: Path,
    split: str,
    count: int,
    total: int,
    *,
    seed: int,
    weights: str,
    pruned: bool,
    digests: Sequence[str] | None,
) -> tuple[Int[np.ndarray, " m"], str | None]:
    """Places of a seeded random subset of a split, and the bound that it was stratified by.

    Those of a record of the run with such a subset, so that all of its numbers are of the same
    examples. Otherwise stratified by L_k of the largest k, if a record has that of all examples of
    the split and of these models; never by what is going to be measured.

    Args:
        total: examples of the split.
        digests: of the models; None if some are missing.
    """
    for path, record in read_records(run):
        subset = record.subset
        if record.split == split and subset and (subset.examples, subset.seed) == (count, seed):
            arrays = read_arrays(path, report_damage, ("index",))
            if arrays is not None and arrays["index"].max() < total:
                return arrays["index"], subset.stratified_by
    known = [
        one
        for one in known_bounds(run, split=split, weights=weights, pruned=pruned)
        if one.rank[0] == 0 and one.record.subset is None and one.record.digests == digests
    ]
    if not known:
        return choose(total, count, seed=seed), None
    return stratified(known[-1].values.mean(axis=0), count, seed), known[-1].estimator


def stratified(values: Float[np.ndarray, " n"], count: int, seed: int) -> Int[np.ndarray, " m"]:
    """Places of a subset with its share of each tenth of the examples, in order of their values.

    In each tenth those come first that `choose` would take first, so that the subsets of different
    models have most of their examples in common. Every example is as likely, as far as whole
    numbers of examples allow.
    """
    n = len(values)
    shares = np.round(np.linspace(0, count, min(STRATA, count) + 1)).astype(int)
    ends = np.round(shares * (n / count)).astype(int)
    rank = np.argsort(shuffled(n, seed=seed))
    order = np.argsort(values, kind="stable")
    chosen = []
    for begin, end, share in zip(ends[:-1], ends[1:], np.diff(shares), strict=True):
        stratum = order[begin:end]
        chosen.append(stratum[np.argsort(rank[stratum])[:share]])
    return np.sort(np.concatenate(chosen))

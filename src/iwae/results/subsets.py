"""Seeded random subsets of a split, stratified by a known bound."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from iwae.data import choose
from iwae.data.sampling import sampling_order
from iwae.results.reading import read_bounds, read_records, warn_unreadable_record
from iwae.results.record_files import read_record_arrays
from iwae.results.schema import Document
from iwae.results.unfinished import Unfinished

STRATA = 10
"""Number of strata: groups of equal size, in order of the bound."""


def subset_facts(split: str, examples: int, seed: int, test_sha256: str) -> Document:
    """The facts that identify a subset among those of a run."""
    return {"split": split, "examples": examples, "seed": seed, "test_sha256": test_sha256}


def subset_places(
    run: Path,
    total: int,
    wanted: Document,
    *,
    weights: str,
    pruned: bool,
    digests: Sequence[str] | None,
) -> tuple[Int[np.ndarray, " m"], str | None]:
    """Indices of a seeded random subset of a split, and the bound that stratifies it.

    All numbers of a run are of the same subset: that of a stopped measurement or of a record, if
    one has such a subset of the same test set. A new subset is stratified by L_k of the largest k,
    if a record has it for all examples of the split and these models.

    Args:
        total: examples of the split.
        wanted: facts about the subset, from `subset_facts`.
        digests: of the models; None if some are missing.
    """
    known = _known_places(run, total, wanted)
    if known is not None:
        return known
    split, count, seed = wanted["split"], wanted["examples"], wanted["seed"]
    bounds = [
        one
        for one in read_bounds(run, split=split, weights=weights, pruned=pruned)
        if (one.rank[0], one.record.subset, one.record.digests) == (0, None, digests)
        and one.record.test_sha256 == wanted["test_sha256"]
    ]
    if not bounds:
        return choose(total, count, seed=seed), None
    return stratified_subset(bounds[-1].values.mean(axis=0), count, seed), bounds[-1].estimator


def _known_places(run: Path, total: int, wanted: Document) -> tuple[np.ndarray, str | None] | None:
    """The subset of a stopped measurement or of a record of the run, and its bound."""
    if (kept := Unfinished(run).kept(wanted)) is not None:
        return kept["index"], str(kept["by"][0]) or None
    for path, record in read_records(run):
        if record.subset is None:
            continue
        size = record.subset.examples, record.subset.seed
        if subset_facts(record.split, *size, record.test_sha256 or "") == wanted:
            arrays = read_record_arrays(path, warn_unreadable_record, ("index",))
            if arrays is not None and arrays["index"].max() < total:
                return arrays["index"], record.subset.stratified_by
    return None


def stratified_subset(
    values: Float[np.ndarray, " n"], count: int, seed: int
) -> Int[np.ndarray, " m"]:
    """Indices of a subset with its share of each stratum of the examples, in order of value.

    Each stratum gives the examples that `choose` would take first, so that subsets of different
    models have most examples in common. All examples are equally likely, up to rounding.
    """
    n = len(values)
    shares = np.round(np.linspace(0, count, min(STRATA, count) + 1)).astype(int)
    ends = np.round(shares * (n / count)).astype(int)
    rank = np.argsort(sampling_order(n, seed=seed))
    order = np.argsort(values, kind="stable")
    chosen = []
    for begin, end, share in zip(ends[:-1], ends[1:], np.diff(shares), strict=True):
        stratum = order[begin:end]
        chosen.append(stratum[np.argsort(rank[stratum])[:share]])
    return np.sort(np.concatenate(chosen))

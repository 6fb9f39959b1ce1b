"""Which examples of a split are measured, if not all: seeded, and stratified by a known bound."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from iwae.data import choose
from iwae.data.sampling import shuffled
from iwae.results.reading import known_bounds, read_records, report_damage
from iwae.results.schema import Document
from iwae.results.store import read_arrays
from iwae.results.unfinished import Unfinished

STRATA = 10
"""Groups of equally many examples, by their bounds, that a subset has its share of."""


def choice(split: str, examples: int, seed: int, test_sha256: str) -> Document:
    """All that tells a subset from others of a run."""
    return {"split": split, "examples": examples, "seed": seed, "test_sha256": test_sha256}


def subset_places(
    run: Path,
    total: int,
    asked: Document,
    *,
    weights: str,
    pruned: bool,
    digests: Sequence[str] | None,
) -> tuple[Int[np.ndarray, " m"], str | None]:
    """Places of a seeded random subset of a split, and the bound that it was stratified by.

    Those of a measurement that was stopped or of a record of the run with such a subset of the same
    test set, so that all of its numbers are of the same examples. Otherwise stratified by L_k of
    the largest k, if a record has that of all examples of the split and of these models.

    Args:
        total: examples of the split.
        asked: as of `choice`.
        digests: of the models; None if some are missing.
    """
    known = _known_places(run, total, asked)
    if known is not None:
        return known
    split, count, seed = asked["split"], asked["examples"], asked["seed"]
    bounds = [
        one
        for one in known_bounds(run, split=split, weights=weights, pruned=pruned)
        if (one.rank[0], one.record.subset, one.record.digests) == (0, None, digests)
        and one.record.test_sha256 == asked["test_sha256"]
    ]
    if not bounds:
        return choose(total, count, seed=seed), None
    return stratified(bounds[-1].values.mean(axis=0), count, seed), bounds[-1].estimator


def _known_places(run: Path, total: int, asked: Document) -> tuple[np.ndarray, str | None] | None:
    """The places that a stopped measurement or a record of the run has, and their bound."""
    if (kept := Unfinished(run).kept(asked)) is not None:
        return kept["index"], str(kept["by"][0]) or None
    for path, record in read_records(run):
        if record.subset is None:
            continue
        size = record.subset.examples, record.subset.seed
        if choice(record.split, *size, record.test_sha256 or "") == asked:
            arrays = read_arrays(path, report_damage, ("index",))
            if arrays is not None and arrays["index"].max() < total:
                return arrays["index"], record.subset.stratified_by
    return None


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

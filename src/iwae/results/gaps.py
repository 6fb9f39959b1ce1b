"""Gaps between bounds from both sides that the records of a run have."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iwae.evaluation.sandwich import ratio_tail
from iwae.results.reading import read_records, report_damage
from iwae.results.records import Subject, model_sha256
from iwae.results.schema import (
    MIXED,
    Document,
    Method,
    Part,
    Record,
    Samples,
    Settings,
    Sides,
    Simulated,
)
from iwae.results.store import read_arrays

_SIDES = ("lower", "upper", "gap", *MIXED)
_VALUES = ("lower", "upper", "mixed_upper", "ratio")


class KnownGap(NamedTuple):
    """Upper minus lower bound of each example, nats, and k-hat of the ratios behind the upper one.

    `tail` is nan where it is unknown, or the upper bounds need none.
    """

    gap: Float[np.ndarray, " n"]
    tail: float


def known_gap(
    subject: Subject, number: int, annealing: Document, method: Method
) -> KnownGap | None:
    """The gaps by the same annealing of the same model, if known.

    Of several records the one with the most examples counts.

    Args:
        number: of the replicate.
        annealing: its settings, as a record has them.
        method: one that bounds log p(x) from both sides.
    """
    found = []
    digest = model_sha256(subject.run, subject.weights, number)
    how = Settings(**annealing), subject.split, subject.weights, subject.pruned
    for path, record in both_sides(subject.run, method, *how):
        if record.digests[number : number + 1] != [digest]:
            continue
        values = read_arrays(path, report_damage, ("lower", "upper"))
        if values is not None:
            own = {name: each[number] for name, each in values.items() if name in _VALUES}
            tail = ratio_tail(own["ratio"], own["lower"]) if "ratio" in own else np.nan
            upper = own.get("mixed_upper", own["upper"])
            found.append(KnownGap(upper - own["lower"], tail))
    return max(found, key=lambda known: len(known.gap), default=None)


def simulated_bounds(run: Path, record: Record, number: int) -> Simulated | None:
    """Bounds on simulated examples by the same annealing of the same model, if known.

    Those by importance samples are included if there were as many.

    Args:
        record: of bounds on real examples.
        number: of the replicate.
    """
    how = record.annealing, record.split, record.weights, record.pruned
    digest = record.digests[number : number + 1]
    made = [
        both
        for _, both in both_sides(run, Method.BIDIRECTIONAL, *how)
        if both.digests[number : number + 1] == digest
    ]
    found = max(made, key=lambda both: both.n, default=None)
    if found is None:
        return None
    part = found.models[number]
    own, sampled = record.models[number].importance, part.importance
    alike = own is not None and sampled is not None and sampled.k == own.k
    samples = Samples(k=sampled.k, **_bounds(sampled)) if alike and sampled else None
    return Simulated(n=found.n, **_bounds(part), importance=samples)


def _bounds(of: Part | Samples) -> Document:
    names = [*_SIDES, *(f"{name}_stderr" for name in _SIDES)]
    return {name: getattr(of, name) for name in names}


def tighter_gap(each: Iterable[Part | Sides]) -> str:
    """The name of the gap to quote: to the mixed upper side where all have measured it."""
    return "gap" if any(one.mixed_gap is None for one in each) else "mixed_gap"


def both_sides(
    run: Path, method: Method, annealing: Settings | None, split: str, weights: str, pruned: bool
) -> Iterator[tuple[Path, Record]]:
    """Records of a run by such annealing in both directions, of a split or of simulated examples.

    Their models may be others, trained before or after: compare the digests.
    """
    wanted = annealing, weights, pruned
    for path, record in read_records(run, (method,)):
        same = (record.annealing, record.weights, record.pruned) == wanted
        if same and record.split in ("simulated", split):
            yield path, record

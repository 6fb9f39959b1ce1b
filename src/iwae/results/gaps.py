"""Gaps between bounds from both sides that the records of a run have."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from iwae.evaluation.sandwich import ratio_tail
from iwae.results.reading import read_records, report_damage
from iwae.results.records import Subject, model_sha256
from iwae.results.schema import Document, Method, Part, Record, Samples, Settings, Simulated
from iwae.results.store import read_arrays

_SIDES = ("lower", "upper", "gap")
_VALUES = ("lower", "upper", "ratio")


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
    wanted = subject.weights, subject.pruned, Settings(**annealing)
    for path, _ in _alike(subject.run, method, wanted, subject.split, number, digest):
        values = read_arrays(path, report_damage, ("lower", "upper"))
        if values is not None:
            own = {name: each[number] for name, each in values.items() if name in _VALUES}
            tail = ratio_tail(own["ratio"], own["lower"]) if "ratio" in own else np.nan
            found.append(KnownGap(own["upper"] - own["lower"], tail))
    return max(found, key=lambda known: len(known.gap), default=None)


def simulated_bounds(run: Path, record: Record, number: int) -> Simulated | None:
    """Bounds on simulated examples by the same annealing of the same model, if known.

    Those by importance samples are included if there were as many.

    Args:
        record: of bounds on real examples.
        number: of the replicate.
    """
    wanted = record.weights, record.pruned, record.annealing
    one = record.models[number]
    of = run, Method.BIDIRECTIONAL, wanted, record.split, number, one.model_sha256
    found = max((both for _, both in _alike(*of)), key=lambda both: both.n, default=None)
    if found is None:
        return None
    part = found.models[number]
    own, sampled = one.importance, part.importance
    alike = own is not None and sampled is not None and sampled.k == own.k
    samples = Samples(k=sampled.k, **_bounds(sampled)) if alike and sampled else None
    return Simulated(n=found.n, **_bounds(part), importance=samples)


def _bounds(of: Part | Samples) -> Document:
    names = [*_SIDES, *(f"{name}_stderr" for name in _SIDES)]
    return {name: getattr(of, name) for name in names}


def _alike(
    run: Path,
    method: Method,
    wanted: tuple[str, bool, Settings | None],
    split: str,
    number: int,
    digest: str | None,
) -> Iterator[tuple[Path, Record]]:
    """Records by a method of the same model and annealing, on the same split or simulated.

    Args:
        wanted: kind of weights, whether they are pruned, and the annealing.
        number, digest: of the model among the replicates, and of its weights.
    """
    for path, record in read_records(run, (method,)):
        same = (record.weights, record.pruned, record.annealing) == wanted
        same = same and record.split in ("simulated", split)
        if same and record.digests[number : number + 1] == [digest]:
            yield path, record

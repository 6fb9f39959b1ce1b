"""Gaps between bounds from both sides that the records of a run have."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from iwae.results.measure import Replicate
from iwae.results.reading import read_records, report_damage
from iwae.results.records import model_sha256
from iwae.results.schema import Document, Method, Part, Record, Settings
from iwae.results.store import read_arrays

_SIDES = ("lower", "upper", "gap")


def known_gap(one: Replicate, annealing: Document, method: Method) -> np.ndarray | None:
    """The gaps of each example by the same annealing of the same model, `[n]` nats, if known.

    Of several records the one with the most examples counts.

    Args:
        annealing: its settings, as a record has them.
        method: one that bounds log p(x) from both sides.
    """
    gaps = []
    for path, _ in _alike(one, annealing, method):
        values = read_arrays(path, report_damage, ("lower", "upper"))
        if values is not None:
            gaps.append(values["upper"][one.number] - values["lower"][one.number])
    return max(gaps, key=len, default=None)


def simulated_bounds(one: Replicate, annealing: Document, k: int) -> Document | None:
    """Bounds on simulated examples by the same annealing of the same model, if known.

    Those by importance samples are included if there were as many.

    Args:
        annealing: its settings, as a record has them.
        k: importance samples.
    """
    found = [record for _, record in _alike(one, annealing, Method.BIDIRECTIONAL)]
    if not found:
        return None
    record = max(found, key=lambda record: record.n)
    part: Part = record.models[one.number]
    both = {"n": record.n, **_bounds(part)}
    sampled = part.importance
    if sampled is not None and sampled.k == k:
        both["importance"] = {"k": k, **_bounds(sampled)}
    return both


def _bounds(of: Part | object) -> Document:
    names = [*_SIDES, *(f"{name}_stderr" for name in _SIDES)]
    return {name: getattr(of, name) for name in names}


def _alike(one: Replicate, annealing: Document, method: Method) -> Iterator[tuple[Path, Record]]:
    """Records by a method of the same model and annealing, on the same split or simulated."""
    subject, number = one.subject, one.number
    how = Settings(**annealing), subject.split, subject.weights, subject.pruned
    mine = model_sha256(subject.run, subject.weights, number)
    for path, record in both_sides(subject.run, method, *how):
        if record.digests[number : number + 1] == [mine]:
            yield path, record


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

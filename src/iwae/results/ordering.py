"""The bounds known of a run's models, example by example, and whether they are in order."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int

from iwae.evaluation.diagnostics import ordering_violations
from iwae.results.text import each_model

log = logging.getLogger(__name__)


class Known(NamedTuple):
    """One lower bound on the log-likelihoods of the models of a run.

    Attributes:
        estimator: its name, such as "L_5000" or "AIS_1000".
        rank: where it belongs: a bound of higher rank is the tighter one.
        short: whether it is the tenth of an annealing run that the verdict needs.
        places: `[n]` of the examples in the split.
        values: `[R, n]` float64, nats.
        record: the record it is from.
    """

    estimator: str
    rank: tuple[int, int]
    short: bool
    places: Int[np.ndarray, " n"]
    values: Float[np.ndarray, "R n"]
    record: Mapping[str, Any]


Damaged = Callable[[str], None]
"""Is told, in words, of what is no record or has no values; it may raise."""


def left_out(words: str) -> None:
    """What is damaged is left out, and said so."""
    log.warning("%s: it is left out", words)


def known_bounds(
    run: Path, *, split: str, weights: str, pruned: bool, damaged: Damaged = left_out
) -> list[Known]:
    """All bounds in the records of a run for one split and kind of weights, loosest first."""
    found: list[Known] = []
    for path, record in read_records(run, _BOUNDING, damaged):
        if (record["split"], record["weights"], record["pruned"]) == (split, weights, pruned):
            arrays = read_values(path, damaged)
            try:
                found += [] if arrays is None else _bounds(record, arrays)
            except (LookupError, ValueError) as error:
                damaged(f"{path} is no record of its values ({error})")
    return sorted(found, key=lambda one: one.rank)


_BOUNDING = ("importance sampling", "annealed importance sampling")
"""The methods whose records hold bounds on log-likelihoods of examples."""


def read_records(
    run: Path, methods: Sequence[str], damaged: Damaged = left_out
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The records of a run by some methods, by name."""
    for path in sorted((Path(run) / "evaluations").glob("[!.]*.json")):
        try:
            record = json.loads(path.read_text())
            if record["method"] in methods:
                record["split"], record["weights"], record["pruned"]
                yield path, record
        except (OSError, ValueError, TypeError, KeyError) as error:
            damaged(f"{path} is no record ({error!r})")


def read_values(path: Path, damaged: Damaged = left_out) -> dict[str, np.ndarray] | None:
    """The values beside a record; None if they are not there or damaged."""
    values = path.with_suffix(".npz")
    try:
        with values.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        damaged(f"{values} cannot be read ({error})")
        return None


def _bounds(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Known]:
    """The bounds of one record.

    Raises:
        LookupError: if the values lack what all have.
        ValueError: if the values are not of so many examples.
    """
    index, values = arrays["index"], arrays["log_likelihood"]
    if values.ndim != 3 or values.shape[2] != len(index):
        raise ValueError(f"values {values.shape} of {len(index)} examples")
    for column, prefix, rank in (("k", "L", 0), ("temperatures", "AIS", 1)):
        for i, number in enumerate(arrays.get(column, ())):
            yield Known(
                f"{prefix}_{number}",
                (rank, int(number)),
                rank == 1 and i == 0,
                index,
                values[:, i],
                record,
            )


def models_of(record: Mapping[str, Any]) -> list[str | None]:
    """Digests of the models that a record is about, one for each replicate."""
    return [one.get("model_sha256") for one in each_model(record)]


def check_ordering(
    run: Path, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, list[str]]:
    """Whether L_1 <= L_50 <= L_5000 <= AIS, for this new record and the run's older ones.

    Only bounds on examples that two of them share are compared, and only of the same models.
    The shorter of two annealing runs is no part of the order: it may be looser than 5,000 samples.

    Returns:
        `checked`, the names of the bounds compared, and `violations` in words, which are also
        logged as warnings.
    """
    older = known_bounds(
        run, split=record["split"], weights=record["weights"], pruned=record["pruned"]
    )
    models = models_of(record)
    known = {one.estimator: one for one in older if models_of(one.record) == models}
    known |= {one.estimator: one for one in _bounds(record, arrays)}
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

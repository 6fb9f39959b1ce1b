"""The one reader of records: the estimates in them, and the values of each example beside them.

A record that is damaged, or lacks what every record of its method has, is reported and left out.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Int

log = logging.getLogger(__name__)


class Method(StrEnum):
    """The method of a measurement, as records name it."""

    IMPORTANCE = "importance sampling"
    ANNEALED = "annealed importance sampling"
    BIDIRECTIONAL = "bidirectional Monte Carlo"
    CURVE = "rate-distortion"
    INFORMATION = "information"
    CLASSIFICATION = "classification"
    GRADIENTS = "gradients"


BUDGETS = {"L": ("by_k", "k"), "AIS": ("by_temperatures", "temperatures")}
"""Name of a bound -> the record's list of its estimates, and the column of their budgets.

A bound that comes later here is the tighter one, and of two by one name that of the larger budget.
"""

_ALL = ("split", "weights", "pruned")

_NEEDED = {
    Method.IMPORTANCE: ("n", "subset", "test_sha256", "by_k"),
    Method.ANNEALED: ("n", "subset", "test_sha256", "by_temperatures", "annealing", "verdict"),
    Method.BIDIRECTIONAL: ("n", "annealing", "gap", "gap_stderr"),
    Method.CLASSIFICATION: ("n", "k", "accuracy", "accuracy_stderr"),
}
"""Keys of a record, or of each replicate's part of it, without which it is damaged."""


def each_model(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The part of a record about each model: the record itself if it is about one."""
    return record.get("replicates", [record])


class Estimate(NamedTuple):
    """The mean of one bound on log p(x) over examples, and over replicates if it is of several.

    Attributes:
        name: such as "L_5000" or "AIS_500".
        rank: an estimate of higher rank is tighter.
        mean: nats; None if it is not finite.
        stderr: of the mean, from the choice of examples.
        spread: standard deviation between replicates; None with one of them.
        row: the rest of what the record says of this budget.
        record: the record, or the part of it about one replicate.
    """

    name: str
    rank: tuple[int, int]
    mean: float | None
    stderr: float | None
    spread: float | None
    row: Mapping[str, Any]
    record: Mapping[str, Any]


def estimates_of(record: Mapping[str, Any]) -> Iterator[Estimate]:
    """The estimates in a record, or in the part of it about one replicate."""
    for rank, (prefix, (rows, budget)) in enumerate(BUDGETS.items()):
        for row in record.get(rows, ()):
            means = row["log_likelihood"], row["stderr"], row.get("between_replicates_sd")
            name, place = f"{prefix}_{row[budget]}", (rank, row[budget])
            yield Estimate(name, place, *means, row, record)


def widest(estimates: Iterable[Estimate]) -> dict[str, Estimate]:
    """By name, loosest first; of two by one name the one of most examples, or the later one."""
    chosen: dict[str, Estimate] = {}
    for one in estimates:
        if one.name not in chosen or one.record["n"] >= chosen[one.name].record["n"]:
            chosen[one.name] = one
    return dict(sorted(chosen.items(), key=lambda item: item[1].rank))


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


def report_damage(words: str) -> None:
    """Warn that a damaged record is omitted."""
    log.warning("%s: it is left out", words)


def known_bounds(
    run: Path, *, split: str, weights: str, pruned: bool, damaged: Damaged = report_damage
) -> list[Known]:
    """All bounds in the records of a run for one split and kind of weights, loosest first."""
    found: list[Known] = []
    where = {"split": split, "weights": weights, "pruned": pruned}
    for path, record in read_records(run, _BOUNDING, damaged):
        if all(record[name] == value for name, value in where.items()):
            arrays = read_values(path, damaged)
            try:
                found += [] if arrays is None else bounds_of(record, arrays)
            except (LookupError, ValueError) as error:
                damaged(f"{path} is no record of its values ({error})")
    return sorted(found, key=lambda one: one.rank)


_BOUNDING = (Method.IMPORTANCE, Method.ANNEALED)
"""The methods whose records hold bounds on log-likelihoods of examples."""


def read_records(
    run: Path, methods: Sequence[str], damaged: Damaged = report_damage
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The records of a run by some methods, by name."""
    for path in sorted((Path(run) / "evaluations").glob("[!.]*.json")):
        try:
            record = json.loads(path.read_text())
            if record["method"] in methods:
                _check(record)
                yield path, record
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            lacking = isinstance(error, KeyError) and error.args[0]
            damaged(f"{path} is no record ({f'no {lacking}' if lacking else repr(error)})")


def _check(record: Mapping[str, Any]) -> None:
    """Raise KeyError unless a record says what all records by its method say."""
    for name in _ALL:
        record[name]
    for name in _NEEDED.get(record["method"], ()):
        for part in each_model(record):
            if name not in record:
                part[name]


def read_values(path: Path, damaged: Damaged = report_damage) -> dict[str, np.ndarray] | None:
    """The values beside a record; None if they are not there or damaged."""
    values = path.with_suffix(".npz")
    try:
        with values.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        damaged(f"{values} cannot be read ({error})")
        return None


def bounds_of(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Known]:
    """The bounds of one record.

    Raises:
        LookupError: if the values lack what all have.
        ValueError: if the values are not of so many examples.
    """
    index, values = arrays["index"], arrays["log_likelihood"]
    if values.ndim != 3 or values.shape[2] != len(index):
        raise ValueError(f"values {values.shape} of {len(index)} examples")
    for rank, (prefix, (_, budget)) in enumerate(BUDGETS.items()):
        for i, number in enumerate(arrays.get(budget, ())):
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

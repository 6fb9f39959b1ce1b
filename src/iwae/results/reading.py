"""The one reader of records: the estimates in them, and the values of each example beside them.

A record that is damaged, or lacks what every record of its method has, is reported and omitted.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from iwae.errors import UserError
from iwae.results.schema import (
    QUANTITIES,
    REMEDY,
    Fields,
    Mean,
    Method,
    Number,
    Part,
    Record,
    Whole,
    parse,
)
from iwae.results.store import Arrays, Damaged, place, read_arrays, read_documents
from iwae.results.text import estimator_name

log = logging.getLogger(__name__)

BUDGETS = {"L": ("by_k", "k"), "AIS": ("by_temperatures", "temperatures")}
"""Name of a bound -> the record's list of its estimates, and the column of their budgets.

A bound that comes later here is the tighter one, and of two by one name that of the larger budget.
"""


class Estimate(NamedTuple):
    """The mean of one quantity over examples, and over replicates if it is of several.

    Attributes:
        name: such as "L_5000", "AIS_500" or "accuracy".
        rank: of a bound on log p(x); a bound of higher rank is tighter. The second is its budget.
        mean: nats, unless it is a share; None if it is not finite.
        stderr: of the mean, from the choice of examples.
        spread: standard deviation between replicates; None with one of them.
        row: what else the record says of it.
        record: the record that it is from.
    """

    name: str
    rank: tuple[int, int]
    mean: Number
    stderr: Number
    spread: Number
    row: Any
    record: Record

    @property
    def n(self) -> int:
        """The number of examples behind it."""
        return self.record.n

    @property
    def is_of_subset(self) -> bool:
        """Whether it is known of a subset of the split alone."""
        return self.record.subset is not None and self._whole is None

    @property
    def quoted(self) -> Mean:
        """Mean and standard error for all examples where they are known, else for the subset's."""
        return Mean(self.mean, self.stderr) if self._whole is None else self._whole.mean()

    @property
    def quoted_bits(self) -> Mean | None:
        """`quoted` in bits per dimension, where the data are levels."""
        if getattr(self.row, "bits_per_dimension", None) is None:
            return None
        own, mean = self.row.mean("bits_per_dimension"), self.quoted
        if self._whole is None or None in (self.mean, *mean):
            return own
        unit = own.mean / self.mean  # bits of a nat, and negative
        return Mean(unit * mean.mean, -unit * mean.stderr)

    @property
    def examples(self) -> str:
        """The examples that `quoted` is of, in words."""
        if self._whole is not None:
            return f"{self._whole.n:,}, from {self.n:,} and {self._whole.by} of all"
        return f"{self.n:,}" + (", a random subset" if self.record.subset else "")

    @property
    def _whole(self) -> Whole | None:
        return getattr(self.row, "whole", None)

    @property
    def is_bound(self) -> bool:
        """Whether it is a bound on log p(x)."""
        return self.rank[0] >= 0


def estimates_of(record: Record, part: Part | None = None) -> Iterator[Estimate]:
    """The estimates in a record, or in the part of it about one model."""
    of = part or record
    for rank, (prefix, (rows, budget)) in enumerate(BUDGETS.items()):
        for row in getattr(of, rows):
            name, place = f"{prefix}_{getattr(row, budget)}", (rank, getattr(row, budget))
            mean, stderr = row.mean()
            yield Estimate(name, place, mean, stderr, row.between_replicates_sd, row, record)
    for name, spent, fields, field in _other_means(record, of):
        mean, stderr = fields.mean(field)
        yield Estimate(name, (-1, spent), mean, stderr, None, fields, record)


def _other_means(record: Record, of: Part) -> Iterator[tuple[str, int, Fields, str]]:
    """Names, budgets and places of the means that are no bounds at several budgets."""
    for name in QUANTITIES.get(record.method, ()):
        if name in of.model_fields_set:
            yield name, 0, of, name
        if of.importance is not None and name in of.importance.model_fields_set:
            yield f"importance_{name}", of.importance.k, of.importance, name
    for one in of.calibration:
        for interval in one.coverage:
            name = f"coverage of {interval.level:.0%} by {one.of}, layer {one.layer}"
            yield name, of.k or 0, interval, "coverage"
    for row in record.rows:
        for group, signal in row.groups.items():
            yield f"signal/noise of {group}, {estimator_name(row)}", row.k, signal, "snr"


def widest(estimates: Iterable[Estimate]) -> dict[str, Estimate]:
    """By name, loosest first; of two by one name the one of most examples, or the later one."""
    chosen: dict[str, Estimate] = {}
    for one in estimates:
        if one.name not in chosen or one.n >= chosen[one.name].n:
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
    record: Record


def report_damage(words: str) -> None:
    """Warn that a damaged record is omitted."""
    log.warning("%s: it is omitted; %s", words, REMEDY)


def known_bounds(
    run: Path, *, split: str, weights: str, pruned: bool, damaged: Damaged = report_damage
) -> list[Known]:
    """All bounds in the records of a run for one split and kind of weights, loosest first."""
    found = [
        one
        for path, record in read_records(run, BOUNDING, damaged)
        if (record.split, record.weights, record.pruned) == (split, weights, pruned)
        for one in bounds_in(path, record, damaged)
    ]
    return sorted(found, key=lambda one: one.rank)


def bounds_in(path: Path, record: Record, damaged: Damaged = report_damage) -> list[Known]:
    """The bounds of the record at `path`, with its values; none if these are damaged."""
    arrays = read_arrays(path, damaged, ("index", "log_likelihood"))
    try:
        return [] if arrays is None else list(bounds_of(record, arrays))
    except ValueError as error:
        damaged(f"{place(path)} is no record of its values ({error})")
        return []


BOUNDING = (Method.IMPORTANCE, Method.ANNEALED)
"""The methods whose records hold bounds on log-likelihoods of examples."""


def read_records(
    run: Path, methods: Sequence[str] = tuple(Method), damaged: Damaged = report_damage
) -> Iterator[tuple[Path, Record]]:
    """The records of a run by some methods, by name; those that are packed too.

    Args:
        run: its folder.
        methods: names as in `Method`; by default all.
        damaged: is told of what is no record; by default it warns, and the record is omitted.
    """
    for path, document in read_documents(Path(run) / "evaluations", damaged).items():
        if isinstance(document, Mapping) and document.get("method", methods[0]) not in methods:
            continue
        try:
            record = parse(document)
        except UserError as error:
            damaged(f"{place(path)} is no record ({error})")
        else:
            yield path, record


def bounds_of(record: Record, arrays: Arrays) -> Iterator[Known]:
    """The bounds of one record.

    Raises:
        ValueError: if the values are not of so many examples, or of other budgets.
    """
    index, values = arrays["index"], arrays["log_likelihood"]
    if values.ndim != 3 or values.shape[2] != len(index):
        raise ValueError(f"values {values.shape} of {len(index)} examples")
    for rank, (prefix, (_, budget)) in enumerate(BUDGETS.items()):
        numbers = arrays.get(budget)
        if numbers is None:
            continue
        if numbers.shape != values.shape[1:2] or numbers.dtype.kind not in "iu":
            raise ValueError(f"values {values.shape} by {budget} of {numbers.shape}")
        for i, number in enumerate(numbers):
            yield Known(
                f"{prefix}_{number}",
                (rank, int(number)),
                rank == 1 and i == 0,
                index,
                values[:, i],
                record,
            )

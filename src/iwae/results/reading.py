"""The one reader of records: their estimates, and the per-example values beside them.

Records that are damaged, or lack a field that their method requires, are reported and omitted.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from iwae.errors import UserError
from iwae.results import schema
from iwae.results.formatting import format_estimator
from iwae.results.record_files import (
    Arrays,
    Damaged,
    read_documents,
    read_record_arrays,
    record_place,
)
from iwae.results.schema import Mean, Method, Number, Part, Record, Settings, Whole

log = logging.getLogger(__name__)

BUDGETS = {"L": ("by_k", "k"), "AIS": ("by_temperatures", "temperatures")}
"""Name of a bound -> the record's field with its rows, and their column of budgets.

A later bound is tighter, and so is a larger budget of the same bound.
"""


class Estimate(NamedTuple):
    """The mean of one quantity over examples and, of several replicates, over these.

    Attributes:
        name: such as "L_5000", "AIS_500" or "accuracy".
        rank: place among the bounds, and budget. A bound of higher rank is tighter; the place of
            other quantities is -1.
        mean: nats, unless it is a share; None if it is not finite.
        stderr: of the mean, from the choice of examples.
        spread: standard deviation between replicates; None for a single one.
        row: the part of the record that it is from.
        record: the record.
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
        """The number of examples."""
        return self.record.n

    @property
    def is_of_subset(self) -> bool:
        """Whether it is known for a subset of the split only."""
        return self.record.subset is not None and self._whole is None

    @property
    def quoted(self) -> Mean:
        """Mean and standard error over all examples, where these are known, or over the subset."""
        return Mean(self.mean, self.stderr) if self._whole is None else self._whole.mean()

    @property
    def quoted_bits(self) -> Mean | None:
        """`quoted` in bits per dimension, for quantised data."""
        if getattr(self.row, "bits_per_dimension", None) is None:
            return None
        own, mean = self.row.mean("bits_per_dimension"), self.quoted
        if self._whole is None or None in (self.mean, *mean):
            return own
        unit = own.mean / self.mean  # bits per nat, negative
        return Mean(unit * mean.mean, -unit * mean.stderr)

    @property
    def examples(self) -> str:
        """The examples behind `quoted`, in words."""
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


def read_estimates(record: Record, part: Part | None = None) -> Iterator[Estimate]:
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


def _other_means(record: Record, of: Part) -> Iterator[tuple[str, int, schema.Fields, str]]:
    """Name, budget, part and field of each mean that is not a bound at several budgets."""
    for name in schema.QUANTITIES.get(record.method, ()):
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
            yield f"signal/noise of {group}, {format_estimator(row)}", row.k, signal, "snr"


def read_widest_estimates(estimates: Iterable[Estimate]) -> dict[str, Estimate]:
    """Estimates by name, loosest first; of several, the last of those with the most examples."""
    chosen: dict[str, Estimate] = {}
    for one in estimates:
        if one.name not in chosen or one.n >= chosen[one.name].n:
            chosen[one.name] = one
    return dict(sorted(chosen.items(), key=lambda item: item[1].rank))


class Known(NamedTuple):
    """One lower bound on the log-likelihoods of the models of a run.

    Attributes:
        estimator: its name, such as "L_5000" or "AIS_1000".
        rank: as of `Estimate`: a bound of higher rank is tighter.
        short: whether it is the short annealing run, by a tenth of the temperatures.
        places: `[n]` indices of the examples in the split.
        values: `[R, n]` float64, nats.
        record: the record that it is from.
    """

    estimator: str
    rank: tuple[int, int]
    short: bool
    places: Int[np.ndarray, " n"]
    values: Float[np.ndarray, "R n"]
    record: Record


def warn_unreadable_record(words: str) -> None:
    """Warn that a damaged record is omitted."""
    log.warning("%s: it is omitted; %s", words, schema.REMEDY)


def read_bounds(
    run: Path, *, split: str, weights: str, pruned: bool, damaged: Damaged = warn_unreadable_record
) -> list[Known]:
    """All bounds in the records of a run for one split and kind of weights, loosest first."""
    found = [
        one
        for path, record in read_records(run, BOUNDING, damaged)
        if (record.split, record.weights, record.pruned) == (split, weights, pruned)
        for one in read_record_bounds(path, record, damaged)
    ]
    return sorted(found, key=lambda one: one.rank)


def read_record_bounds(
    path: Path, record: Record, damaged: Damaged = warn_unreadable_record
) -> list[Known]:
    """The bounds of the record at `path`; none if its values are damaged."""
    arrays = read_record_arrays(path, damaged, ("index", "log_likelihood"))
    try:
        return [] if arrays is None else list(bounds_from_record(record, arrays))
    except ValueError as error:
        damaged(f"{record_place(path)} is not the record of its values ({error})")
        return []


BOUNDING = (Method.IMPORTANCE, Method.ANNEALED)
"""Methods whose records hold per-example bounds on log-likelihoods."""


def read_records(
    run: Path, methods: Sequence[str] = tuple(Method), damaged: Damaged = warn_unreadable_record
) -> Iterator[tuple[Path, Record]]:
    """The records of a run, packed or not, sorted by name.

    Args:
        run: folder of the run.
        methods: names as in `Method`; by default all.
        damaged: called with a description of a damaged record, which is omitted; warns by default.
    """
    for path, document in read_documents(Path(run) / "evaluations", damaged).items():
        if isinstance(document, Mapping) and document.get("method", methods[0]) not in methods:
            continue
        try:
            record = schema.parse(document)
        except UserError as error:
            damaged(f"{record_place(path)} cannot be read as a record ({error})")
        else:
            yield path, record


def bounds_from_record(record: Record, arrays: Arrays) -> Iterator[Known]:
    """The bounds of one record, given its values.

    Raises:
        ValueError: if the values do not fit the examples or the budgets.
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
            name, short = f"{prefix}_{number}", rank == 1 and i == 0
            yield Known(name, (rank, int(number)), short, index, values[:, i], record)


def read_two_sided(
    run: Path, method: Method, annealing: Settings | None, split: str, weights: str, pruned: bool
) -> Iterator[tuple[Path, Record]]:
    """Records of bounds from both sides with some settings, on a split or on simulated examples.

    They may be of earlier or later models of the run: compare the digests.
    """
    wanted = annealing, weights, pruned
    for path, record in read_records(run, (method,)):
        same = (record.annealing, record.weights, record.pruned) == wanted
        if same and record.split in ("simulated", split):
            yield path, record

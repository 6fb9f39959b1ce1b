"""Standardise columns: the units of a model, and their conversion to those of the data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from iwae.data.column_statistics import column_moments
from iwae.data.kinds import Kind, column_kinds
from iwae.data.rows import Examples
from iwae.data.sampling import sample
from iwae.errors import UserError

SCALED = {"gaussian", "gaussian-shared"}
"""Kinds of data to standardise: real values whose scale the model learns."""

NOISE = 2e-13
"""The largest relative difference of values that is due to rounding in earlier arithmetic."""

WINDOW = 20
"""The resolution of a column is judged in runs of one in so many of its distinct values."""

FEWEST = 100
"""A run loses its resolution if float32 has fewer numbers than these between its ends."""

NEGLIGIBLE = 0.02
"""The share of distinct values that float32 may merge without a remark."""

SMALLEST = 1e-150
"""Smallest standard deviation of a column: the squares of smaller values lose digits in float64."""


class Scaling(NamedTuple):
    """The map between the values x of the data and the values (x - shift) / scale of a model.

    It is applied in float64, before any rounding to float32, so that a large mean costs no digits.

    Attributes:
        shift, scale: `[d]`, float64; 0 and 1 for columns that are not standardised.
    """

    shift: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]

    def inwards(
        self, rows: Shaped[np.ndarray, "n d"], where: str = "the data"
    ) -> Float[np.ndarray, "n d"]:
        """Rows in the units of the model, float32, from rows in those of the data.

        Args:
            where: name of the rows in messages.

        Raises:
            UserError: for a value beyond float32.
        """
        with np.errstate(over="ignore"):
            inner = ((rows - self.shift) / self.scale).astype(np.float32)
        if np.isinf(inner).any():
            row, column = np.argwhere(np.isinf(inner))[0]
            raise UserError(
                f"{where}: the value {rows[row, column]:g} in row {row + 1}, column {column + 1} "
                "is too far from the training rows for float32: check it"
            )
        return inner

    def outwards(self, rows: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """Rows in the units of the data, float64, from rows in those of the model."""
        return rows * self.scale + self.shift

    @property
    def log_scale(self) -> Float[np.ndarray, " d"]:
        """log |d data / d model| of each value, to subtract from the model's densities."""
        return np.log(self.scale)

    def as_json(self) -> dict[str, list[float]]:
        """The scaling as lists, the input of `scaling_from`."""
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist()}


def scaling_from(values: Any, d: int) -> Scaling:
    """The inverse of `Scaling.as_json`.

    Raises:
        UserError: if these are not d finite shifts and positive scales.
    """
    try:
        found = Scaling(*(np.asarray(values[name], np.float64) for name in Scaling._fields))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"the scaling of the columns cannot be read: {error!r}") from error
    if any(one.shape != (d,) or not np.isfinite(one).all() for one in found):
        raise UserError(f"the scaling of the columns must be finite numbers for {d} columns")
    if not (found.scale > 0).all():
        raise UserError("a scale of the columns is not positive")
    return found


def scaled_columns(kind: Kind, d: int) -> np.ndarray:
    """Which columns of this kind are standardised, bool `[d]`."""
    return np.array([one.name in SCALED for one in column_kinds(kind) or (kind,) * d])


def fit_scaling(
    rows: Examples, chosen: np.ndarray, where: str, names: Sequence[str] = ()
) -> Scaling:
    """Mean and standard deviation of the observed values of the chosen columns.

    A constant column is centred and not scaled.

    Args:
        rows: `[n, d]`, training rows only.
        chosen: bool `[d]`; the other columns keep their values.
        where: name of the data in messages.
        names: names of the columns; empty if they have none.

    Raises:
        UserError: for a column whose squares overflow in float64, or lose digits.
    """
    columns = np.flatnonzero(chosen)
    shift, scale = np.zeros(len(chosen)), np.ones(len(chosen))
    mean, spread, varies = column_moments(rows, columns)
    for j, sd, several in zip(columns, spread, varies, strict=True):
        if not np.isfinite(sd) or (several and sd < SMALLEST):
            size, way = ("small", "multiply") if np.isfinite(sd) else ("large", "divide")
            raise UserError(
                f"{where}, column {j + 1}{_in_brackets(names, int(j))}: its values are too {size} "
                f"to be standardised: {way} them by a constant, or drop the column"
            )
    shift[columns], scale[columns] = mean, np.where(varies, spread, 1.0)
    return Scaling(shift, scale)


def refuse_coarse_scaling(
    rows: Examples, scaling: Scaling | None, names: Sequence[str], where: str
) -> list[str]:
    """Refuse columns whose values float32 rounds too coarsely in the units of the model.

    The rounding is too coarse if float32 merges more than `NEGLIGIBLE` of the distinct values of a
    column within runs that lose their resolution (`WINDOW`, `FEWEST`): a cluster has collapsed.

    Args:
        rows: `[n, d]`, in the units of the data; of many rows, a fixed sample is judged.
        scaling: the scaling of the columns; None if none is standardised.
        names: names of the columns; empty if they have none.
        where: name of the rows in messages.

    Returns:
        A line for each other column with as many merged values, all of which are close neighbours.

    Raises:
        UserError: names the first column that is refused, and the remedy.
    """
    remarks: list[str] = []
    if scaling is None and rows.dtype.itemsize <= np.dtype(np.float32).itemsize:
        return remarks
    for j, column in enumerate(sample(rows)[:].T):
        shift, scale = (0.0, 1.0) if scaling is None else (one[j] for one in scaling)
        distinct = _distinct(column)
        merged, lost = _merged(distinct, shift, scale)
        if merged <= NEGLIGIBLE * len(distinct):
            continue
        what = (
            f"{where}, column {j + 1}{_in_brackets(names, j)}: float32 merges {merged:,} of "
            f"{len(distinct):,} distinct values"
        )
        if lost > NEGLIGIBLE * len(distinct):
            remedy = _APART if scale != 1 else "standardise the column, subtract a constant"
            raise UserError(f"{what}: {remedy}, or drop it; round it if they differ by noise")
        remarks.append(f"{what}, which hardly differ beside their neighbours")
    return remarks


_APART = "remove extreme values, take its logarithm or its differences, split it in two"
"""Remedies for a column that spans orders of magnitude, or has clusters far apart."""


def _distinct(column: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """The observed values in ascending order, without repetitions up to rounding noise."""
    values = np.sort(column[~np.isnan(column)]).astype(np.float64)
    if not values.size:
        return values
    size = np.maximum(abs(values[1:]), abs(values[:-1]))
    with np.errstate(over="ignore"):
        return values[np.append(True, np.diff(values) > NOISE * size)]


def _merged(distinct: Float[np.ndarray, " m"], shift: float, scale: float) -> tuple[int, int]:
    """The number of values that float32 merges with the one before, in all and in coarse runs."""
    with np.errstate(over="ignore", invalid="ignore"):  # too far for float32 is refused later
        single = ((distinct - shift) / scale).astype(np.float32)
    merged = single[1:] == single[:-1]
    if merged.sum() <= NEGLIGIBLE * len(distinct):
        return int(merged.sum()), 0
    length = max(1, len(distinct) // WINDOW)
    ranks = _ranks(single)
    coarse = np.append(0, np.cumsum(ranks[length:] - ranks[:-length] < FEWEST))
    after = np.arange(1, len(distinct))  # a pair is in the runs that begin in `length` places
    runs = coarse[np.minimum(after, len(coarse) - 1)] - coarse[np.maximum(after - length, 0)]
    return int(merged.sum()), int((merged & (runs > 0)).sum())


def _ranks(single: Float[np.ndarray, " m"]) -> np.ndarray:
    """The rank of each number among all numbers of float32, in ascending order from 0 for 0."""
    bits = single.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _in_brackets(names: Sequence[str], j: int) -> str:
    """The name of a column in brackets, if columns have names."""
    return f" ({names[j]!r})" if names else ""

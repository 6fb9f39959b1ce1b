"""The meaning of the numbers in a user's arrays, and rows of the dtype that goes with it.

The rules apply to all arrays of a file together, and the identity states the rule that was used:
only 0 and 1 is binary; uint8 is grey 0..255, and colour is levels; numbers within [0, 1] are grey;
everything else is real. Whole numbers 0..255 of another dtype are ambiguous, and the user must say
what they are. No rule applies if the user declares levels, counts, categories or a table. Missing
values are ignored.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from iwae.data.grey_levels import are_exact_grey_levels, grey_to_bytes
from iwae.data.kinds import KINDS, Kind
from iwae.data.rows import Examples, convert_rows, flat_rows, row_blocks
from iwae.data.splits import BYTES
from iwae.errors import UserError

ROUNDING = 1e-6
"""Values outside [0, 1] by less are probably rounded grey levels."""


def meaning_of(where: str, splits: Mapping[str, Examples], kind: Kind | None) -> tuple[str, str]:
    """The meaning of the numbers, and the rule that decides it from all splits together."""
    if kind is not None and KINDS[kind.name].as_stored:
        # These words are in checkpoints, which a resumed run compares.
        return "stored", f"as stored, by the user's word: {kind}"
    extents = [_extent(array) for array in splits.values()]
    if not all(one.size for one in extents):
        raise UserError(f"{where}: a split has no values (all are missing): add observed ones")
    low, high = min(one.low for one in extents), max(one.high for one in extents)
    whole = all(one.whole for one in extents)
    if whole and low >= 0 and high <= 1:
        return "binary", "only 0 and 1: binary"
    in_bytes = [array.dtype == np.uint8 for array in splits.values()]
    if all(in_bytes):
        return "grey", BYTES
    if any(in_bytes):
        kinds = ", ".join(f"{split} {array.dtype}" for split, array in splits.items())
        raise UserError(f"{where} mixes bytes with other numbers ({kinds}): use one dtype")
    if low >= 0 and high <= 1:
        return "grey", "all within [0, 1]: grey levels, taken as probabilities of ink"
    if kind is None and whole and low >= 0 and high <= 255:
        raise UserError(
            f"{where} holds whole numbers within 0..255, but not as bytes: if they are grey "
            "levels, store them as uint8 or divide by 255; otherwise declare what they are, such "
            "as observation 'gaussian' or 'poisson'"
        )
    if low > -ROUNDING and high < 1 + ROUNDING:
        near, count = sum(one.near for one in extents), sum(one.size for one in extents)
        return "real", (
            f"real values: {near:,} of {count:,} lie outside [0, 1] by less than {ROUNDING:.0e}; "
            "clip them if they are grey levels"
        )
    return "real", "neither bytes nor within [0, 1]: real values"


class _Extent(NamedTuple):
    """A summary of the observed values of an array.

    Attributes:
        low, high: the smallest and the largest value; infinite if there are none.
        whole: whether all are whole numbers.
        near: number of values outside [0, 1] by less than `ROUNDING`.
        size: number of values.
    """

    low: float
    high: float
    whole: bool
    near: int
    size: int


def _extent(array: Examples) -> _Extent:
    """The extent of an array, in one pass over its blocks."""
    low, high, whole, near, count = np.inf, -np.inf, True, 0, 0
    for _, block in row_blocks(array):
        some = block[~np.isnan(block)] if array.dtype.kind == "f" else block
        if not some.size:
            continue
        low, high = min(low, some.min()), max(high, some.max())
        count += some.size
        if array.dtype.kind == "f":
            whole = whole and bool((some == np.rint(some)).all())
            outside = ((some < 0) & (some > -ROUNDING)) | ((some > 1) & (some < 1 + ROUNDING))
            near += int(outside.sum())
    return _Extent(float(low), float(high), whole, near, count)


def rows_by_meaning(array: Examples, values: str) -> Examples:
    """Rows `[n, d]` in the dtype that `splits.Raw` requires."""
    rows = flat_rows(array)
    if rows.dtype == np.uint8:
        return rows
    gaps = rows.dtype.kind == "f" and any(np.isnan(block).any() for _, block in row_blocks(rows))
    if rows.dtype == bool or (values == "binary" and not gaps):
        return convert_rows(rows, lambda block, _: block.astype(np.uint8), np.uint8)
    exact = values in ("real", "stored") and rows.dtype.newbyteorder("=") != np.float32
    dtype = np.float64 if exact else np.float32
    if gaps:
        return convert_rows(rows, lambda block, _: _one_nan(block, dtype), dtype)
    if values == "grey" and all(
        are_exact_grey_levels(block.astype(dtype, copy=False)) for _, block in row_blocks(rows)
    ):
        return convert_rows(rows, lambda block, _: grey_to_bytes(block.astype(dtype)), np.uint8)
    if rows.dtype == dtype:
        return rows
    return convert_rows(rows, lambda block, _: block.astype(dtype), dtype)


def _one_nan(block: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """Values with a single NaN pattern, so that equal tensors have equal digests."""
    values = block.astype(dtype)
    values[np.isnan(values)] = np.nan
    return values

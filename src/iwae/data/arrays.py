"""Read .npy and .npz files, and check large arrays block by block."""

import lzma
import math
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from iwae.data.cells import LARGEST_EXACT, MISSING_REMEDY
from iwae.data.rows import Examples, row_blocks
from iwae.errors import UserError
from iwae.wording import first_error_line

MOST_UNPACKED, MOST_RATIO = 2**28, 100
"""A file may unpack to that many bytes, or to that many times its own size if this is more."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npy file, memory-mapped, or of an .npz file; nothing is unpickled.

    Raises:
        UserError: if the file cannot be read, or does not hold arrays of numbers.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not start:
        raise UserError(f"{path} is empty")
    try:
        with refusing_oversized_arrays(path):
            if start == b"PK":
                arrays = _archive(path)
            else:
                arrays = {"data": np.load(path, mmap_mode="r", allow_pickle=False)}
    except UserError:
        raise
    except _UNREADABLE as error:
        reason = first_error_line(error)
        if "Python objects" in reason or "Object arrays" in reason:
            raise UserError(
                f"{path} does not hold arrays of numbers but of Python objects, which are not "
                "read: convert them (astype(float)) and save them again, or save a table as .csv"
            ) from None
        raise UserError(
            f"{path} is truncated, corrupt, or does not hold arrays of numbers: {reason}"
        ) from None
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise UserError(
                f"{path} holds {key!r}, which is not an array: keep only arrays of numbers"
            )
    return arrays


@contextmanager
def refusing_oversized_arrays(path: Path) -> Iterator[None]:
    """Raise EOFError in place of MemoryError if a file claims an implausible size.

    Raises:
        EOFError: if the size is far beyond that of the file.
        MemoryError: if the size is plausible, so that memory is exhausted.
    """
    try:
        yield
    except MemoryError as error:
        size = _requested_bytes(error)
        if size <= max(MOST_UNPACKED, MOST_RATIO * path.stat().st_size):
            raise
        raise EOFError(f"it claims to hold {size:,} bytes") from None


def _requested_bytes(error: MemoryError) -> int:
    """The bytes that NumPy or PyArrow failed to allocate; 0 if unknown."""
    if len(error.args) == 2:  # NumPy's
        shape, dtype = error.args
        return math.prod(shape) * int(dtype.itemsize)
    found = re.search(r"alloc of size (\d+)", str(error))
    return int(found[1]) if found else 0


def _archive(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
        unpacked = sum(one.file_size for one in loaded.zip.infolist())
        _refuse_bomb(path, unpacked, path.stat().st_size)
        stated, found = _stated_members(file, len(loaded.zip.comment)), len(loaded.zip.infolist())
        if stated not in (found, 0xFFFF):  # a member of too large a stated length hides the next
            raise zipfile.BadZipFile(f"{found} of {stated} arrays are listed")
        if (changed := loaded.zip.testzip()) is not None:  # NumPy may stop short of the end
            raise zipfile.BadZipFile(f"bad checksum of {changed!r}")
        return {key: loaded[key] for key in loaded.files}


def _stated_members(file: IO[bytes], comment: int) -> int:
    """The number of members that the end of an archive states; 65,535 stands for any more."""
    file.seek(-22 - comment, os.SEEK_END)
    return int.from_bytes(file.read(22)[10:12], "little")


def _refuse_bomb(path: Path, unpacked: int, packed: int) -> None:
    """Raise UserError for an archive that unpacks to an implausible size."""
    if unpacked > max(MOST_UNPACKED, MOST_RATIO * packed):
        raise UserError(
            f"{path} has {packed:,} bytes but unpacks to {unpacked:,}, so it is not read; if you "
            "trust it, save it uncompressed with np.savez"
        )


_UNREADABLE = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, IndexError),
    *(OverflowError, RuntimeError, SyntaxError, tokenize.TokenError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)
"""NumPy's exceptions for a damaged file."""


def check_array(
    where: str,
    key: str,
    array: Examples,
    *,
    place: Callable[[int, int], str] | None = None,
    missing: bool = False,
) -> None:
    """Check that an array holds examples: finite numbers, or missing values if allowed.

    Args:
        where, key: names of the file and of the array in messages.
        array: `[n, ...]`.
        place: for a table, row and column, both from 0 -> the position in the file, in words.
        missing: whether values may be missing.

    Raises:
        UserError: names the first invalid value, its position and the remedy.
    """
    file, where = where, f"{where}: array {key!r}"
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} has dtype {array.dtype}: examples must be real numbers")
    if array.ndim < 2:
        raise UserError(
            f"{where} has shape {array.shape}: examples must be the rows of [n, d] or [n, h, w] "
            "(for n single numbers, reshape to [n, 1])"
        )
    if 0 in array.shape:
        raise UserError(f"{where} has shape {array.shape}: it holds no numbers")
    if array.dtype.kind != "f":
        _refuse_inexact(where, array)
        return
    for start, block in row_blocks(array):
        with np.errstate(over="ignore", invalid="ignore"):
            single = block.astype(np.float32)
        legal = np.isfinite(single) | (np.isnan(single) & missing)
        if not legal.all():
            index = tuple(int(i) for i in np.argwhere(~legal)[0])
            index = (start + index[0], *index[1:])
            spot = f"{where}: {_place(index)}" if place is None else f"{file}: {place(*index)}"
            raise UserError(f"{spot} {_fault(block[index[0] - start, *index[1:]])}")


def _place(index: tuple[int, ...]) -> str:
    """The position of a value in an array, in words."""
    if len(index) == 2:
        return f"row {index[0] + 1}, column {index[1] + 1}"
    return f"example {index[0] + 1}, at [{', '.join(map(str, index[1:]))}],"


def _fault(value: Any) -> str:
    """The fault of a value that is refused, and the remedy."""
    if np.isnan(value):
        return f"is not a number; {MISSING_REMEDY}"
    if np.isinf(value):
        return f"is infinite ({value}): correct it, or remove its row"
    return (
        f"is {value:g}, too large for single precision (3.4e38): divide such values by a constant"
    )


def _refuse_inexact(where: str, array: Examples) -> None:
    """Raise UserError for whole numbers that float64 rounds."""
    for start, block in row_blocks(array) if array.dtype.itemsize == 8 else ():
        far = (block > LARGEST_EXACT) | (block < -LARGEST_EXACT)
        for index in np.argwhere(far):
            value = block[tuple(index)]
            if int(value) != int(float(value)):
                spot = _place((start + int(index[0]), *map(int, index[1:])))
                raise UserError(
                    f"{where}: {spot} is {value}, a whole number beyond 2^53 whose last digits "
                    "would be lost: subtract a constant, or convert the array (astype(float)) if "
                    "they do not matter"
                )

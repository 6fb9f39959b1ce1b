"""Rows that are read and converted on demand, for data larger than memory.

A `Rows` takes the place of an array `[n, ...]`: it has a length, a shape and a dtype, and indexing
reads rows into an array. Data in memory and on disk take the same path, at the end of which data
that fit into memory become a single array (`rows_in_memory`).
"""

import math
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iwae.errors import UserError

Index = np.ndarray | slice

ALL = slice(None)

Convert = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Values of rows and the places of these rows in the whole array -> converted values."""

GAP_BYTES = 2**16
"""The largest gap between rows of a file that are read together."""

CONVERTED = 2**20
"""Values that are converted at a time."""

PIECE_BYTES = 2**24
"""The most bytes of a file that are read at a time, beside those of the result."""


class Handle:
    """An open file, closed when nothing refers to it any more."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)


@dataclass(frozen=True)
class File:
    """An array in a file, in C order, whose rows are read on demand.

    Unlike a memory map, it does not count as memory of the process.
    """

    handle: Handle
    where: str  # name of the file in messages
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Read rows in any order."""
        found = np.empty((len(index), *self.shape[1:]), self.dtype)
        order = None if (np.diff(index) >= 0).all() else np.argsort(index, kind="stable")
        done = 0
        for run in self._runs(index if order is None else index[order]):
            part = slice(done, done + len(run))
            found[part if order is None else order[part]] = self._read(run)
            done += len(run)
        return found

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def _runs(self, index: np.ndarray) -> Iterator[np.ndarray]:
        """Ascending places, in runs without wide gaps that span at most `PIECE_BYTES`."""
        far = np.flatnonzero(np.diff(index) > max(1, GAP_BYTES // self._row_bytes)) + 1
        span = max(1, PIECE_BYTES // self._row_bytes)
        for run in np.split(index, far) if len(index) else ():
            cuts = np.searchsorted(run, np.arange(run[0] + span, run[-1] + 1, span))
            yield from (piece for piece in np.split(run, cuts) if len(piece))

    def _read(self, run: np.ndarray) -> np.ndarray:
        """Read ascending places that are close to each other."""
        block = np.empty((int(run[-1] - run[0]) + 1, *self.shape[1:]), self.dtype)
        left = block.reshape(-1).view(np.uint8)
        start = self.offset + int(run[0]) * self._row_bytes
        while len(left):
            try:  # unlike seek and read, this is safe in two threads at once
                done = os.preadv(self.handle.descriptor, [left.data], start)
            except OSError as error:
                raise UserError(f"{self.where} cannot be read: {error.strerror}") from None
            if not done:
                raise UserError(f"{self.where} has become shorter while it was in use: restore it")
            left, start = left[done:], start + done
        return block if (np.diff(run) == 1).all() else block[run - run[0]]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of an array or a file, in a chosen order, converted when they are read.

    Attributes:
        base: an array, a `File`, other `Rows`, or any object indexed by arrays of places.
        index: places in the base; None for all.
        convert: the conversion of the values that are read, if any.
        row_shape, dtype: the shape and dtype of a converted row.
    """

    base: Any
    index: np.ndarray | None
    convert: Convert | None
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return len(self.base) if self.index is None else len(self.index)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read rows; further indices apply to the result."""
        first, *rest = key if isinstance(key, tuple) else (key,)
        if rest:
            return self[first][:, *rest]
        places = np.atleast_1d(np.arange(len(self))[first])
        inner = places if self.index is None else self.index[places]
        found = self._read(inner)
        return found[0] if np.ndim(first) == 0 and not isinstance(first, slice) else found

    def _read(self, inner: np.ndarray) -> np.ndarray:
        """Read places of the base, and convert them a few at a time to save memory."""
        if self.convert is None:
            return np.asarray(self.base[inner])
        step = max(1, CONVERTED // max(1, math.prod(self.row_shape)))
        if len(inner) <= step:
            return self.convert(self.base[inner], inner)
        found = np.empty((len(inner), *self.row_shape), self.dtype)
        for start in range(0, len(inner), step):
            part = slice(start, start + step)
            found[part] = self.convert(self.base[inner[part]], inner[part])
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows in memory."""
        return np.asarray(rows_in_memory(self), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and the shape of each."""
        return (len(self), *self.row_shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of the rows in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


Examples = np.ndarray | Rows
"""Rows in memory, or read on demand."""


def stored(array: np.ndarray) -> Examples:
    """The rows of an array; of a memory map in C order, they are read from the file on demand."""
    if (
        not isinstance(array, np.memmap)
        or not array.flags.c_contiguous
        or 0 in (array.ndim, array.size)
    ):
        return array
    path = Path(str(array.filename))
    handle = Handle(os.open(path, os.O_RDONLY))
    return as_rows(File(handle, str(path), array.offset, array.shape, array.dtype))


def _is_all(rows: Index) -> bool:
    return isinstance(rows, slice) and rows == ALL


def as_rows(array: Examples | File) -> Rows:
    """The same rows, read on demand."""
    if isinstance(array, Rows):
        return array
    return Rows(array, None, None, array.shape[1:], array.dtype)


def row_subset(array: Examples, rows: Index) -> Examples:
    """Some rows of an array, or the array itself if they are all rows."""
    if _is_all(rows):
        return array
    return Rows(array, np.arange(len(array))[rows], None, array.shape[1:], array.dtype)


def convert_rows(
    array: Examples,
    convert: Convert,
    dtype: Any,
    *,
    rows: Index = ALL,
    row_shape: tuple[int, ...] | None = None,
) -> Rows:
    """Rows of an array, converted by a function of their values and their places in the array."""
    index = None if _is_all(rows) else np.arange(len(array))[rows]
    return Rows(array, index, convert, row_shape or array.shape[1:], np.dtype(dtype))


def flat_rows(array: Examples) -> Examples:
    """The rows as vectors `[n, d]`."""
    if isinstance(array, np.ndarray):
        return array.reshape(len(array), -1)
    if array.ndim == 2:
        return array
    d = math.prod(array.shape[1:])
    return convert_rows(
        array, lambda values, _: values.reshape(len(values), d), array.dtype, row_shape=(d,)
    )


def rows_in_memory(array: Examples) -> np.ndarray:
    """The rows in memory, read and converted block by block."""
    if isinstance(array, np.ndarray):
        return array
    whole = np.empty(array.shape, array.dtype)
    for start, block in row_blocks(array):
        whole[start : start + len(block)] = block
    return whole


def row_blocks(array: Examples, size: int = 2**22) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows with about `size` numbers, each with the index of its first row."""
    step = max(1, size // max(1, math.prod(array.shape[1:])))
    return ((start, array[start : start + step]) for start in range(0, len(array), step))

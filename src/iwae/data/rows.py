"""Rows that are read and converted only when they are asked for: data larger than memory.

A `Rows` stands where an array `[n, ...]` stands: it has a length, a shape and a dtype, and indexing
it reads those rows into an array. In memory and from disk, data take the same path, at whose end
those that fit are kept (`kept`) in a single array.
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
"""Values of rows, and the places of these rows in the array that they are converted from."""

GAP_BYTES = 2**16
"""Rows of a file that are farther apart are read separately."""

CONVERTED = 2**20
"""Values that are converted at a time."""

PIECE_BYTES = 2**24
"""The most bytes of a file that are read at a time, beside the rows that are asked for."""


class Handle:
    """An open file, closed when nothing refers to it any more."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)


@dataclass(frozen=True)
class File:
    """An array in the C order of a file, of which only the rows that are asked for are read.

    Unlike those of a memory map, these bytes do not count as the process's memory.
    """

    handle: Handle
    where: str  # its name in messages
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
            where = slice(done, done + len(run))
            found[where if order is None else order[where]] = self._read(run)
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
            try:  # unlike a seek and a read, this may happen in two threads at once
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
        base: an array, a `File`, other `Rows`, or whatever is indexed by arrays of places.
        index: places in the base; None for all.
        convert: of the values that are read; None for none.
        row_shape, dtype: of a converted row.
    """

    base: Any
    index: np.ndarray | None
    convert: Convert | None
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return len(self.base) if self.index is None else len(self.index)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read rows; further indices apply to what was read."""
        first, *rest = key if isinstance(key, tuple) else (key,)
        if rest:
            return self[first][:, *rest]
        places = np.atleast_1d(np.arange(len(self))[first])
        inner = places if self.index is None else self.index[places]
        found = self._read(inner)
        return found[0] if np.ndim(first) == 0 and not isinstance(first, slice) else found

    def _read(self, inner: np.ndarray) -> np.ndarray:
        """Read places of the base, and convert them few at a time, since that may take memory."""
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
        return np.asarray(kept(self), dtype)

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
        """The size that they would have in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


Examples = np.ndarray | Rows
"""Rows in memory or to be read."""


def stored(array: np.ndarray) -> Examples:
    """The rows of an array; those of a memory map are read from its file, if it is in C order."""
    if (
        not isinstance(array, np.memmap)
        or not array.flags.c_contiguous
        or 0 in (array.ndim, array.size)
    ):
        return array
    path = Path(str(array.filename))
    handle = Handle(os.open(path, os.O_RDONLY))
    return file_rows(handle, str(path), array.offset, array.shape, array.dtype)


def file_rows(
    handle: Handle, where: str, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Rows:
    """All rows of an array in an open file."""
    return Rows(File(handle, where, offset, shape, dtype), None, None, shape[1:], dtype)


def _is_all(rows: Index) -> bool:
    return isinstance(rows, slice) and rows == ALL


def as_rows(array: Examples) -> Rows:
    """The same rows, to be read when they are needed."""
    if isinstance(array, Rows):
        return array
    return Rows(array, None, None, array.shape[1:], array.dtype)


def subset(array: Examples, rows: Index) -> Examples:
    """Some rows; a slice of all of them leaves the array as it is."""
    if _is_all(rows):
        return array
    return Rows(array, np.arange(len(array))[rows], None, array.shape[1:], array.dtype)


def converted(
    array: Examples,
    convert: Convert,
    dtype: Any,
    *,
    rows: Index = ALL,
    row_shape: tuple[int, ...] | None = None,
) -> Rows:
    """Rows of an array as a function makes them of their values and their places in the array."""
    index = None if _is_all(rows) else np.arange(len(array))[rows]
    return Rows(array, index, convert, row_shape or array.shape[1:], np.dtype(dtype))


def flat(array: Examples) -> Examples:
    """The rows as vectors `[n, d]`."""
    if isinstance(array, np.ndarray):
        return array.reshape(len(array), -1)
    if array.ndim == 2:
        return array
    d = math.prod(array.shape[1:])
    return converted(
        array, lambda values, _: values.reshape(len(values), d), array.dtype, row_shape=(d,)
    )


def kept(array: Examples) -> np.ndarray:
    """The rows in memory, read and converted block by block into one array."""
    if isinstance(array, np.ndarray):
        return array
    whole = np.empty(array.shape, array.dtype)
    for start, block in blocks(array):
        whole[start : start + len(block)] = block
    return whole


def blocks(array: Examples, size: int = 2**22) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows with about `size` numbers and the index of their first row: little memory."""
    step = max(1, size // max(1, math.prod(array.shape[1:])))
    return ((start, array[start : start + step]) for start in range(0, len(array), step))

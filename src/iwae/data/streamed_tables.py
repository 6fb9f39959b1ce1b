"""Read tables of .parquet files piece by piece, and keep them on disk as numbers.

PyArrow is imported on first use.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iwae.data.cells import is_empty, object_cells
from iwae.data.coding import to_values
from iwae.data.columns import MOST_LEVELS, Column
from iwae.data.parquet_files import open_parquet_file, refusing_parquet_damage
from iwae.data.rows import File, Handle, Rows, as_rows
from iwae.data.tables import Table, table_from_frame
from iwae.errors import UserError

PIECE, VALUES = 2**16, 2**22
"""The most rows of a file that are decoded at a time, and the most values."""


def stream_tables(
    path: Path, *, drop: Sequence[str] = (), ids: Sequence[str] = ()
) -> Iterator[Table]:
    """The rows of a file in order, piece by piece; arguments as for `read_table`.

    Raises:
        UserError: if a piece cannot be read; and as for `read_table`.
    """
    first = 0
    for frame in _frames(path):
        yield table_from_frame(frame, drop=drop, ids=ids, where=str(path), first=first)
        first += len(frame)


def _frames(path: Path) -> Iterator[Any]:
    """Consecutive rows of a file, as PyArrow tables."""
    import pyarrow as pa

    file = open_parquet_file(path)
    most = max(1, min(PIECE, VALUES // max(1, file.metadata.num_columns)))
    with refusing_parquet_damage(path):
        for group in range(file.num_row_groups):  # over several, PyArrow keeps all that it reads
            for batch in file.iter_batches(most, row_groups=[group]):
                yield pa.Table.from_batches([batch])


def condense_streamed_table(tables: Iterator[Table], wanted: Mapping[str, str] | None) -> Table:
    """A short table from which the rule of `columns` makes the same choices as from all rows.

    A column holds its distinct values or, if there are more than `MOST_LEVELS`, the first of them,
    the extremes and a number that is not whole.

    Args:
        tables: the pieces of the whole table.
        wanted: the kinds of columns that the user declares, by name.

    Raises:
        UserError: for too many categories.
    """
    seen: list[_Digest] = []
    first = 0
    for table in tables:
        seen = seen or [_Digest() for _ in table.names]
        for one, cells in zip(seen, table.columns, strict=True):
            one.add(cells, first)
        first += table.n_rows
    if not seen:
        raise UserError("the file has no rows: add some")
    for name, one in zip(table.names, seen, strict=True):
        base = (wanted or {}).get(name, "").partition(":")[0]
        if base in ("categorical", "bernoulli") and one.is_full:
            raise UserError(
                f"{table.where}: column {name!r} has more than {MOST_LEVELS:,} different values: "
                "leave it out, or give it another kind"
            )
    columns = [one.column() for one in seen]
    longest = max(map(len, columns))
    rows = [list(one.values.values()) for one in seen]

    def place(row: int, column: int) -> str:
        return f"row {rows[column][row] + 1}, column {table.names[column]!r}"

    padded = tuple(_padded(one, longest) for one in columns)
    counts = tuple(one.count for one in seen)
    return table._replace(columns=padded, ids={}, place=place, counts=counts)


class _Digest:
    """The values that the kind of a column depends on, among those added so far."""

    def __init__(self) -> None:
        self.values: dict[Any, int] = {}  # each with its first row
        self.marks: dict[str, float] = {}
        self.count = 0
        self.is_full = self.has_words = False

    def add(self, cells: np.ndarray, first: int) -> None:
        """Add further cells, the first of which is in row `first`."""
        self.has_words = cells.dtype == object
        there = np.flatnonzero(~is_empty(cells))
        present = cells[there]
        self.count += len(present)
        if not len(present):
            return
        new, places = np.unique(present, return_index=True)
        for value, row in zip(new, there[places], strict=True):
            if self.is_full:
                break
            self.values.setdefault(value, first + int(row))
            self.is_full = len(self.values) > MOST_LEVELS
        if self.has_words:
            return
        odd = present[present != np.rint(present)]
        self.marks["low"] = min(present.min(), self.marks.get("low", np.inf))
        self.marks["high"] = max(present.max(), self.marks.get("high", -np.inf))
        if len(odd):
            self.marks.setdefault("odd", odd[0])

    def column(self) -> np.ndarray:
        """The column of the short table, where a value recurs if it does in the whole."""
        values = [*self.values, *self.marks.values()]
        values += values[:1] * (min(self.count, 2 * len(values)) - len(values))
        return object_cells(values) if self.has_words else np.array(values, float)


def _padded(column: np.ndarray, length: int) -> np.ndarray:
    gap = None if column.dtype == object else np.nan
    return np.concatenate([column, np.full(length - len(column), gap, column.dtype)])


def streamed_values(
    path: Path, tables: Iterator[Table], columns: Sequence[Column], *, unknown: str
) -> Rows:
    """The values of a table, float64 `[n, d]`, in a temporary file deleted with the process.

    Args:
        path: path of the table.
        tables: the pieces of the table.
        columns, unknown: as for `coding.to_values`.

    Raises:
        UserError: if the disk has too little room; and as for `coding.to_values`.
    """
    n, d = open_parquet_file(path).metadata.num_rows, len(columns)
    folder, size = tempfile.gettempdir(), 8 * n * d
    if (free := shutil.disk_usage(folder).free) < size:
        raise UserError(
            f"{path} takes {size / 2**30:.1f} GiB as numbers, but {folder} has only "
            f"{free / 2**30:.1f} GiB left: let TMPDIR name a folder with more room"
        )
    with tempfile.TemporaryFile() as file:
        for table in tables:
            file.write(np.ascontiguousarray(to_values(table, columns, unknown=unknown)).data)
        file.flush()
        handle = Handle(os.dup(file.fileno()))  # the file is deleted with its last handle
    return as_rows(File(handle, str(path), 0, (n, d), np.dtype(np.float64)))


def streamed_places(columns: Sequence[Column]) -> Callable[[int, int], str]:
    """Row and column of `streamed_values`, both from 0 -> the position in the file, in words."""
    return lambda row, column: f"row {row + 1}, column {columns[column].name!r}"


def streamed_cells(path: Path, names: Sequence[str]) -> dict[str, Rows]:
    """Columns of a file in Arrow's format, which takes less memory than objects."""
    file = open_parquet_file(path)
    with refusing_parquet_damage(path):
        table = file.read([*names])
    return {
        name: Rows(_Cells(table.column(name)), None, None, (), np.dtype(object)) for name in names
    }


class _Cells:
    """A PyArrow column with the indexing that `Rows` needs."""

    def __init__(self, column: Any):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(self._column.take(index).to_numpy())

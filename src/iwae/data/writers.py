"""Write tables as .csv, .tsv or .parquet files, and numbers as .npy or .npz files.

PyArrow is imported on first use.
"""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iwae.errors import UserError
from iwae.files import atomic_write

Cells = Mapping[str, np.ndarray]
"""Columns `[n]` by name: numbers, or words with None."""

Write = Callable[[Cells], None]
"""A function that appends rows to a file."""


def write_table(path: Path, cells: Cells) -> None:
    """Write a table, or one array of any shape, in a format of `table_writer`."""
    write_table_pieces(path, [cells], len(next(iter(cells.values()), ())))


def write_table_pieces(path: Path, pieces: Iterable[Cells], n: int) -> None:
    """Write a table of n rows piece by piece, in a format of `table_writer`."""
    with table_writer(path, n) as write:
        for cells in pieces:
            write(cells)


@contextmanager
def table_writer(path: Path, n: int) -> Iterator[Write]:
    """Yield a function that writes rows as .csv, .tsv or .parquet, or numbers as .npy or .npz.

    The file appears whole at the end, or not at all. The function takes columns, piece by piece; a
    missing value becomes an empty cell. Only an .npz file is kept in memory until the end.

    Args:
        path: path of the file.
        n: number of rows of all pieces together.

    Raises:
        UserError: for another suffix, or words in an .npy or .npz file.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise UserError(f"{path} must have one of the suffixes {', '.join(WRITERS)}")
    with atomic_write(path) as temporary, WRITERS[suffix](temporary, n) as write:

        def checked(cells: Cells) -> None:
            words = any(one.dtype.kind not in "biuf" for one in cells.values())
            if words and suffix in (".npy", ".npz"):
                raise UserError(f"{path} cannot hold words: use .csv, .tsv or .parquet")
            write(cells)

        yield checked


@contextmanager
def _text_writer(path: Path, n: int, separator: str) -> Iterator[Write]:  # noqa: ARG001
    with path.open("w", encoding="utf-8", newline="") as text:

        def write(cells: Cells) -> None:
            columns = [_as_text(column) for column in cells.values()]
            # csv quotes a line feed in a cell, but not a carriage return, which ends lines too.
            returns = any("\r" in cell for one in columns for cell in one if isinstance(cell, str))
            lines = csv.writer(
                text,
                delimiter=separator,
                lineterminator="\n",
                quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL,
            )
            if text.tell() == 0:
                lines.writerow(cells)
            lines.writerows(zip(*columns, strict=True))

        yield write


def _as_text(column: np.ndarray) -> list[Any]:
    """The cells of a column; float32 in the digits that represent it."""
    if column.dtype.kind != "f":
        return ["" if cell is None else cell for cell in column.tolist()]
    if column.dtype.itemsize < 8:
        return ["" if cell == "nan" else cell for cell in map(str, column)]
    return ["" if math.isnan(cell) else cell for cell in column.tolist()]


@contextmanager
def _parquet_writer(path: Path, n: int) -> Iterator[Write]:  # noqa: ARG001
    import pyarrow as pa
    from pyarrow import parquet

    with ExitStack() as stack:
        opened: list[Any] = []

        def write(cells: Cells) -> None:
            table = pa.table({name: pa.array(one, from_pandas=True) for name, one in cells.items()})
            if not opened:
                opened.append(stack.enter_context(parquet.ParquetWriter(path, table.schema)))
            opened[0].write_table(table.cast(opened[0].schema))

        yield write


@contextmanager
def _array_writer(path: Path, n: int) -> Iterator[Write]:
    with path.open("wb") as file:  # NumPy would add a suffix to a path in capitals

        def write(cells: Cells) -> None:
            several = [*cells.values()]
            rows = several[0] if len(several) == 1 else np.stack(several, axis=1)
            if file.tell() == 0:
                shape = {"fortran_order": False, "shape": (n, *rows.shape[1:])}
                np.lib.format.write_array_header_1_0(file, {"descr": rows.dtype.str, **shape})
            file.write(np.ascontiguousarray(rows).data)

        yield write


@contextmanager
def _arrays_writer(path: Path, n: int) -> Iterator[Write]:  # noqa: ARG001
    pieces: list[Cells] = []
    yield pieces.append
    whole: dict[str, Any] = {
        name: np.concatenate([cells[name] for cells in pieces]) for name in pieces[0]
    }
    with path.open("wb") as file:
        np.savez(file, **whole)


WRITERS: dict[str, Callable[[Path, int], AbstractContextManager[Write]]] = {
    ".csv": partial(_text_writer, separator=","),
    ".tsv": partial(_text_writer, separator="\t"),
    ".parquet": _parquet_writer,
    ".npy": _array_writer,
    ".npz": _arrays_writer,
}
"""The writer of each format, by suffix."""

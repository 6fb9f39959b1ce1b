"""Read and write tables: .csv, .tsv and .parquet files, and data frames.

PyArrow and narwhals are imported on first use.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.data import delimited
from iwae.data.arrays import honest_sizes
from iwae.data.delimited import LARGEST_EXACT, is_number
from iwae.errors import UserError, shorten
from iwae.files import atomic_write

SUFFIXES = (".csv", ".tsv", ".parquet")


class Remedies(NamedTuple):
    """The remedies for a column that is refused, in the terms of the interface that a person uses.

    `{name}` stands for the column; a remedy that the interface does not have is empty.

    Attributes:
        drop: leave the column out.
        carry: carry it through beside the values.
        naming: the same in short, of a column that may name the rows.
        categories: how to have its values taken as categories.
        unknown: take an unknown word for a missing value.
    """

    drop: str
    carry: str
    naming: str
    categories: str
    unknown: str

    def ways(self, name: str, *more: str) -> str:
        """Leave the column out, carry it through, or one of more."""
        ways = [*(one.format(name=name) for one in (self.drop, self.carry) if one), *more]
        return ", or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)


COMMAND = Remedies(
    "leave it out (--drop {name})",
    "carry it through (--id {name})",
    "--id {name}",
    '--columns "{name}=categorical"',
    "count unknown words as missing (--unknown missing)",
)
"""The remedies of the command line."""


class Text(NamedTuple):
    """The form of a file of text.

    Attributes:
        separator: of its cells.
        names: of all its columns; their numbers, from 1, where they have none.
        header: whether it names them.
        commas: the names of columns of numbers -> whether these have decimal commas.
    """

    separator: str
    names: tuple[str, ...]
    header: bool
    commas: Mapping[str, bool]


class Table(NamedTuple):
    """A table as it was written, before anything is decided about its columns.

    Attributes:
        names: of the columns; their numbers, from 1, where they have none.
        columns: one array `[n]` for each: float64, NaN where missing; or, if a cell is no number,
            objects: words, and None where missing.
        ids: columns that are carried through, by name; text where they come from a text file.
        named: whether the file names its columns.
        where: the name of the file.
        place: row and column, both from 0 -> the position in the file and the cell, in words.
        remedies: what its reader can do about a column.
        remarks: what its reader should know about how it was read, as lines.
        counts: of a digest of a longer table, the cells of each column that are not missing there.
        text: the form of its file, if that is text.
    """

    names: tuple[str, ...]
    columns: tuple[np.ndarray, ...]
    ids: dict[str, np.ndarray] = {}  # noqa: RUF012 - never changed
    named: bool = True
    where: str = "the table"
    place: Callable[[int, int], str] = lambda row, column: f"row {row + 1}, column {column + 1}"
    remedies: Remedies = COMMAND
    counts: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    text: Text | None = None

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return len((*self.columns, *self.ids.values())[0])


def read_table(path: Path, *, drop: Sequence[str] = (), ids: Sequence[str] = ()) -> Table:
    """Read a .csv, .tsv or .parquet file.

    Args:
        path: of the file.
        drop: columns to leave out: names, or numbers from 1 of columns without a name.
        ids: columns to carry through, in the same way.

    Raises:
        UserError: names the file, and the line or the column that is wrong.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet_table(path, drop, ids)
    return _text_table(path, drop, ids)


def _text_table(path: Path, drop: Sequence[str], ids: Sequence[str]) -> Table:
    """A table of text, parsed once."""
    layout, cells = delimited.parse(path)
    names = delimited.names_of(layout)
    kept, carried = _select(str(path), names, bool(layout.header), drop, ids)
    read = [delimited.as_values(cells.column(i), comma=layout.separator != ",") for i in kept]
    for i, one in zip(kept, read, strict=True):
        if one.inexact:
            raise UserError(f"{path}: {inexact(names[i], one.inexact, COMMAND)}")
    if {".", ","} <= {one.mark for one in read}:
        raise UserError(
            f"{path} has columns with decimal points and others with decimal commas: use one mark, "
            "and none for thousands"
        )
    table = Table(
        tuple(names[i] for i in kept),
        tuple(one.cells for one in read),
        {names[i]: delimited.as_words(cells.column(i)) for i in carried},
        bool(layout.header),
        str(path),
        partial(delimited.place_of, path, layout, (*kept, *carried)),
        remarks=tuple(
            f"column {names[i]!r}: {one.doubt} is taken as {one.doubt.replace(',', '.')}, not as "
            f"{re.sub('[.,]', '', one.doubt)}"
            for i, one in zip(kept, read, strict=True)
            if one.doubt
        ),
        text=Text(
            layout.separator,
            tuple(names),
            bool(layout.header),
            _commas([names[i] for i in kept], read),
        ),
    )
    _refuse_index(table, [bool(layout.header) and not layout.header[i].strip() for i in kept])
    if table.named:
        _refuse_first(table)
    return table


def _commas(names: Sequence[str], read: Sequence[delimited.Values]) -> dict[str, bool]:
    """Whether columns of numbers have decimal commas: as the others, if theirs have no marks."""
    numbers = {
        name: one.mark for name, one in zip(names, read, strict=True) if one.cells.dtype != object
    }
    common = "," in numbers.values()
    return {name: "," in mark or (common and not mark) for name, mark in numbers.items()}


# --- columns ---------------------------------------------------------------------------------


def _select(
    where: str, names: Sequence[str], named: bool, drop: Sequence[str], ids: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The indices of the columns of values, and of those that are carried through."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where} has several columns called {name!r}: rename all but one")
    for one in (*drop, *ids):
        if one.strip() not in names:
            found = f"it has {few(names)}" if named else f"give a number from 1 to {len(names)}"
            what = "column" if named else "column names, nor a column"
            raise UserError(f"{where} has no {what} {one!r}; {found}")
    carried = [names.index(one.strip()) for one in dict.fromkeys(ids)]
    left = {names.index(one.strip()) for one in drop} | set(carried)
    kept = [i for i in range(len(names)) if i not in left]
    if not kept and not carried:
        raise UserError(f"{where} has no column left: drop fewer")
    return kept, carried


def few(names: Sequence[str]) -> str:
    """The first names of a list, in words."""
    return shorten(", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else ""))


def _refuse_index(table: Table, nameless: Sequence[bool]) -> None:
    """Raise UserError for a column without a name that counts the rows, as spreadsheets do."""
    for name, column, blank in zip(table.names, table.columns, nameless, strict=True):
        if blank and column.dtype != object and _counts(column):
            raise UserError(
                f"{table.where}: column {name!r} has no name and counts the rows: "
                f"{table.remedies.ways(name)}"
            )


def _refuse_first(table: Table) -> None:
    """Raise UserError if the first line of a table of words could be an example."""
    words = all(column.dtype == object for column in table.columns)
    for name, column in zip(table.names, table.columns, strict=True):
        if words and name in column:
            raise UserError(
                f"{table.where}: {name!r} in the first line is also a value of its column: put a "
                "line of names above, or choose other names"
            )


def _counts(column: np.ndarray) -> bool:
    steps = np.arange(len(column))
    return np.array_equal(column, steps) or np.array_equal(column, steps + 1)


def inexact(name: str, value: Any, remedies: Remedies) -> str:
    """The reason for refusing whole numbers that float64 rounds, and the remedies."""
    more = "subtract a constant", "make it decimal numbers if their last digits do not matter"
    return (
        f"column {name!r} holds {value}, a whole number beyond 2^53 whose last digits would be "
        f"lost: {remedies.ways(name, *more)}"
    )


class MissingLabelError(UserError):
    """A row without a label."""


def as_labels(table: Table, name: str) -> np.ndarray:
    """A column that was carried through, as labels `[n]`: whole numbers if all are, else words.

    Raises:
        MissingLabelError: if a row has none.
        UserError: if a number is not whole, or no two rows share a label.
    """
    cells = np.array(
        [None if _is_null(one) else str(one).strip() for one in table.ids[name]], object
    )
    gaps = np.flatnonzero(cells == None)  # noqa: E711
    if gaps.size:
        line = table.place(int(gaps[0]), len(table.columns) + list(table.ids).index(name))
        raise MissingLabelError(
            f"{table.where}: {line.partition(',')[0]} has no label (column {name!r}): remove such "
            "rows"
        )
    labels = _whole(table.where, name, cells)
    if len(labels) > 1 and len(np.unique(labels)) == len(labels):
        raise UserError(
            f"{table.where}: the column {name!r} has a different value in every line, so it cannot "
            "be a label: name a column whose values repeat"
        )
    return labels


def _whole(where: str, name: str, cells: np.ndarray) -> np.ndarray:
    """Labels as whole numbers if all are numbers, otherwise as words."""
    if not all(map(is_number, cells)):
        return cells.astype(str)
    numbers = cells.astype(np.float64)
    odd = np.flatnonzero(numbers != np.rint(numbers))
    if odd.size:
        raise UserError(
            f"{where}: the column {name!r} holds {cells[odd[0]]}, but labels must be words or "
            "whole numbers"
        )
    # Beyond, they are labels as written.
    is_exact = bool((np.abs(numbers) <= LARGEST_EXACT).all())
    return numbers.astype(np.int64) if is_exact else cells.astype(str)


# --- frames ----------------------------------------------------------------------------------


def opened_parquet(path: Path) -> Any:
    """A .parquet file of which nothing but the description is read; UserError if it is none."""
    from pyarrow import parquet

    with refusing_damage(path):
        found = parquet.ParquetFile(path)
        _ = found.schema_arrow.names  # decodes them
        return found


def _parquet_table(path: Path, drop: Sequence[str], ids: Sequence[str]) -> Table:
    """The table of a .parquet file, read column by column: Arrow's copy is never of all of them."""
    import narwhals as nw

    with opened_parquet(path) as file:
        names = [str(name) for name in file.schema_arrow.names]

        def column(i: int) -> Any:
            with refusing_damage(path):  # by this name, PyArrow also reads columns like name.more
                cells = file.read(columns=[names[i]]).column(names[i])
            return nw.from_native(cells, series_only=True)

        return _table(names, column, drop, ids, str(path), COMMAND, 0)


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Raise UserError in place of what PyArrow raises for a damaged .parquet file."""
    import pyarrow as pa

    try:
        with honest_sizes(path):
            yield
    except MemoryError:
        raise
    except (pa.ArrowException, EOFError, OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}") from None


def names_in(source: Any) -> list[str]:
    """The names of the columns of a file or a frame, by number if they have none."""
    if not isinstance(source, Path):
        return [str(name) for name in opened_frame(source).columns]
    if source.suffix.lower() == ".parquet":
        return [str(name) for name in opened_parquet(source).schema_arrow.names]
    return delimited.read_header(source)[1]


def opened_frame(frame: Any, where: str = "the frame") -> Any:
    """A data frame as narwhals has it.

    Raises:
        UserError: if it is none, has no rows in memory, or several columns of one name.
    """
    import narwhals as nw

    try:
        data = nw.from_native(frame, eager_only=True)
        _ = data.columns
    except nw.exceptions.DuplicateError:
        raise UserError(f"{where} has several columns of one name: rename all but one") from None
    except TypeError:
        kind = f"a {type(frame).__name__}"
        if hasattr(frame, "collect"):
            raise UserError(f"{where} is {kind}, which has no rows yet: collect() it") from None
        raise UserError(
            f"{kind} is no data frame of pandas, Polars or PyArrow, and no path: save arrays as "
            ".npy"
        ) from None
    return data


def frame_table(
    frame: Any,
    *,
    drop: Sequence[str] = (),
    ids: Sequence[str] = (),
    where: str = "the frame",
    remedies: Remedies = COMMAND,
    first: int = 0,
) -> Table:
    """The table of a data frame (pandas, Polars, PyArrow, or another that narwhals knows).

    Args:
        frame: the data frame.
        drop, ids: as for `read_table`.
        where: its name in error messages.
        remedies: what these advise.
        first: number of its first row in the whole of which it is a piece.

    Raises:
        UserError: names the column that holds neither numbers nor words.
    """
    data = opened_frame(frame, where)
    series = list(data.iter_columns())
    names = [str(name) for name in data.columns]
    return _table(names, series.__getitem__, drop, ids, where, remedies, first)


def _table(
    names: Sequence[str],
    series: Callable[[int], Any],
    drop: Sequence[str],
    ids: Sequence[str],
    where: str,
    remedies: Remedies,
    first: int,
) -> Table:
    """The table of columns of narwhals, by their number; the rest is as for `frame_table`."""
    kept, carried = _select(where, names, True, drop, ids)
    table = Table(
        tuple(names[i] for i in kept),
        tuple(_series(where, names[i], series(i), remedies) for i in kept),
        {names[i]: series(i).to_numpy() for i in carried},
        True,
        where,
        lambda row, column: f"row {first + row + 1}, column {names[(*kept, *carried)[column]]!r}",
        remedies,
    )
    _refuse_index(table, [bool(_NAMELESS.fullmatch(name)) for name in table.names])
    return table


_NAMELESS = re.compile(r"__index_level_\d+__|Unnamed: \d+")
"""The names that pandas gives to columns that have none."""


def _series(where: str, name: str, series: Any, remedies: Remedies) -> np.ndarray:
    """A column of a frame: float64 with NaN, or words with None."""
    import narwhals as nw

    if series.dtype.is_temporal():
        raise UserError(f"{where}: column {name!r} holds {dates(name, remedies)}")
    if series.dtype.is_numeric():
        numbers = np.array(series.cast(nw.Float64).to_numpy(), np.float64)
        for i in (
            np.flatnonzero(np.abs(numbers) >= LARGEST_EXACT) if series.dtype.is_integer() else ()
        ):
            if int(series[int(i)]) != int(numbers[i]):
                raise UserError(f"{where}: {inexact(name, series[int(i)], remedies)}")
        return numbers
    cells = [None if _is_null(one) else one for one in series.to_list()]
    present = [one for one in cells if one is not None]
    bits = [isinstance(one, bool | np.bool) for one in present]
    if not all(bits) and all(isinstance(one, int | float | np.number) for one in present):
        return np.array([np.nan if one is None else one for one in cells], np.float64)
    odd = next((one for one in present if not isinstance(one, str | bool | np.bool)), None)
    if odd is not None and not isinstance(odd, int | float | np.number):
        ways = remedies.ways(name, "make them words, as .astype(str) does")
        plain = f"{type(odd).__name__} objects, not numbers or words: {ways}"
        what = dates(name, remedies) if hasattr(odd, "isoformat") else plain
        raise UserError(f"{where}: column {name!r} holds {what}")
    return np.array([None if one is None else str(one) for one in [*cells, None]], object)[:-1]


def _is_null(cell: Any) -> bool:
    """Whether a cell is None, NaN, or pandas' NA or NaT, none of which equals itself."""
    return (
        cell is None
        or str(cell) in ("<NA>", "NaT")
        or (isinstance(cell, float) and math.isnan(cell))
    )


def dates(name: str, remedies: Remedies) -> str:
    """The reason for refusing dates, and the remedies."""
    return f"dates or times: {remedies.ways(name, 'write numbers, such as days since a date')}"


# --- writing ---------------------------------------------------------------------------------


Cells = Mapping[str, np.ndarray]
"""Columns `[n]` by name: numbers, or words with None."""


Write = Callable[[Cells], None]
"""A function that writes the next rows of a file."""


def write_table(path: Path, cells: Cells) -> None:
    """Write a whole table as `written_by_piece` does, or one array of any shape."""
    write_pieces(path, [cells], len(next(iter(cells.values()), ())))


def write_pieces(path: Path, pieces: Iterable[Cells], n: int) -> None:
    """Write a table of n rows piece by piece, as `written_by_piece` does."""
    with written_by_piece(path, n) as write:
        for cells in pieces:
            write(cells)


@contextmanager
def written_by_piece(path: Path, n: int) -> Iterator[Write]:
    """A function that writes columns as .csv, .tsv or .parquet, or numbers as .npy or .npz.

    The file appears whole at the end, or not at all. Columns are given piece by piece, in order; a
    missing value becomes an empty cell. All but an .npz file are written as they come.

    Args:
        path: of the file.
        n: rows of all pieces together.

    Raises:
        UserError: if the suffix is another, or an .npy or .npz file would hold words.
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
            # The writer quotes a line feed in a cell, but no carriage return, which ends lines too.
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
    """The cells of a column; float32 in the digits that it has."""
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
    found: list[Cells] = []
    yield found.append
    whole: dict[str, Any] = {
        name: np.concatenate([cells[name] for cells in found]) for name in found[0]
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
"""The writer of each kind of file."""

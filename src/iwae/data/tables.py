"""Read tables: .csv, .tsv and .parquet files, and data frames.

PyArrow and narwhals are imported on first use.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.data.cells import LARGEST_EXACT, is_null, object_cells
from iwae.data.delimited import (
    Values,
    delimited_place,
    delimited_words,
    parse_delimited,
    parse_delimited_column,
)
from iwae.data.layout import find_layout
from iwae.data.parquet_files import open_parquet_file, refusing_parquet_damage
from iwae.errors import UserError
from iwae.files import read_bytes
from iwae.wording import quoted_words

SUFFIXES = (".csv", ".tsv", ".parquet")


class Remedies(NamedTuple):
    """The remedies for a column that is refused, in the terms of the user's interface.

    `{name}` stands for the column; a remedy that the interface lacks is empty.

    Attributes:
        drop: leave the column out.
        carry: carry it through beside the values.
        naming: what to do with a column that may name the rows, in short.
        categories: take its values as categories.
        unknown: take an unknown word for a missing value.
    """

    drop: str
    carry: str
    naming: str
    categories: str
    unknown: str

    def ways(self, name: str, *more: str) -> str:
        """The remedies for any column, and further ones, in words."""
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
    """The form of a text file.

    Attributes:
        separator: the separator of its cells.
        names: the names of all its columns; numbers, from 1, of columns without a name.
        header: whether the first line names the columns.
        commas: whether each column of numbers has decimal commas, by name.
    """

    separator: str
    names: tuple[str, ...]
    header: bool
    commas: Mapping[str, bool]


class Table(NamedTuple):
    """A table as it was written, before anything is decided about its columns.

    Attributes:
        names: the names of the columns; numbers, from 1, of columns without a name.
        columns: one array `[n]` for each: float64, NaN where missing; or, if any cell is not a
            number, objects: words, and None where missing.
        ids: columns that are carried through, by name; as text if they come from a text file.
        named: whether the file names its columns.
        where: the name of the file.
        place: row and column, both from 0 -> the position in the file and the cell, in words.
        remedies: what the user can do about a column that is refused.
        counts: for a digest of a longer table, the number of present cells of each of its columns.
        remarks: what the user should know about how the table was read, as lines.
        text: the form of the file, if it is text.
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
        path: path of the file.
        drop: columns to leave out: names, or numbers from 1 of columns without a name.
        ids: columns to carry through, named likewise.

    Raises:
        UserError: names the file, and the line or the column that is wrong.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet_table(path, drop, ids)
    return _text_table(path, drop, ids)


def _text_table(path: Path, drop: Sequence[str], ids: Sequence[str]) -> Table:
    """The table of a text file, parsed once."""
    layout, cells = parse_delimited(path)
    names = layout.names
    kept, carried = _select_columns(str(path), names, bool(layout.header), drop, ids)
    read = [parse_delimited_column(cells.column(i), comma=layout.separator != ",") for i in kept]
    for i, one in zip(kept, read, strict=True):
        if one.inexact:
            raise UserError(f"{path}: {_inexact_reason(names[i], one.inexact, COMMAND)}")
    if {".", ","} <= {one.mark for one in read}:
        raise UserError(
            f"{path} has columns with decimal points and others with decimal commas: use one mark, "
            "and none for thousands"
        )
    table = Table(
        tuple(names[i] for i in kept),
        tuple(one.cells for one in read),
        {names[i]: delimited_words(cells.column(i)) for i in carried},
        bool(layout.header),
        str(path),
        partial(delimited_place, path, layout, (*kept, *carried)),
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


def _commas(names: Sequence[str], read: Sequence[Values]) -> dict[str, bool]:
    """Whether each column of numbers has decimal commas; a column without marks is as the rest."""
    numbers = {
        name: one.mark for name, one in zip(names, read, strict=True) if one.cells.dtype != object
    }
    common = "," in numbers.values()
    return {name: "," in mark or (common and not mark) for name, mark in numbers.items()}


def _select_columns(
    where: str, names: Sequence[str], named: bool, drop: Sequence[str], ids: Sequence[str]
) -> tuple[list[int], list[int]]:
    """The indices of the columns of values, and of the columns to carry through."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where} has several columns called {name!r}: rename all but one")
    for one in (*drop, *ids):
        if one.strip() not in names:
            found = (
                f"it has {quoted_words(names)}"
                if named
                else f"give a number from 1 to {len(names)}"
            )
            what = "column" if named else "column names, nor a column"
            raise UserError(f"{where} has no {what} {one!r}; {found}")
    carried = [names.index(one.strip()) for one in dict.fromkeys(ids)]
    left = {names.index(one.strip()) for one in drop} | set(carried)
    kept = [i for i in range(len(names)) if i not in left]
    if not kept and not carried:
        raise UserError(f"{where} has no column left: drop fewer")
    return kept, carried


def _refuse_index(table: Table, nameless: Sequence[bool]) -> None:
    """Raise UserError for a column without a name that counts the rows, as spreadsheets do."""
    steps = np.arange(table.n_rows)
    for name, column, blank in zip(table.names, table.columns, nameless, strict=True):
        if (
            blank
            and column.dtype != object
            and any(np.array_equal(column, steps + start) for start in (0, 1))
        ):
            raise UserError(
                f"{table.where}: column {name!r} has no name and counts the rows: "
                f"{table.remedies.ways(name)}"
            )


def _refuse_first(table: Table) -> None:
    """Raise UserError if the first line of a table of words could be an example."""
    has_numbers = any(column.dtype != object for column in table.columns)
    for name, column in zip(table.names, table.columns, strict=True):
        if not has_numbers and name in column:
            raise UserError(
                f"{table.where}: {name!r} in the first line is also a value of its column: put a "
                "line of names above, or choose other names"
            )


def _inexact_reason(name: str, value: Any, remedies: Remedies) -> str:
    """The reason for refusing whole numbers that float64 rounds, and the remedies."""
    more = "subtract a constant", "make it decimal numbers if their last digits do not matter"
    return (
        f"column {name!r} holds {value}, a whole number beyond 2^53 whose last digits would be "
        f"lost: {remedies.ways(name, *more)}"
    )


def _parquet_table(path: Path, drop: Sequence[str], ids: Sequence[str]) -> Table:
    """The table of a .parquet file, read column by column, so that Arrow never copies it whole."""
    import narwhals as nw

    with open_parquet_file(path) as file:
        names = [str(name) for name in file.schema_arrow.names]

        def column(i: int) -> Any:
            with refusing_parquet_damage(path):  # PyArrow also reads columns called name.more
                cells = file.read(columns=[names[i]]).column(names[i])
            return nw.from_native(cells, series_only=True)

        return _series_table(names, column, drop, ids, str(path), COMMAND, 0)


def table_column_names(source: Any) -> list[str]:
    """The names of the columns of a file or a frame; numbers of columns without a name."""
    if not isinstance(source, Path):
        return [str(name) for name in open_table_frame(source).columns]
    if source.suffix.lower() == ".parquet":
        return [str(name) for name in open_parquet_file(source).schema_arrow.names]
    return find_layout(source, read_bytes(source)).names


def open_table_frame(frame: Any, where: str = "the frame") -> Any:
    """A data frame of any library as one of narwhals.

    Raises:
        UserError: if it is not a frame, is lazy, or has several columns of one name.
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
            f"{kind} is neither a data frame of pandas, Polars or PyArrow nor a path: save arrays "
            "as .npy"
        ) from None
    return data


def table_from_frame(
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
        where: name of the frame in error messages.
        remedies: the remedies that messages give.
        first: number of its first row in the table of which it is a piece.

    Raises:
        UserError: names the column that holds neither numbers nor words.
    """
    data = open_table_frame(frame, where)
    series = list(data.iter_columns())
    names = [str(name) for name in data.columns]
    return _series_table(names, series.__getitem__, drop, ids, where, remedies, first)


def _series_table(
    names: Sequence[str],
    series: Callable[[int], Any],
    drop: Sequence[str],
    ids: Sequence[str],
    where: str,
    remedies: Remedies,
    first: int,
) -> Table:
    """The table of series of narwhals, by their number; the rest as in `table_from_frame`."""
    kept, carried = _select_columns(where, names, True, drop, ids)
    table = Table(
        tuple(names[i] for i in kept),
        tuple(_series_cells(where, names[i], series(i), remedies) for i in kept),
        {names[i]: series(i).to_numpy() for i in carried},
        True,
        where,
        lambda row, column: f"row {first + row + 1}, column {names[(*kept, *carried)[column]]!r}",
        remedies,
    )
    _refuse_index(table, [bool(_NAMELESS.fullmatch(name)) for name in table.names])
    return table


_NAMELESS = re.compile(r"__index_level_\d+__|Unnamed: \d+")
"""The names that pandas gives to columns without a name."""


def _series_cells(where: str, name: str, series: Any, remedies: Remedies) -> np.ndarray:
    """The cells of a series: float64 with NaN, or words with None."""
    import narwhals as nw

    if series.dtype.is_temporal():
        raise UserError(f"{where}: column {name!r} holds {table_dates_reason(name, remedies)}")
    if series.dtype.is_numeric():
        numbers = np.array(series.cast(nw.Float64).to_numpy(), np.float64)
        large = np.abs(numbers) >= LARGEST_EXACT
        for i in np.flatnonzero(large & series.dtype.is_integer()):
            if int(series[int(i)]) != int(numbers[i]):
                raise UserError(f"{where}: {_inexact_reason(name, series[int(i)], remedies)}")
        return numbers
    cells = [None if is_null(one) else one for one in series.to_list()]
    present = [one for one in cells if one is not None]
    bits = [isinstance(one, bool | np.bool) for one in present]
    if not all(bits) and all(isinstance(one, int | float | np.number) for one in present):
        return np.array([np.nan if one is None else one for one in cells], np.float64)
    odd = next((one for one in present if not isinstance(one, str | bool | np.bool)), None)
    if odd is not None and not isinstance(odd, int | float | np.number):
        ways = remedies.ways(name, "make them words, as .astype(str) does")
        plain = f"{type(odd).__name__} objects, not numbers or words: {ways}"
        what = table_dates_reason(name, remedies) if hasattr(odd, "isoformat") else plain
        raise UserError(f"{where}: column {name!r} holds {what}")
    return object_cells(None if one is None else str(one) for one in cells)


def table_dates_reason(name: str, remedies: Remedies) -> str:
    """The reason for refusing dates, and the remedies."""
    return f"dates or times: {remedies.ways(name, 'write numbers, such as days since a date')}"

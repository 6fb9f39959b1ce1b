"""Read a user's .csv file: comma-separated numbers, perhaps with names, empty cells and labels.

Numbers must be in decimal notation. Anything that could be read as another number (1_000, 1,000,
0x10, 5%) is refused, even in the first line, where it would otherwise pass for a column name.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iwae.errors import UserError, shorten

MISSING_WORDS = ("", "na", "n/a", "nan", "null", "none", "?")
"""Cells of a .csv file that hold no value, in upper or lower case."""

MISSING_REMEDY = "if it is a missing value, use missing 'at-random' (--missing at-random)"

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity)", re.A | re.I)
"""A number; infinity is refused later, with its position."""

_ALMOST = re.compile(r"[-+−$€£¥]?(?:0x[\da-f]+|[.,]?\d[\d\s.,_'’]*(?:[ed][+-]?\d+)?\s*%?)", re.I)
"""A number in another notation, which cannot be a column name."""


class Cells(NamedTuple):
    """A .csv file whose cells may be empty.

    Attributes:
        names: the column names; empty if the file has none.
        cells: the text of the cells, row by row.
        values: the same as numbers `[n, d]`, float64; NaN for missing values.
    """

    names: tuple[str, ...]
    cells: list[list[str]]
    values: np.ndarray


def csv_numbers(path: Path, content: bytes) -> np.ndarray:
    """Comma-separated numbers `[n, d]`, one example per line, perhaps below a line of names.

    Raises:
        UserError: names the first invalid line.
    """
    text, first, _ = _read(path, content)
    lines = io.StringIO(text)
    for _ in range(first):
        lines.readline()
    try:
        numbers = np.loadtxt(lines, delimiter=",", ndmin=2, comments=None, quotechar='"')
    except ValueError as error:
        _checked_rows(path, text, first, missing=False)  # names the line
        raise UserError(f"{path}: {error}") from None
    if numbers.shape[1] == 1:  # here an empty line is an empty cell, which NumPy skips
        _checked_rows(path, text, first, missing=False)
    return numbers


def csv_cells(path: Path, content: bytes) -> Cells:
    """Comma-separated numbers, with cells that hold no value (`MISSING_WORDS`).

    Raises:
        UserError: names the first invalid line.
    """
    text, first, names = _read(path, content)
    rows = _checked_rows(path, text, first, missing=True)
    numbers = [[np.nan if _is_missing(cell) else float(cell) for cell in row] for row in rows]
    return Cells(names, rows, np.array(numbers))


def _read(path: Path, content: bytes) -> tuple[str, int, tuple[str, ...]]:
    """The text of a .csv file, the number of lines before the numbers, and the column names."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{path} is not UTF-8 text (it holds zero bytes): save it as UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
    end, row = next(((end, row) for end, row in _records(path, text) if row), (0, []))
    first, names = (end, tuple(row)) if _are_names(row) else (0, ())
    if not row or (names and text.count("\n") < end):
        raise UserError(f"{path} holds no lines of numbers")
    if _count_up(row):
        raise UserError(
            f"{path}: line {end} counts up from 0: if it numbers the columns, leave it out or give "
            "them names; if it is an example, write 0.0 for 0"
        )
    return text, first, names


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The last line number (from 1) and the cells of each record; no cells for an empty line."""
    reader = csv.reader(io.StringIO(text))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(
            f"{path}: line {reader.line_num}: {error}; is a quotation mark not closed?"
        ) from None


def _rows(path: Path, text: str, first: int) -> Iterator[tuple[int, list[str]]]:
    """The records of examples. An empty line is one only in a single column, as an empty cell."""
    records = [record for record in _records(path, text) if record[0] > first]
    single = all(len(row) <= 1 for _, row in records)
    return ((line, row or [""]) for line, row in records if row or single)


def _are_names(row: list[str]) -> bool:
    """Whether no cell is a number, in whatever notation, and not all mark a missing value."""
    return not any(map(_is_almost, row)) and not all(map(_is_missing, row))


def _count_up(row: list[str]) -> bool:
    """Whether cells are 0, 1, 2 ..., perhaps after an empty one: the default header of pandas."""
    cells = row[1:] if row and not row[0] else row
    return len(cells) > 2 and cells == [str(i) for i in range(len(cells))]


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING_WORDS


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell.strip()) is not None


def _is_almost(cell: str) -> bool:
    return _is_number(cell) or _ALMOST.fullmatch(cell.strip()) is not None


def _checked_rows(path: Path, text: str, first: int, *, missing: bool) -> list[list[str]]:
    """The cells of each example; UserError for the first invalid line."""
    rows: list[list[str]] = []
    for line, row in _rows(path, text, first):
        for column, cell in enumerate(row, start=1):
            if (missing and _is_missing(cell)) or _is_number(cell):
                continue
            place = f"{path}: line {line}, column {column}"
            raise UserError(f"{place}: {cell[:40]!r} is not a number{_remedy(cell)}")
        rows.append(row)
        if len(row) != len(rows[0]):
            raise UserError(
                f"{path}: line {line} has {len(row)} columns, but the lines above have "
                f"{len(rows[0])}"
            )
    return rows


def _remedy(cell: str) -> str:
    """The remedy for a cell that is not a number, if it can be guessed."""
    if _is_missing(cell):
        return f"; {MISSING_REMEDY}"
    if ";" in cell or "\t" in cell:
        return "; separate cells by commas, and write decimals with a point"
    return "; write numbers like 1234.5 or 1.2345e3" if _is_almost(cell) else ""


# --- labels ---------------------------------------------------------------------------------


class LabelColumn(NamedTuple):
    """The column of a .csv file that holds labels.

    Attributes:
        place: the index of the column, from 0.
        labels: one for each row, `[n]`: whole numbers if all of them are, else words.
    """

    place: int
    labels: np.ndarray


def take_labels(path: Path, content: bytes, column: str) -> tuple[bytes, LabelColumn]:
    """Replace every label by 0, so that all of the file can be read as numbers.

    Args:
        column: the name of the column, or its number from 1 in a file without names.

    Returns:
        The new content of the file, and the labels.

    Raises:
        UserError: if there is no such column, a label is missing, or no two rows share one.
    """
    text, first, names = _read(path, content)
    records = list(_records(path, text))
    width = max(len(row) for _, row in records)
    place, cells = _place(path, [name.strip() for name in names], width, column), []
    for line, row in records:
        if line > first and len(row) > place:
            if _is_missing(row[place]):
                raise UserError(
                    f"{path}: line {line} has no label (column {column!r}): remove such lines"
                )
            cells.append(row[place].strip())
            row[place] = "0.0"
    labels = _as_labels(path, column, cells)
    if len(labels) > 1 and len(np.unique(labels)) == len(labels):
        raise UserError(
            f"{path}: the column {column!r} has a different value in every line, so it cannot be "
            "a label: name a column whose values repeat"
        )
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(row for _, row in records)
    return written.getvalue().encode(), LabelColumn(place, labels)


def _place(path: Path, names: list[str], width: int, column: str) -> int:
    """The index of a column, from 0."""
    if not names:
        if not (column.isdecimal() and 1 <= int(column) <= width):
            raise UserError(
                f"{path} has no column names: give the number of the column of labels, from 1 to "
                f"{width}, not {column!r}"
            )
        return int(column) - 1
    if names.count(column.strip()) != 1:
        found = "no column" if column.strip() not in names else "several columns called"
        raise UserError(f"{path} has {found} {column!r}; it has {_few(names)}")
    return names.index(column.strip())


def _few(names: list[str]) -> str:
    return shorten(", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else ""))


LARGEST_LABEL = 2**53
"""Whole numbers beyond it are labels as written, because not all are exact in float64."""


def _as_labels(path: Path, column: str, cells: list[str]) -> np.ndarray:
    """Labels as whole numbers if all are numbers, otherwise as words."""
    if not all(map(_is_number, cells)):
        return np.array(cells)
    numbers = np.array(list(map(float, cells)))
    odd = np.flatnonzero(numbers != np.rint(numbers))
    if odd.size:
        raise UserError(
            f"{path}: the column {column!r} holds {cells[odd[0]]}, but labels must be words or "
            "whole numbers"
        )
    is_exact = bool((np.abs(numbers) <= LARGEST_LABEL).all())
    return numbers.astype(np.int64) if is_exact else np.array(cells)

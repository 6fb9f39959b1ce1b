"""A user's .csv file: numbers separated by commas, perhaps names, empty cells, and labels.

Numbers are in decimal notation, and only in that: what could mean another number than it seems to
(1_000, 1,000, 0x10, 5%) is refused, also in the first line, which would otherwise pass for one of
names.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iwae.errors import UserError

MISSING_WORDS = ("", "na", "n/a", "nan", "null", "none", "?")
"""Cells of a .csv file that hold no value, in any case."""

MISSING_REMEDY = "if it is missing, say so: missing 'at-random' (--missing at-random)"

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity)", re.A | re.I)
"""A number; an infinite one is refused later, by its place."""

_ALMOST = re.compile(r"[-+−$€£¥]?(?:0x[\da-f]+|[.,]?\d[\d\s.,_'’]*(?:[ed][+-]?\d+)?\s*%?)", re.I)
"""What has to be a number in other notation: no name of a column."""


class Cells(NamedTuple):
    """A .csv file of which cells may be empty.

    Attributes:
        names: of the columns; empty if the file does not say.
        cells: what is written, line by line.
        values: the same as numbers `[n, d]`, float64; NaN where there is none.
    """

    names: tuple[str, ...]
    cells: list[list[str]]
    values: np.ndarray


def csv_numbers(path: Path, content: bytes) -> np.ndarray:
    """Numbers `[n, d]` separated by commas, one example a line, perhaps under a line of names.

    Raises:
        UserError: names the first line that does not fit.
    """
    text, first, _ = _read(path, content)
    lines = io.StringIO(text)
    for _ in range(first):
        lines.readline()
    try:
        numbers = np.loadtxt(lines, delimiter=",", ndmin=2, comments=None, quotechar='"')
    except ValueError as error:
        _refuse_odd_line(path, text, first, missing=False)
        raise UserError(f"{path}: {error}") from None
    if numbers.shape[1] == 1:  # where an empty line is an empty cell, which NumPy leaves out
        _refuse_odd_line(path, text, first, missing=False)
    return numbers


def csv_cells(path: Path, content: bytes) -> Cells:
    """Numbers separated by commas, with cells that hold no value (`MISSING_WORDS`).

    Raises:
        UserError: names the first line that does not fit.
    """
    text, first, names = _read(path, content)
    _refuse_odd_line(path, text, first, missing=True)
    rows = [row for _, row in _rows(path, text, first)]
    numbers = [[np.nan if _is_missing(cell) else float(cell) for cell in row] for row in rows]
    return Cells(names, rows, np.array(numbers))


def _read(path: Path, content: bytes) -> tuple[str, int, tuple[str, ...]]:
    """What a .csv file says, how many lines come before the numbers, and the names in them."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text in UTF-8 (byte {error.start}): save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{path} is not text in UTF-8 (it holds zero bytes): save it as UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
    end, row = next(((end, row) for end, row in _records(path, text) if row), (0, []))
    first, names = (end, tuple(row)) if _are_names(row) else (0, ())
    if not row or (names and text.count("\n") < end):
        raise UserError(f"{path} holds no lines of numbers")
    if _count_up(row):
        raise UserError(
            f"{path}: line {end} counts from 0 on: if it numbers the columns, leave it out or give "
            "them names; if it is an example, write 0.0 for 0"
        )
    return text, first, names


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The number of its last line, from 1, and the cells of each record; none of an empty line."""
    reader = csv.reader(io.StringIO(text))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(
            f"{path}: line {reader.line_num}: {error}; is a quotation mark not closed?"
        ) from None


def _rows(path: Path, text: str, first: int) -> Iterator[tuple[int, list[str]]]:
    """The records of examples. Empty lines are none, but in a single column: an empty cell."""
    records = [record for record in _records(path, text) if record[0] > first]
    single = all(len(row) <= 1 for _, row in records)
    return ((line, row or [""]) for line, row in records if row or single)


def _are_names(row: list[str]) -> bool:
    """Whether no cell is a number, in whatever notation, and not all say that one is missing."""
    return not any(map(_is_almost, row)) and not all(map(_is_missing, row))


def _count_up(row: list[str]) -> bool:
    """Whether cells are 0, 1, 2 ..., perhaps after one without a name: pandas' columns."""
    cells = row[1:] if row and not row[0] else row
    return len(cells) > 2 and cells == [str(i) for i in range(len(cells))]


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING_WORDS


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell.strip()) is not None


def _is_almost(cell: str) -> bool:
    return _is_number(cell) or _ALMOST.fullmatch(cell.strip()) is not None


def _refuse_odd_line(path: Path, text: str, first: int, *, missing: bool) -> None:
    """Raise UserError for the first line that does not fit."""
    width = None
    for line, row in _rows(path, text, first):
        for column, cell in enumerate(row, start=1):
            if (missing and _is_missing(cell)) or _is_number(cell):
                continue
            place = f"{path}: line {line}, column {column}"
            raise UserError(f"{place}: {cell[:40]!r} is not a number{_remedy(cell)}")
        width = width or len(row)
        if len(row) != width:
            raise UserError(f"{path}: line {line} has {len(row)} columns, the lines above {width}")


def _remedy(cell: str) -> str:
    """What to do about a cell that is no number, where that can be guessed."""
    if _is_missing(cell):
        return f"; {MISSING_REMEDY}"
    if ";" in cell or "\t" in cell:
        return "; separate cells by commas, and write decimals with a point"
    return "; write numbers like 1234.5 or 1.2345e3" if _is_almost(cell) else ""


# --- labels ---------------------------------------------------------------------------------


class LabelColumn(NamedTuple):
    """The column of a .csv file that holds labels.

    Attributes:
        place: of the column, from 0.
        labels: of each line, `[n]`: whole numbers if all of them are, else words.
    """

    place: int
    labels: np.ndarray


def take_labels(path: Path, content: bytes, column: str) -> tuple[bytes, LabelColumn]:
    """A file with 0 for every label, so that all of it can be read as numbers, and the labels.

    Args:
        column: its name, or its number from 1 in a file without names.

    Raises:
        UserError: if there is no such column, a label is missing, or no two lines have the same.
    """
    text, first, names = _read(path, content)
    records = list(_records(path, text))
    width = max(len(row) for _, row in records)
    place, cells = _place(path, [name.strip() for name in names], width, column), []
    for line, row in records:
        if line > first and len(row) > place:
            if _is_missing(row[place]):
                raise UserError(
                    f"{path}: line {line} has no label (column {column!r}): leave such lines out"
                )
            cells.append(row[place].strip())
            row[place] = "0.0"
    labels = _as_labels(path, column, cells)
    if len(labels) > 1 and len(np.unique(labels)) == len(labels):
        raise UserError(
            f"{path}: the column {column!r} has a different value in every line, so that it is no "
            "label: name one that lines have in common"
        )
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(row for _, row in records)
    return written.getvalue().encode(), LabelColumn(place, labels)


def _place(path: Path, names: list[str], width: int, column: str) -> int:
    """Where a column is, from 0."""
    if not names:
        if not (column.isdecimal() and 1 <= int(column) <= width):
            raise UserError(
                f"{path} has no line of names, so that the label is the number of its column, from "
                f"1 to {width}, not {column!r}"
            )
        return int(column) - 1
    if names.count(column.strip()) != 1:
        found = "no column" if column.strip() not in names else "several columns called"
        raise UserError(f"{path} has {found} {column!r}; it has {_few(names)}")
    return names.index(column.strip())


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")


LARGEST_LABEL = 2**53
"""Whole numbers beyond it are labels as they are written, for not all are float64."""


def _as_labels(path: Path, column: str, cells: list[str]) -> np.ndarray:
    """Labels as whole numbers if all are numbers; otherwise they are words."""
    if not all(map(_is_number, cells)):
        return np.array(cells)
    numbers = np.array(list(map(float, cells)))
    odd = np.flatnonzero(numbers != np.rint(numbers))
    if odd.size:
        raise UserError(
            f"{path}: the column {column!r} holds {cells[odd[0]]}, and labels are words or whole "
            "numbers"
        )
    is_exact = bool((np.abs(numbers) <= LARGEST_LABEL).all())
    return numbers.astype(np.int64) if is_exact else np.array(cells)

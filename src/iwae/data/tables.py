"""A .csv file: numbers separated by commas, perhaps names, cells that are empty, and labels."""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._types import UserError

MISSING_WORDS = ("", "na", "n/a", "nan", "null", "none", "?")
"""Cells of a .csv file that hold no value, in any case."""

MISSING_REMEDY = "if it is missing, say so: missing 'at-random' (--missing at-random)"


def csv_numbers(path: Path, content: bytes) -> np.ndarray:
    """Numbers separated by commas, one example a line, perhaps under a line of names."""
    text, header = _text(path, content)
    try:
        return np.loadtxt(
            io.StringIO(text, newline=None),
            delimiter=",",
            skiprows=header,
            ndmin=2,
            comments=None,
            quotechar='"',
        )
    except ValueError as error:
        raise UserError(f"{path}: {_csv_fault(text, header) or error}") from None


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


def csv_cells(path: Path, content: bytes) -> Cells:
    """Numbers separated by commas, with cells that hold no value (`MISSING_WORDS`)."""
    text, header = _text(path, content)
    fault = _csv_fault(text, header, missing=True)
    if fault is not None:
        raise UserError(f"{path}: {fault}")
    lines = [line for line in csv.reader(io.StringIO(text)) if line]
    names, rows = (tuple(lines[0]), lines[1:]) if header else ((), lines)
    if not rows:
        raise UserError(f"{path} holds no lines of numbers")
    numbers = [[np.nan if _is_missing(cell) else float(cell) for cell in row] for row in rows]
    return Cells(names, rows, np.array(numbers))


def _text(path: Path, content: bytes) -> tuple[str, int]:
    """What a .csv file says, and whether its first line is one of names: 1 or 0."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start})") from None
    try:
        header = _has_header(text)
    except csv.Error as error:
        raise UserError(f"{path} is no table: {error}") from None
    body = text.strip()
    if not body or (header and "\n" not in body):
        raise UserError(f"{path} holds no lines of numbers")
    return text, header


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING_WORDS


def _has_header(text: str) -> int:
    """1 if no cell of the first line is a number (an empty cell is none), else 0."""
    first = next(csv.reader(io.StringIO(text)), [])
    return int(bool(first) and not any(_is_number(cell) for cell in first))


def _csv_fault(text: str, header: int, *, missing: bool = False) -> str | None:
    """The first line that does not fit, in words; slow, so only for a file that has one."""
    lines = csv.reader(io.StringIO(text))
    width = None
    for row in lines:
        if not row or (header and lines.line_num == 1):
            continue
        for column, cell in enumerate(row, start=1):
            if _is_missing(cell):
                if not missing:
                    place = f"line {lines.line_num}, column {column}"
                    return f"{place}: {cell[:40]!r} is not a number; {MISSING_REMEDY}"
            elif not _is_number(cell):
                return f"line {lines.line_num}, column {column}: {cell[:40]!r} is not a number"
        width = width or len(row)
        if len(row) != width:
            return f"line {lines.line_num} has {len(row)} columns, the lines above {width}"
    return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


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
    text, header = _text(path, content)
    try:
        lines = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise UserError(f"{path} is no table: {error}") from None
    names = [name.strip() for name in lines[0]] if header else []
    place = _place(path, names, max(map(len, lines)), column)
    cells = []
    for number, line in enumerate(lines, start=1):
        if number > header and len(line) > place:
            if _is_missing(line[place]):
                raise UserError(
                    f"{path}: line {number} has no label (column {column!r}): leave such lines out"
                )
            cells.append(line[place].strip())
            line[place] = "0"
    labels = _as_labels(path, column, cells)
    if len(labels) > 1 and len(np.unique(labels)) == len(labels):
        raise UserError(
            f"{path}: the column {column!r} has a different value in every line, so that it is no "
            "label: name one that lines have in common"
        )
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(lines)
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

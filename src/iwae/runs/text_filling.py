"""Copies of a text file of cells in which only some cells are replaced."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from iwae.errors import UserError
from iwae.files import read_bytes

BOM = "\ufeff"


class Changes(NamedTuple):
    """The changes of a row.

    Attributes:
        cells: new cells, by the number of their column from 0.
        added: cells to add at the end.
    """

    cells: Mapping[int, str]
    added: Sequence[str]


def filled_text(
    file: Path,
    separator: str,
    width: int,
    rows: Iterable[Sequence[Changes]],
    *,
    names: Sequence[str] | None = None,
    copies: int = 1,
) -> Iterator[list[str]]:
    """The text of changed copies of a file: a list with a line of each copy, line by line.

    A byte order mark, quotes, line ends and empty lines stay. A new cell is quoted if the old one
    was, or if it needs quotes.

    Args:
        file: UTF-8 text.
        separator: of the cells.
        width: number of cells of a row; an empty line is a row only if it is one.
        rows: for each row, its changes in each copy.
        names: names of the columns to add; None if the file has no header.
        copies: number of copies.

    Raises:
        UserError: if the file has fewer rows.
    """
    text, left, is_header = read_bytes(file).decode(), iter(rows), names is not None
    if text.startswith(BOM):
        yield [BOM] * copies
    same = [Changes({}, ())] * copies
    for cells, end in _lines(text.removeprefix(BOM), separator):
        each: Sequence[Changes] = same
        if cells != [""] or (width == 1 and not is_header):
            each = [Changes({}, names or ())] * copies if is_header else next(left, same)
            is_header = False
        yield [_changed(cells, changes, separator) + end for changes in each]
    if next(left, None) is not None:
        raise UserError(f"{file} changed while it was read: try again")


def _changed(cells: Sequence[str], changes: Changes, separator: str) -> str:
    """A line of text with changed and added cells."""
    cells = [*cells, *(_quoted(cell, separator) for cell in changes.added)]
    for i, cell in changes.cells.items():
        cells[i] = _quoted(cell, separator, quoted=cells[i].startswith('"'))
    return separator.join(cells)


def _lines(text: str, separator: str) -> Iterator[tuple[list[str], str]]:
    """The cells of each line as written, and its end."""
    mark = re.escape(separator)
    plain = rf"[^{mark}\r\n]*"
    cell = re.compile(rf'("[^"]*(?:""[^"]*)*"{plain}|{plain})({mark}|\r\n|\r|\n|\Z)')
    cells = []
    for match in cell.finditer(text):
        cells.append(match[1])
        if match[2] != separator:
            yield cells, match[2]
            cells = []


def _quoted(cell: str, separator: str, *, quoted: bool = False) -> str:
    """A cell as text, in quotes if it needs them."""
    if not quoted and not any(mark in cell for mark in (separator, '"', "\r", "\n")):
        return cell
    return '"' + cell.replace('"', '""') + '"'

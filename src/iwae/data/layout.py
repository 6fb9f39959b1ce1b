"""Find the layout of a text file of cells: its separator, its header and its rows.

A first line that holds a number in any notation (1_000, 1,000, 0x10, 5%) does not name the columns.
"""

import codecs
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from iwae.data.cells import (
    COMMA_NUMBER,
    GROUPED,
    MISSING_WORDS,
    is_number_cell,
    is_number_like_cell,
)
from iwae.errors import UserError

SEPARATORS = (",", ";", "\t", "|")

OTHERS = (":", " ", "^", "~", "#")
"""Separators to try if the first line has none of `SEPARATORS`."""

LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
"""A line with its end."""


class Layout(NamedTuple):
    """The layout of a text file.

    Attributes:
        separator: the separator of its cells.
        header: the cells of the first line, if they name the columns.
        width: the number of cells of a row.
        start, end: the range of the rows, in bytes.
        first: the number of lines before the rows.
    """

    separator: str
    header: tuple[str, ...]
    width: int
    start: int
    end: int
    first: int

    @property
    def names(self) -> list[str]:
        """The stripped names of the columns; numbers, from 1, of columns without a name."""
        written = [cell.strip() for cell in self.header] or [""] * self.width
        return [name or str(i) for i, name in enumerate(written, start=1)]


class Record(NamedTuple):
    """A line, or several lines if a quoted cell has line breaks; without cells if it is empty."""

    line: int  # number of its last line, from 1
    end: int  # in bytes
    cells: list[str]


def find_layout(path: Path, content: bytes) -> Layout:
    """Find the layout of a text file from its first lines; the path is for messages."""
    _refuse_encoding(path, content)
    heads = _heads(path, content, SEPARATORS)
    separator = max(heads, key=lambda one: _fit(heads[one], one))
    if not any(len(one.cells) > 1 for head in heads.values() for one in head[:1]):
        others = _heads(path, content, OTHERS)
        separator = _other_separator(path, others) or separator
        heads |= others
    if path.suffix.lower() == ".tsv":
        separator = _require_tabs(path, heads, separator)
    head = heads[separator]
    header = head[0] if head and _is_header(head[0].cells) else None
    rows = head[1:] if header else head
    if not rows:
        raise UserError(f"{path} holds no lines of values")
    width, first = len(rows[0].cells), head[0]
    if _counts_up(first.cells):
        raise UserError(
            f"{path}: line {first.line} counts up from 0: if it numbers the columns, leave it out "
            "or give them names; if it is an example, write 0.0 for 0"
        )
    if header and len(header.cells) != width:
        _refuse_header(path, header, rows[0])
    start = header.end if header else _bom(content)
    names = tuple(header.cells) if header else ()
    end = _end_of_rows(content, b"\r\n \t".replace(separator.encode(), b""))
    return Layout(separator, names, width, start, end, header.line if header else 0)


def _refuse_encoding(path: Path, content: bytes) -> None:
    """Raise UserError unless the content is UTF-8 without zero bytes."""
    decoder, size = codecs.getincrementaldecoder("utf-8")(), 2**22
    for start in range(0, len(content), size):
        try:
            decoder.decode(content[start : start + size], final=start + size >= len(content))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 text (near byte {start + error.start}): save it as UTF-8"
            ) from None
    if b"\0" in content:
        raise UserError(f"{path} is not UTF-8 text (it holds zero bytes): save it as UTF-8")


def _heads(path: Path, content: bytes, separators: Sequence[str]) -> dict[str, list[Record]]:
    """The first records that are not empty, by each separator that can split them."""
    heads, error = {}, None
    for one in separators:
        try:
            records = (record for record in _csv_records(path, content, one) if record.cells)
            heads[one] = list(islice(records, 50))
        except UserError as failed:  # a wrong separator leaves a long line a cell, too long for csv
            error = error or failed
    if error is not None and not heads:
        raise error
    return heads


def _csv_records(path: Path, content: bytes, separator: str) -> Iterator[Record]:
    """The records of a text; PyArrow, which parses it all, keeps no positions."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for match in LINE.finditer(content, _bom(content)):
            end = match.end()
            yield match.group().decode()

    reader = csv.reader(lines(), delimiter=separator)
    try:
        for cells in reader:
            yield Record(reader.line_num, end, cells)
    except csv.Error as error:
        raise UserError(
            f"{path}: line {reader.line_num}: {error}; is a quotation mark not closed?"
        ) from None


def _bom(content: bytes) -> int:
    return len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0


def _end_of_rows(content: bytes, blank: bytes) -> int:
    end = len(content)
    while end and content[end - 1] in blank:
        end -= 1
    return end


def _fit(head: Sequence[Record], separator: str) -> tuple[bool, float]:
    """The fit of a separator: whether it gives rows of equal width, and the share of good cells.

    A cell is good if it is a number or holds no other separator. (In 1,5;2,5 the semicolon leaves
    numbers with decimal commas, the comma leaves 5;2.)
    """
    widths = {len(one.cells) for one in head[1:] or head}
    cells = [cell.strip() for one in head for cell in one.cells]
    others = [one for one in SEPARATORS if one != separator]
    good = [not any(o in cell for o in others) or _is_decimal(cell, separator) for cell in cells]
    return len(widths) == 1 and widths != {1}, sum(good) / max(len(good), 1)


def _other_separator(path: Path, heads: Mapping[str, Sequence[Record]]) -> str | None:
    """The one of `OTHERS` that splits most lines, unless it only parts words or thousands.

    Raises:
        UserError: unless it gives named columns of one length, since 12:30 may be one cell or two.
    """
    for separator, head in heads.items():
        sizes = [len(one.cells) for one in head]
        if 2 * sum(size > 1 for size in sizes) <= len(sizes) or sizes[0] == 1:
            continue
        if _fit(head, separator)[1] < 1 or _is_text(head, separator):
            continue
        widths = sorted(set(sizes))
        if len(widths) == 1 and len(head) > 1 and _is_header(head[0].cells):
            return separator
        raise UserError(
            f"{path}: its lines have {' or '.join(map(str, widths[:2]))} cells separated by "
            f"{separator!r}: separate columns by commas, or name them in the first line and give "
            f"each line as many; put a cell that holds {separator!r} in double quotes"
        )
    return None


def _is_text(head: Sequence[Record], separator: str) -> bool:
    """Whether the separator is a blank between the words or the thousands of a single cell."""
    rows = [one.cells for one in head[1:] or head]
    numbers = any(all(map(is_number_cell, column)) for column in zip(*rows, strict=False))
    thousands = all(GROUPED.fullmatch(separator.join(cells)) for cells in rows)
    return separator == " " and (thousands or not numbers)


def _is_decimal(cell: str, separator: str) -> bool:
    """Whether a cell is a number with a decimal comma, perhaps with separated thousands."""
    return separator != "," and any(one.fullmatch(cell) for one in (COMMA_NUMBER, GROUPED))


def _require_tabs(path: Path, heads: Mapping[str, Sequence[Record]], best: str) -> str:
    """The tab; UserError if no line has one, and each has another separator."""
    widths = {len(one.cells) for one in heads["\t"]} if "\t" in heads else {1}
    found = {len(one.cells) for one in heads[best]}
    decimal = all(COMMA_NUMBER.fullmatch(",".join(one.cells)) for one in heads[best])
    if widths == {1} and best != "\t" and len(found) == 1 and not (best == "," and decimal):
        raise UserError(
            f"{path} is not a .tsv file: its columns are separated by {best!r}, not by tabs; "
            "rename it to .csv"
        )
    return "\t"


def _is_header(row: list[str]) -> bool:
    """Whether no cell is a number, in any notation, and some cell holds a value."""
    is_blank = all(cell.strip().lower() in MISSING_WORDS for cell in row)
    return not any(map(is_number_like_cell, row)) and not is_blank


def _counts_up(row: list[str]) -> bool:
    """Whether the cells are 0, 1, 2 ..., perhaps after an empty one, as pandas numbers columns."""
    cells = row[1:] if row and not row[0] else row
    return len(cells) > 2 and cells == [str(i) for i in range(len(cells))]


def _refuse_header(path: Path, header: Record, row: Record) -> None:
    """Raise UserError for a header whose width is not that of the rows."""
    decimal = COMMA_NUMBER.fullmatch(",".join(row.cells))
    remedy = (
        "write decimals with a point, or separate columns by semicolons"
        if decimal and len(header.cells) == 1
        else "name each once, also one of row numbers (which --drop or --id can then take)"
    )
    raise UserError(
        f"{path}: line {header.line} names {len(header.cells)} columns, but line {row.line} has "
        f"{len(row.cells)} cells: {remedy}"
    )


def layout_records(path: Path, content: bytes, layout: Layout) -> Iterator[Record]:
    """The records below the header; an empty line is a row only of a single column."""
    for one in _csv_records(path, content[: layout.end], layout.separator):
        if one.line > layout.first and (one.cells or layout.width == 1):
            yield one

"""Parse text files of cells: .csv and .tsv, with any usual separator.

Numbers must be in decimal notation, with a comma for the point only where the separator is another.
Anything that could be read as another number (1_000, 1,000, 0x10, 5%) does not pass for a column
name in the first line. PyArrow is imported on first use.
"""

import codecs
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.errors import UserError

MISSING_WORDS = ("", "na", "n/a", "nan", "null", "none", "?")
"""Cells of a text file that hold no value, in upper or lower case."""

MISSING_REMEDY = "if it is a missing value, use missing 'at-random' (--missing at-random)"

SEPARATORS = (",", ";", "\t", "|")

OTHERS = (":", " ", "^", "~", "#")
"""Separators of files whose first line has none of `SEPARATORS`."""

LARGEST_EXACT = 2**53
"""Not all whole numbers beyond it are exact in float64."""

_POINT = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity))"
_COMMA = r"[+-]?(?:[0-9]+,?[0-9]*|,[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBER, _COMMA_NUMBER = re.compile(_POINT), re.compile(_COMMA)
"""A number, with a decimal point or comma; infinity is refused later, with its position."""

_ALMOST = re.compile(
    r"[-+−]?[$€£¥]?\s*[-+−]?(?:0x[\da-f]+|[.,]?\d[\d\s.,_'’]*(?:[ed][+-]?\d+)?\s*[%$€£¥]?)", re.I
)
"""A number in another notation, which cannot be a column name."""

_GROUPED = re.compile(r"[-+−]?\d{1,3}([.,\s_'’])\d{3}(?:\1\d{3})*(?:(?!\1)[.,]\d*)?")
"""A number whose thousands are separated."""
_AMBIGUOUS = "^[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}$"
"""A number whose decimal mark could separate thousands."""

_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def is_number(word: str) -> bool:
    """Whether a word is a number in decimal notation with a point."""
    return _NUMBER.fullmatch(word.strip()) is not None


def is_almost(word: str) -> bool:
    """Whether a word is a number in any notation."""
    return is_number(word) or _ALMOST.fullmatch(word.strip()) is not None


def in_digits(word: str) -> str:
    """How to write a word that is almost a number."""
    grouped = _GROUPED.fullmatch(word.strip())
    if grouped is None:
        return "write numbers like 1234.5 or 1.2345e3"
    mark = "the space" if grouped[1].isspace() else repr(grouped[1])
    return f"write numbers like 1234.5 or 1.2345e3 (without {mark}, if it separates thousands)"


def is_missing(word: str) -> bool:
    """Whether a cell of a text file holds no value."""
    return word.strip().lower() in MISSING_WORDS


def read_bytes(path: Path) -> bytes:
    """The content of a file; UserError if it cannot be read or is empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise UserError(f"{path} is empty")
    return content


class Layout(NamedTuple):
    """The layout of a text file.

    Attributes:
        separator: of its cells.
        header: the cells of the first line, if they are names.
        width: the number of cells of a row.
        start, end: the bytes of the rows.
        first: the number of lines before the rows.
    """

    separator: str
    header: tuple[str, ...]
    width: int
    start: int
    end: int
    first: int


class Record(NamedTuple):
    """A line, or several if a quoted cell has line breaks; no cells if it is empty."""

    line: int  # the last, from 1
    end: int  # in bytes
    cells: list[str]


def parse(path: Path) -> tuple[Layout, Any]:
    """The layout of a file, and its cells as a PyArrow table of strings, parsed once."""
    content = read_bytes(path)
    layout = _layout(path, content)
    return layout, _parsed(path, content, layout)


def _layout(path: Path, content: bytes) -> Layout:
    _check_text(path, content)
    heads = _heads(path, content, SEPARATORS)
    separator = max(heads, key=lambda one: _fits(heads[one], one))
    if not any(len(one.cells) > 1 for head in heads.values() for one in head[:1]):
        others = _heads(path, content, OTHERS)
        separator = _other(path, others) or separator
        heads |= others
    if path.suffix.lower() == ".tsv":
        separator = _tabs(path, heads, separator)
    head = heads[separator]
    header = head[0] if head and _are_names(head[0].cells) else None
    rows = head[1:] if header else head
    if not rows:
        raise UserError(f"{path} holds no lines of values")
    width, first = len(rows[0].cells), head[0]
    if _count_up(first.cells):
        raise UserError(
            f"{path}: line {first.line} counts up from 0: if it numbers the columns, leave it out "
            "or give them names; if it is an example, write 0.0 for 0"
        )
    if header and len(header.cells) != width:
        _refuse_header(path, header, rows[0])
    start = header.end if header else _bom(content)
    names = tuple(header.cells) if header else ()
    end = _end(content, b"\r\n \t".replace(separator.encode(), b""))
    return Layout(separator, names, width, start, end, header.line if header else 0)


def _check_text(path: Path, content: bytes) -> None:
    """Raise UserError unless the content is UTF-8, without zero bytes."""
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
    """The first records with cells, by each separator that can read them."""
    heads, error = {}, None
    for one in separators:
        try:
            records = (record for record in _records(path, content, one) if record.cells)
            heads[one] = list(islice(records, 50))
        except UserError as failed:  # by a wrong separator, a long line is a single cell, too long
            error = error or failed
    if error is not None and not heads:
        raise error
    return heads


def _records(path: Path, content: bytes, separator: str) -> Iterator[Record]:
    """The records of a text, for its head and for places; the rest is for PyArrow."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for match in _LINE.finditer(content, _bom(content)):
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


def _end(content: bytes, blank: bytes) -> int:
    end = len(content)
    while end and content[end - 1] in blank:
        end -= 1
    return end


def _fits(head: Sequence[Record], separator: str) -> tuple[bool, float]:
    """How well a separator fits: whether it makes equal columns, and the share of good cells.

    A cell is good if it is a number, or has no other separator. (In 1,5;2,5 the semicolon leaves
    numbers with decimal commas, the comma leaves 5;2.)
    """
    widths = {len(one.cells) for one in head[1:] or head}
    cells = [cell.strip() for one in head for cell in one.cells]
    others = [one for one in SEPARATORS if one != separator]
    good = [not any(o in cell for o in others) or _is_decimal(cell, separator) for cell in cells]
    return len(widths) == 1 and widths != {1}, sum(good) / max(len(good), 1)


def _other(path: Path, heads: Mapping[str, Sequence[Record]]) -> str | None:
    """One of `OTHERS`, if it is in most lines, and not only between words or thousands.

    Raises:
        UserError: unless it makes equal columns with names, since 12:30 may be one cell or two.
    """
    for separator, head in heads.items():
        sizes = [len(one.cells) for one in head]
        if 2 * sum(size > 1 for size in sizes) <= len(sizes) or sizes[0] == 1:
            continue
        if _fits(head, separator)[1] < 1 or _is_text(head, separator):
            continue
        widths = sorted(set(sizes))
        if len(widths) == 1 and len(head) > 1 and _are_names(head[0].cells):
            return separator
        raise UserError(
            f"{path}: its lines have {' or '.join(map(str, widths[:2]))} cells separated by "
            f"{separator!r}: separate columns by commas, or name them in the first line and give "
            f"each line as many; put a cell that holds {separator!r} in double quotes"
        )
    return None


def _is_text(head: Sequence[Record], separator: str) -> bool:
    """Whether blanks stand between the words or the thousands of single cells."""
    rows = [one.cells for one in head[1:] or head]
    numbers = any(all(map(is_number, column)) for column in zip(*rows, strict=False))
    thousands = all(_GROUPED.fullmatch(separator.join(cells)) for cells in rows)
    return separator == " " and (thousands or not numbers)


def _is_decimal(cell: str, separator: str) -> bool:
    """Whether a cell is a number with a decimal comma, perhaps with separated thousands."""
    return separator != "," and any(one.fullmatch(cell) for one in (_COMMA_NUMBER, _GROUPED))


def _tabs(path: Path, heads: Mapping[str, Sequence[Record]], best: str) -> str:
    """The tab; UserError if the lines have none, but another separator in each."""
    widths = {len(one.cells) for one in heads["\t"]} if "\t" in heads else {1}
    found = {len(one.cells) for one in heads[best]}
    decimal = all(_COMMA_NUMBER.fullmatch(",".join(one.cells)) for one in heads[best])
    if widths == {1} and best != "\t" and len(found) == 1 and not (best == "," and decimal):
        raise UserError(
            f"{path} is no .tsv file: its columns are separated by {best!r}, not by tabs; rename "
            "it to .csv"
        )
    return "\t"


def _are_names(row: list[str]) -> bool:
    """Whether no cell is a number, in whatever notation, and not all mark a missing value."""
    return not any(map(is_almost, row)) and not all(map(is_missing, row))


def _count_up(row: list[str]) -> bool:
    """Whether cells are 0, 1, 2 ..., perhaps after an empty one: the default header of pandas."""
    cells = row[1:] if row and not row[0] else row
    return len(cells) > 2 and cells == [str(i) for i in range(len(cells))]


def _refuse_header(path: Path, header: Record, row: Record) -> None:
    """Raise UserError for names that are not as many as the cells of a row."""
    decimal = _COMMA_NUMBER.fullmatch(",".join(row.cells))
    remedy = (
        "write decimals with a point, or separate columns by semicolons"
        if decimal and len(header.cells) == 1
        else "name each once, also one of row numbers (which --drop or --id can then take)"
    )
    raise UserError(
        f"{path}: line {header.line} names {len(header.cells)} columns, but line {row.line} has "
        f"{len(row.cells)} cells: {remedy}"
    )


def _parsed(path: Path, content: bytes, layout: Layout) -> Any:
    """The cells of all rows, as a PyArrow table of strings."""
    import pyarrow as pa
    from pyarrow import csv as pyarrow_csv

    names = [str(i) for i in range(layout.width)]
    rows = pa.py_buffer(content).slice(layout.start, layout.end - layout.start)
    head = islice(_LINE.finditer(content, layout.start), 50)
    longest = max(line.end() - line.start() for line in head)  # a block must hold a row
    try:
        return pyarrow_csv.read_csv(
            pa.BufferReader(rows),
            pyarrow_csv.ReadOptions(
                use_threads=False, column_names=names, block_size=max(2**24, 64 * longest)
            ),
            pyarrow_csv.ParseOptions(
                delimiter=layout.separator,
                newlines_in_values=True,
                ignore_empty_lines=layout.width > 1,
            ),
            pyarrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        _refuse_line(path, content, layout)
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _refuse_line(path: Path, content: bytes, layout: Layout) -> None:
    """Raise UserError for the first line of another width, if there is one."""
    for line, _, row in _rows(path, content, layout):
        if row and len(row) != layout.width:
            raise UserError(
                f"{path}: line {line} has {len(row)} columns, but the lines above have "
                f"{layout.width}: is a cell missing, or a quotation mark not closed?"
            )


class Values(NamedTuple):
    """A column of text.

    Attributes:
        cells: numbers, if all are, else words.
        mark: the decimal mark, if it shows.
        doubt: a cell whose mark could separate thousands, as could all others in the column.
        inexact: a whole number that float64 rounds.
    """

    cells: np.ndarray
    mark: str = ""
    doubt: str = ""
    inexact: str = ""


def as_values(cells: Any, *, comma: bool) -> Values:
    """A column of text as numbers or words; `comma`: numbers may have a decimal comma."""
    import pyarrow as pa
    from pyarrow import compute as pc

    text = pc.utf8_trim_whitespace(cells)
    found = pc.match_substring_regex(text, f"^(?:{_POINT})$")
    mark = "." if comma and pc.any(pc.match_substring(pc.filter(text, found), ".")).as_py() else ""
    if not _all(found):
        gaps = pc.is_in(pc.utf8_lower(text), pa.array(MISSING_WORDS))
        text = pc.if_else(gaps, None, text)
        found = pc.match_substring_regex(text, f"^(?:{_POINT})$")
        if comma and not mark and not _all(found):
            found = pc.match_substring_regex(text, f"^(?:{_COMMA})$")
            mark = ","
    if not _all(found):
        return Values(_objects(text))
    doubt = _first_doubt(text, mark) if comma and mark else ""
    text = pc.utf8_ltrim(pc.replace_substring(text, ",", "."), "+")
    numbers = pc.cast(text, pa.float64()).to_numpy()
    return Values(numbers, mark, doubt, _first_inexact(text, numbers))


def _first_doubt(text: Any, mark: str) -> str:
    """The first cell with a decimal mark, if those of all cells could separate thousands."""
    from pyarrow import compute as pc

    marked = pc.drop_null(pc.filter(text, pc.match_substring(text, mark)))
    return marked[0].as_py() if _all(pc.match_substring_regex(marked, _AMBIGUOUS)) else ""


def _first_inexact(text: Any, numbers: np.ndarray) -> str:
    """The first whole number that float64 rounds."""
    for i in np.flatnonzero(np.abs(numbers) >= LARGEST_EXACT):
        cell = text[int(i)].as_py()
        if cell.lstrip("-").isdigit() and int(cell) != int(numbers[i]):
            return cell
    return ""


def _all(found: Any) -> bool:
    """Whether all are true; null, where a cell is missing, does not count."""
    from pyarrow import compute as pc

    return bool(pc.all(found, min_count=0).as_py())


def _objects(cells: Any) -> np.ndarray:
    return np.array([*cells.to_pylist(), None], object)[:-1]


def as_words(cells: Any) -> np.ndarray:
    """The text of a column that is carried through; None where it is missing."""
    import pyarrow as pa
    from pyarrow import compute as pc

    text = pc.utf8_trim_whitespace(cells)
    gaps = pc.is_in(pc.utf8_lower(text), pa.array(MISSING_WORDS))
    return _objects(pc.if_else(gaps, None, text))


def read_header(path: Path) -> tuple[str, list[str]]:
    """The separator of a text file, and the names of its columns, by number if they have none."""
    layout = _layout(path, read_bytes(path))
    return layout.separator, names_of(layout)


def names_of(layout: Layout) -> list[str]:
    """The names of columns: without blanks around them, or their numbers from 1."""
    written = [cell.strip() for cell in layout.header] or [""] * layout.width
    return [name or str(i) for i, name in enumerate(written, start=1)]


def _rows(path: Path, content: bytes, layout: Layout) -> Iterator[Record]:
    """The records of a text below its header. An empty line is one only in a single column."""
    for one in _records(path, content[: layout.end], layout.separator):
        if one.line > layout.first and (one.cells or layout.width == 1):
            yield one


def place_of(path: Path, layout: Layout, places: Sequence[int], row: int, column: int) -> str:
    """The line, the column and the text of a cell."""
    found = next(islice(_rows(path, read_bytes(path), layout), row, None))
    place = places[column]
    cell = found.cells[place] if found.cells else ""
    return f"line {found.line}, column {place + 1}: {cell[:40]!r}"

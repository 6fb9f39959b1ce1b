"""Parse text files of cells, .csv and .tsv, with any usual separator.

Numbers must be in decimal notation; a decimal comma is allowed unless commas separate the cells.
PyArrow is imported on first use.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.data.cells import AMBIGUOUS, COMMA, LARGEST_EXACT, MISSING_WORDS, POINT, object_cells
from iwae.data.layout import LINE, Layout, find_layout, layout_records
from iwae.errors import UserError
from iwae.files import read_bytes
from iwae.wording import first_error_line


def parse_delimited(path: Path) -> tuple[Layout, Any]:
    """The layout of a file, and its cells as a PyArrow table of strings; parsed once."""
    content = read_bytes(path)
    layout = find_layout(path, content)
    return layout, _parsed(path, content, layout)


def _parsed(path: Path, content: bytes, layout: Layout) -> Any:
    """The cells of all rows as a PyArrow table of strings."""
    import pyarrow as pa
    from pyarrow import csv as pyarrow_csv

    names = [str(i) for i in range(layout.width)]
    rows = pa.py_buffer(content).slice(layout.start, layout.end - layout.start)
    head = islice(LINE.finditer(content, layout.start), 50)
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
        raise UserError(f"{path} cannot be read: {first_error_line(error)}") from None


def _refuse_line(path: Path, content: bytes, layout: Layout) -> None:
    """Raise UserError for the first line of another width, if there is one."""
    for line, _, row in layout_records(path, content, layout):
        if row and len(row) != layout.width:
            raise UserError(
                f"{path}: line {line} has {len(row)} columns, but the lines above have "
                f"{layout.width}: is a cell missing, or a quotation mark not closed?"
            )


class Values(NamedTuple):
    """A column of text.

    Attributes:
        cells: numbers if all cells are numbers, else words.
        mark: the decimal mark, if any cell has one.
        doubt: a cell whose mark could separate thousands, if all marks of the column could.
        inexact: a whole number that float64 rounds.
    """

    cells: np.ndarray
    mark: str = ""
    doubt: str = ""
    inexact: str = ""


def parse_delimited_column(cells: Any, *, comma: bool) -> Values:
    """A column of text as numbers or words; `comma` allows decimal commas."""
    import pyarrow as pa
    from pyarrow import compute as pc

    text = pc.utf8_trim_whitespace(cells)
    found = pc.match_substring_regex(text, f"^(?:{POINT})$")
    mark = "." if comma and pc.any(pc.match_substring(pc.filter(text, found), ".")).as_py() else ""
    if not _all(found):
        text = _without_gaps(text)
        found = pc.match_substring_regex(text, f"^(?:{POINT})$")
        if comma and not mark and not _all(found):
            found = pc.match_substring_regex(text, f"^(?:{COMMA})$")
            mark = ","
    if not _all(found):
        return Values(object_cells(text.to_pylist()))
    doubt = _first_doubt(text, mark) if comma and mark else ""
    text = pc.utf8_ltrim(pc.replace_substring(text, ",", "."), "+")
    numbers = pc.cast(text, pa.float64()).to_numpy()
    return Values(numbers, mark, doubt, _first_inexact(text, numbers))


def _first_doubt(text: Any, mark: str) -> str:
    """The first cell with a decimal mark, if all marks could separate thousands."""
    from pyarrow import compute as pc

    marked = pc.drop_null(pc.filter(text, pc.match_substring(text, mark)))
    return marked[0].as_py() if _all(pc.match_substring_regex(marked, AMBIGUOUS)) else ""


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


def delimited_words(cells: Any) -> np.ndarray:
    """The text of a column that is carried through; None where it is missing."""
    from pyarrow import compute as pc

    return object_cells(_without_gaps(pc.utf8_trim_whitespace(cells)).to_pylist())


def _without_gaps(text: Any) -> Any:
    """Cells of text, null where one of `MISSING_WORDS` marks a missing value."""
    import pyarrow as pa
    from pyarrow import compute as pc

    return pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(MISSING_WORDS)), None, text)


def delimited_place(
    path: Path, layout: Layout, places: Sequence[int], row: int, column: int
) -> str:
    """The position of a cell, and its text; `places` are the columns that were read."""
    record = next(islice(layout_records(path, read_bytes(path), layout), row, None))
    place = places[column]
    cell = record.cells[place] if record.cells else ""
    return f"line {record.line}, column {place + 1}: {cell[:40]!r}"

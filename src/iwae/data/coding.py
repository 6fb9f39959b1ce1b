"""Encode the cells of a table as numbers, and decode numbers to cells."""

from collections.abc import Sequence

import numpy as np

from iwae.data.cells import is_empty, number_as_cell
from iwae.data.columns import TRUTH, Column, refuse_word_column
from iwae.data.rows import Examples, row_blocks
from iwae.data.tables import Table
from iwae.errors import UserError
from iwae.wording import listed_words, quoted_words

_BOOLEAN = ("False", "True")

_WHOLE = ("bernoulli", "categorical", "poisson", "negative-binomial")
"""Kinds whose values are whole numbers."""


def to_values(
    table: Table, columns: Sequence[Column], *, where: str = "", unknown: str = "error"
) -> np.ndarray:
    """The values of a table `[n, d]`, float64; NaN where missing.

    Columns are found by name, in any order; by position if the table has no names.

    Args:
        table: the table.
        columns: the columns to encode, such as those of the training data.
        where: the name of the table in error messages; by default, its own.
        unknown: "error", or "missing" to count a word that is not a level as missing.

    Raises:
        UserError: names missing or superfluous columns, an unknown word, or an invalid value.
    """
    if unknown not in ("error", "missing"):
        raise UserError(f"unknown must be 'error' or 'missing', not {unknown!r}")
    table = table._replace(where=where or table.where)
    places = _positions(table, columns)
    values = np.empty((table.n_rows, len(columns)))
    for j, column in enumerate(columns):
        values[:, j] = _codes(table, places[j], column, unknown)
    return values


def _positions(table: Table, columns: Sequence[Column]) -> list[int]:
    """The index of each column in the table."""
    wanted = [column.name for column in columns]
    if not table.named and len(table.names) == len(wanted):
        return list(range(len(wanted)))
    lacking = sorted(set(wanted) - set(table.names), key=wanted.index)
    further = sorted(set(table.names) - set(wanted), key=table.names.index)
    if lacking:
        raise UserError(
            f"{table.where} lacks the columns {quoted_words(lacking)} of the data, which have "
            f"{quoted_words(wanted)}"
        )
    if further:
        raise UserError(
            f"{table.where} has the columns {quoted_words(further)}, but the data only "
            f"{quoted_words(wanted)}: remove them"
        )
    places = {name: i for i, name in enumerate(table.names)}
    return [places[name] for name in wanted]


def _codes(table: Table, i: int, column: Column, unknown: str) -> np.ndarray:
    """The values of a column: numbers, or the codes of its levels."""
    cells = table.columns[i]
    if not column.levels:
        if cells.dtype == object:
            refuse_word_column(table, i)
        return cells
    codes = codes_of(column)
    words = _as_words(cells)
    found = np.array([codes.get(word, -1) for word in words], np.float64)
    found[is_empty(words)] = np.nan
    if unknown == "error" and (found == -1).any():
        row = int(np.flatnonzero(found == -1)[0])
        raise UserError(
            f"{table.where}: {table.place(row, i)}: column {column.name!r} has no level "
            f"{words[row][:40]!r}; known: {listed_words(column.levels, 5)}: correct it, or "
            f"{table.remedies.unknown}"
        )
    return np.where(found == -1, np.nan, found)


def codes_of(column: Column) -> dict[str, float]:
    """The code of each level by its word; true and false in any case of the letters."""
    codes = {level: float(code) for code, level in enumerate(column.levels)}
    if {level.lower() for level in column.levels} <= TRUTH:
        codes |= {level.title(): code for level, code in codes.items()} | {
            f(level): code for level, code in codes.items() for f in (str.lower, str.upper)
        }
    return codes


def _as_words(cells: np.ndarray) -> np.ndarray:
    """A column as words, and None where it is missing."""
    if cells.dtype == object:
        return cells
    values, places = np.unique(cells, return_inverse=True)
    words = np.array([None if np.isnan(one) else number_as_cell(one) for one in values], object)
    return np.asarray(words[places])


def decode_cells(values: np.ndarray, columns: Sequence[Column]) -> dict[str, np.ndarray]:
    """The inverse of `to_values`: values `[n, d]` as the cells of columns, by name.

    Words for levels, or booleans for True and False (None where missing); int64 for whole numbers
    if no value of the column is missing, else float64. Codes are rounded to the nearest level.
    """
    return {column.name: _decoded(values[:, j], column) for j, column in enumerate(columns)}


def _decoded(values: np.ndarray, column: Column) -> np.ndarray:
    """The cells of a column, from its values `[n]`."""
    values = np.asarray(values, np.float64)
    gaps = np.isnan(values)
    if column.levels:
        codes = np.clip(np.rint(np.where(gaps, 0, values)), 0, len(column.levels) - 1).astype(int)
        if column.levels == _BOOLEAN and not gaps.any():
            return codes.astype(bool)
        words = (False, True) if column.levels == _BOOLEAN else column.levels
        levels = np.array(words, np.float64 if column.whole else object)[codes]
        levels[gaps] = np.nan if column.whole else None
        if not column.whole:
            return levels
        values = levels
    is_whole = column.whole or column.kind.partition(":")[0] in _WHOLE
    return np.rint(values).astype(np.int64) if is_whole and not gaps.any() else values


def code_fractions(columns: Sequence[Column], values: Examples) -> tuple[Column, ...]:
    """The columns, without the mark `whole` where some of the values `[n, d]` are fractions."""
    whole = np.ones(len(columns), bool)
    for _, block in row_blocks(values):
        whole &= (np.isnan(block) | (block == np.rint(block))).all(axis=0)
    return tuple(
        one._replace(whole=one.whole and bool(is_whole))
        for one, is_whole in zip(columns, whole, strict=True)
    )

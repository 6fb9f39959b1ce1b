"""The columns of a table: the kind that each is taken for, by an inspectable rule, and its levels.

The rule, for a column of a table that names its columns or holds words:

- words are a category with sorted levels, True and False a bit;
- whole numbers are a bit if all are 0 or 1, a category if there are at most 10 different ones, a
  count if the least is 0 or 1;
- other numbers, and numbers that are all the same, are real values.

Dates, numbers among words and words that are different in nearly every row are refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from iwae.data.delimited import in_digits, is_almost, is_number
from iwae.data.kinds import LARGEST_COUNT, Kind, column_kinds, make_kind
from iwae.data.rows import Examples, blocks
from iwae.data.tables import Table, dates, few
from iwae.errors import UserError

FEW = 10
"""The most different whole numbers that are taken for categories."""

MANY = 50
"""The most different words that are taken for categories."""

MOST_LEVELS = 10_000
"""The most different values of a column that are counted or remembered."""

PIXELS = 64
"""So many columns of whole numbers 0..255 could be an image's bytes."""

_DATE = re.compile(
    r"\d{4}[-/]\d{1,2}([-/]\d{1,2})?([T ].*)?|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}( .*)?"
    r"|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
)

_TRUTH = {"false", "true"}


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: its name.
        kind: the kind of its values, such as `gaussian` or `categorical:3`.
        levels: the words or numbers of its categories 0, 1, ..., if they are not their own codes.
        why: the reason for the kind, in words; empty if the kinds were given in order.
        whole: whether its values are whole numbers, to be written without decimals.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()
    why: str = ""
    whole: bool = False


def choose_columns(table: Table, wanted: Mapping[str, str] | None = None) -> tuple[Column, ...]:
    """Choose the kind of each column by the rule of this module.

    Args:
        table: the table.
        wanted: kinds by name that override the rule: `poisson`, `categorical` (with as many levels
            as there are) or `categorical:3` (codes 0, 1, 2).

    Raises:
        UserError: names the column that the rule refuses, and the remedy.
    """
    wanted = dict(wanted or {})
    for name in wanted:
        if name not in table.names:
            raise UserError(f"{table.where} has no column {name!r}; it has {few(table.names)}")
    if not wanted:
        _refuse_bytes(table)
    return tuple(
        _declared(table, i, wanted[name]) if name in wanted else _chosen(table, i)
        for i, name in enumerate(table.names)
    )


def observation(columns: Sequence[Column]) -> Kind:
    """The kind of data that columns make: one for all if they are all real or all bits."""
    kinds = {column.kind for column in columns}
    for name in ("gaussian", "bernoulli"):
        if kinds == {name} and not any(column.levels for column in columns):
            return make_kind(name)
    return make_kind("table", columns=tuple(column.kind for column in columns))


def given_columns(names: Iterable[str], kind: Kind, n: int) -> tuple[Column, ...]:
    """The columns of a table whose kinds were given in order."""
    kinds = column_kinds(kind) or (kind,) * n
    return tuple(Column(name, _text(one)) for name, one in zip(names, kinds, strict=True))


def _text(kind: Kind) -> str:
    return ":".join([kind.name, *map(str, kind.parameters().values())])


# --- the rule --------------------------------------------------------------------------------


def _chosen(table: Table, i: int) -> Column:
    name, cells = table.names[i], table.columns[i]
    if cells.dtype == object:
        return _words(table, i)
    values = np.unique(cells[~np.isnan(cells)])
    whole = _are_whole(values)
    if whole and set(values) <= {0.0, 1.0} and values.size:
        why = "only 0 and 1" if values.size > 1 else f"constant: {values[0]:g} in every row"
        return Column(name, "bernoulli", why=why, whole=True)
    if values.size < 2:
        why = f"constant: {values[0]:.6g} in every row" if values.size else "no value"
        return Column(name, "gaussian", why=why, whole=whole)
    if whole and values.size <= FEW:
        levels = _levels(cells)
        why = f"{values.size} different whole numbers: {_listed(levels)}"
        return _category(name, levels, why, whole=True)
    why = ("whole " if whole else "") + f"numbers from {_span(values[0], values[-1])}"
    if whole and values.size == len(cells):
        why += f", all different (if they name the rows, {table.remedies.naming.format(name=name)})"
    is_count = whole and values[0] in (0, 1) and values[-1] <= LARGEST_COUNT
    return Column(name, "negative-binomial" if is_count else "gaussian", why=why, whole=whole)


def _span(low: float, high: float) -> str:
    """Two numbers in words, with as many digits as tell them apart."""
    digits = next((n for n in range(6, 17) if f"{low:.{n - 3}g}" != f"{high:.{n - 3}g}"), 17)
    return f"{low:.{digits}g} to {high:.{digits}g}"


def _words(table: Table, i: int) -> Column:
    name, present = table.names[i], [cell for cell in table.columns[i] if cell is not None]
    levels = tuple(sorted(set(present)))
    if not levels:
        return Column(name, "gaussian", why="no value")
    if {level.lower() for level in levels} <= _TRUTH and len(levels) <= 2:
        return _truth(name, levels)
    refuse_numbers(table, i, levels)
    count = table.counts[i] if table.counts else len(present)
    if len(levels) > max(2, 0.9 * count) or len(levels) > MANY:
        most = len(levels) > MOST_LEVELS
        number = f"more than {MOST_LEVELS:,}" if most else f"{len(levels):,}"
        raise UserError(
            f"{table.where}: column {name!r} holds {number} different words in "
            f"{count:,} rows, too many for categories: "
            f"{table.remedies.ways(name, f'insist ({_as_categories(table, name)})')}"
        )
    return _category(name, levels, f"{len(levels)} words: {_listed(levels)}")


def _category(name: str, levels: tuple[str, ...], why: str, *, whole: bool = False) -> Column:
    """A column of levels. A single one is a bit that is never set: categories are two or more."""
    if len(levels) == 1:
        return Column(name, "bernoulli", levels, f"constant: {levels[0]} in every row")
    own_codes = whole and levels == tuple(map(str, range(len(levels))))
    return Column(name, f"categorical:{len(levels)}", () if own_codes else levels, why, whole)


def _truth(name: str, levels: tuple[str, ...]) -> Column:
    """A column of True and False, of which one may not occur."""
    pairs = (("False", "True"), ("false", "true"), ("FALSE", "TRUE"))
    pair = next((pair for pair in pairs if set(levels) <= set(pair)), levels)
    why = "true or false" if len(levels) > 1 else f"constant: {levels[0]} in every row"
    return Column(name, "bernoulli", pair, why)


def refuse_numbers(table: Table, i: int, levels: Iterable[str]) -> None:
    """Raise UserError for dates, and for numbers among words, which have no obvious meaning."""
    name, levels = table.names[i], list(levels)
    remedy = f"take all as categories ({_as_categories(table, name)})"
    date = next((one for one in levels if _DATE.fullmatch(one)), None)
    if date is not None:
        raise UserError(
            f"{_cell(table, i, date)} in column {name!r}; it holds {dates(name, table.remedies)}"
        )
    odd = next((one for one in levels if is_almost(one) and not is_number(one)), None)
    if odd is not None:
        raise UserError(f"{_cell(table, i, odd)} is not a number; {in_digits(odd)}, or {remedy}")
    numbers = sum(map(is_number, levels))
    if numbers and numbers == len(levels):
        raise UserError(
            f"{table.where}: column {name!r} holds numbers as text: convert it (astype(float)), or "
            f"{remedy}"
        )
    if numbers:
        word = next(one for one in table.columns[i] if one is not None and not is_number(one))
        raise UserError(
            f"{_cell(table, i, word)} is not a number, as others in column {name!r} are: correct "
            f"it, or {remedy}"
        )


def _as_categories(table: Table, name: str) -> str:
    return table.remedies.categories.format(name=name)


def _cell(table: Table, i: int, word: str) -> str:
    """The place of the first cell that holds a word."""
    row = int(np.flatnonzero(table.columns[i] == word)[0])
    place = table.place(row, i)
    return f"{table.where}: {place}" + ("" if repr(word[:40]) in place else f": {word[:40]!r}")


def _refuse_bytes(table: Table) -> None:
    numeric = [column for column in table.columns if column.dtype != object]
    if len(numeric) < max(PIXELS, len(table.columns)):
        return
    some = [column for column in numeric if not np.isnan(column).all()]
    low, high = (f([f(column) for column in some], initial=0) for f in (np.nanmin, np.nanmax))
    if low < 0 or high > 255 or high <= 1:
        return
    if all(_are_whole(column) for column in numeric):
        raise UserError(
            f"{table.where} holds whole numbers within 0..255 in {len(numeric)} columns: if they "
            "are grey levels, divide by 255 or store them as bytes (.npy, uint8); otherwise "
            "declare what they are, such as observation 'gaussian' or 'poisson'"
        )


def _are_whole(values: np.ndarray) -> bool:
    """Whether all are whole numbers that float64 holds exactly, or missing."""
    present = values[~np.isnan(values)]
    return bool(((present == np.rint(present)) & (np.abs(present) < 2**53)).all())


def _listed(levels: Sequence[str]) -> str:
    return ", ".join(levels[:5]) + (", ..." if len(levels) > 5 else "")


def _declared(table: Table, i: int, words: str) -> Column:
    """The column of a kind that the user names."""
    name, cells = table.names[i], table.columns[i]
    base = words.partition(":")[0]
    is_text = cells.dtype == object
    whole = not is_text and _are_whole(cells)
    levels = _levels(cells) if base in ("categorical", "bernoulli") else ()
    if base == "categorical" and (is_text or words in (base, f"{base}:{len(levels)}")):
        column = _category(name, levels, "as declared", whole=whole)
        if words not in (base, column.kind) or len(levels) < 2:
            raise UserError(
                f"{table.where}: column {name!r} has {len(levels)} different values, but its kind "
                f"is {words!r}: use 'categorical', or leave the column out if it is constant"
            )
        return column
    if is_text and base == "bernoulli" and len(levels) <= 2:
        truth = {level.lower() for level in levels} <= _TRUTH
        return Column(name, base, _truth(name, levels).levels if truth else levels, "as declared")
    column_kinds(Kind("table", columns=(words,)))  # refuses an unknown kind
    if is_text:
        _refuse_word(table, i)
    return Column(name, words, (), "as declared", whole)


def _levels(cells: np.ndarray) -> tuple[str, ...]:
    if cells.dtype == object:
        return tuple(sorted({cell for cell in cells if cell is not None}))
    return tuple(map(_shortest, np.unique(cells[~np.isnan(cells)])))


def _shortest(value: float) -> str:
    return np.format_float_positional(value, trim="-")


# --- values ----------------------------------------------------------------------------------


def to_values(
    table: Table, columns: Sequence[Column], *, where: str = "", unknown: str = "error"
) -> np.ndarray:
    """The values of a table `[n, d]`, float64; NaN where missing.

    Columns are found by name, in whatever order; by their order if the table has no names.

    Args:
        table: the table.
        columns: those that are wanted, such as those of the training data.
        where: the name of the table in error messages (default: its own).
        unknown: "error", or "missing": a word that is no level counts as missing.

    Raises:
        UserError: names columns that are missing or too many, an unknown word, or an invalid value.
    """
    if unknown not in ("error", "missing"):
        raise UserError(f"unknown must be 'error' or 'missing', not {unknown!r}")
    table = table._replace(where=where or table.where)
    places = _places(table, columns)
    values = np.empty((table.n_rows, len(columns)))
    for j, column in enumerate(columns):
        values[:, j] = _coded(table, places[j], column, unknown)
    return values


def _places(table: Table, columns: Sequence[Column]) -> list[int]:
    """The index in the table of each column."""
    wanted = [column.name for column in columns]
    if not table.named and len(table.names) == len(wanted):
        return list(range(len(wanted)))
    lacking = sorted(set(wanted) - set(table.names), key=wanted.index)
    further = sorted(set(table.names) - set(wanted), key=table.names.index)
    if lacking:
        raise UserError(
            f"{table.where} lacks the columns {few(lacking)} of the data, which have {few(wanted)}"
        )
    if further:
        raise UserError(
            f"{table.where} has the columns {few(further)}, but the data only {few(wanted)}: "
            "remove them"
        )
    places = {name: i for i, name in enumerate(table.names)}
    return [places[name] for name in wanted]


def _coded(table: Table, i: int, column: Column, unknown: str) -> np.ndarray:
    """The values of a column: numbers, or the codes of its levels."""
    cells = table.columns[i]
    if not column.levels:
        if cells.dtype == object:
            _refuse_word(table, i)
        return cells
    codes = codes_of(column)
    words = _as_words(cells)
    found = np.array([codes.get(word, -1) for word in words], np.float64)
    found[[word is None for word in words]] = np.nan
    if unknown == "error" and (found == -1).any():
        row = int(np.flatnonzero(found == -1)[0])
        raise UserError(
            f"{table.where}: {table.place(row, i)}: column {column.name!r} has no level "
            f"{words[row][:40]!r}; known: {_listed(column.levels)}: correct it, or "
            f"{table.remedies.unknown}"
        )
    return np.where(found == -1, np.nan, found)


def codes_of(column: Column) -> dict[str, float]:
    """The code of each level, by its word; of true and false in any case of the letters."""
    codes = {level: float(code) for code, level in enumerate(column.levels)}
    if {level.lower() for level in column.levels} <= _TRUTH:
        codes |= {level.title(): code for level, code in codes.items()} | {
            f(level): code for level, code in codes.items() for f in (str.lower, str.upper)
        }
    return codes


def _as_words(cells: np.ndarray) -> np.ndarray:
    """A column as words, and None where it is missing."""
    if cells.dtype == object:
        return cells
    values, places = np.unique(cells, return_inverse=True)
    words = np.array([None if np.isnan(one) else _shortest(one) for one in values], object)
    return np.asarray(words[places])


def _refuse_word(table: Table, i: int) -> None:
    word = next((one for one in table.columns[i] if one is not None and not is_number(one)), None)
    if word is None:
        refuse_numbers(table, i, (one for one in table.columns[i] if one is not None))
    else:
        almost = f"; {in_digits(word)}" if is_almost(word) else ""
        raise UserError(f"{_cell(table, i, word)} is not a number{almost}")


def to_cells(values: np.ndarray, columns: Sequence[Column]) -> dict[str, np.ndarray]:
    """The inverse of `to_values`: values `[n, d]` as the cells of columns, by name.

    Words for levels, or booleans for True and False (None where missing); int64 for whole numbers
    if no value of the column is missing, else float64. Codes are rounded to the nearest level.
    """
    return {column.name: _cells(values[:, j], column) for j, column in enumerate(columns)}


def with_fractions(columns: Sequence[Column], values: Examples) -> tuple[Column, ...]:
    """The columns, those with fractions among some values `[n, d]` as no longer whole."""
    whole = np.ones(len(columns), bool)
    for _, block in blocks(values):
        whole &= (np.isnan(block) | (block == np.rint(block))).all(axis=0)
    return tuple(
        one._replace(whole=one.whole and bool(is_whole))
        for one, is_whole in zip(columns, whole, strict=True)
    )


def _cells(values: np.ndarray, column: Column) -> np.ndarray:
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


_BOOLEAN = ("False", "True")

_WHOLE = ("bernoulli", "categorical", "poisson", "negative-binomial")


def as_json(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Columns as JSON, without their reasons: the rule may change, what it chose does not."""
    return [
        {"name": one.name, "kind": one.kind}
        | ({"levels": list(one.levels)} if one.levels else {})
        | ({"whole": True} if one.whole else {})
        for one in columns
    ]


def from_json(columns: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The inverse of `as_json`."""
    return tuple(Column(**{**one, "levels": tuple(one.get("levels", ()))}) for one in columns)

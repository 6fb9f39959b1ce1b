"""The columns of a table: the kind and the levels of each, chosen by an inspectable rule.

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

from iwae.data.cells import (
    GROUPED,
    LARGEST_EXACT,
    is_empty,
    is_number_cell,
    is_number_like_cell,
    number_as_cell,
)
from iwae.data.kinds import LARGEST_COUNT, Kind, column_kinds, make_kind
from iwae.data.tables import Table, table_dates_reason
from iwae.errors import UserError
from iwae.wording import listed_words, quoted_words

FEW = 10
"""The most distinct whole numbers that are taken for categories."""

MANY = 50
"""The most distinct words that are taken for categories."""

MOST_LEVELS = 10_000
"""The most distinct values of a column that are counted or remembered."""

PIXELS = 64
"""The fewest columns of whole numbers 0..255 that could be the bytes of an image."""

_DATE = re.compile(
    r"\d{4}[-/]\d{1,2}([-/]\d{1,2})?([T ].*)?|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}( .*)?"
    r"|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
)

TRUTH = {"false", "true"}


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
            raise UserError(
                f"{table.where} has no column {name!r}; it has {quoted_words(table.names)}"
            )
    if not wanted:
        _refuse_bytes(table)
    return tuple(
        _declared_column(table, i, wanted[name]) if name in wanted else _inferred(table, i)
        for i, name in enumerate(table.names)
    )


def columns_to_kind(columns: Sequence[Column]) -> Kind:
    """The kind of data that columns make: one for all if they are all real or all bits."""
    kinds = {column.kind for column in columns}
    for name in ("gaussian", "bernoulli"):
        if kinds == {name} and not any(column.levels for column in columns):
            return make_kind(name)
    return make_kind("table", columns=tuple(column.kind for column in columns))


def named_columns(names: Iterable[str], kind: Kind, n: int) -> tuple[Column, ...]:
    """The columns of a table whose kinds were given in order."""
    kinds = column_kinds(kind) or (kind,) * n
    return tuple(Column(name, _written(one)) for name, one in zip(names, kinds, strict=True))


def _written(kind: Kind) -> str:
    """A kind as a column states it, such as `categorical:3`."""
    return ":".join([kind.name, *map(str, kind.parameters().values())])


def _inferred(table: Table, i: int) -> Column:
    """The column of the kind that the rule chooses."""
    name, cells = table.names[i], table.columns[i]
    if cells.dtype == object:
        return _inferred_words(table, i)
    values = np.unique(cells[~np.isnan(cells)])
    whole = _are_whole(values)
    if whole and set(values) <= {0.0, 1.0} and values.size:
        why = "only 0 and 1" if values.size > 1 else f"constant: {values[0]:g} in every row"
        return Column(name, "bernoulli", why=why, whole=True)
    if values.size < 2:
        why = f"constant: {values[0]:.6g} in every row" if values.size else "no value"
        return Column(name, "gaussian", why=why, whole=whole)
    if whole and values.size <= FEW:
        levels = _distinct(cells)
        why = f"{values.size} different whole numbers: {listed_words(levels, 5)}"
        return _categorical(name, levels, why, whole=True)
    why = ("whole " if whole else "") + f"numbers from {_span(values[0], values[-1])}"
    if whole and values.size == len(cells):
        why += f", all different (if they name the rows, {table.remedies.naming.format(name=name)})"
    is_count = whole and values[0] in (0, 1) and values[-1] <= LARGEST_COUNT
    return Column(name, "negative-binomial" if is_count else "gaussian", why=why, whole=whole)


def _span(low: float, high: float) -> str:
    """A range in words, with as many digits as tell its ends apart."""
    digits = next((n for n in range(6, 17) if f"{low:.{n - 3}g}" != f"{high:.{n - 3}g}"), 17)
    return f"{low:.{digits}g} to {high:.{digits}g}"


def _inferred_words(table: Table, i: int) -> Column:
    name, levels = table.names[i], _distinct(table.columns[i])
    if not levels:
        return Column(name, "gaussian", why="no value")
    if {level.lower() for level in levels} <= TRUTH and len(levels) <= 2:
        return _truth_values(name, levels)
    _refuse_numbers(table, i, levels)
    count = table.counts[i] if table.counts else int((~is_empty(table.columns[i])).sum())
    if len(levels) > max(2, 0.9 * count) or len(levels) > MANY:
        most = len(levels) > MOST_LEVELS
        number = f"more than {MOST_LEVELS:,}" if most else f"{len(levels):,}"
        raise UserError(
            f"{table.where}: column {name!r} holds {number} different words in "
            f"{count:,} rows, too many for categories: "
            f"{table.remedies.ways(name, f'insist ({_as_categories(table, name)})')}"
        )
    return _categorical(name, levels, f"{len(levels)} words: {listed_words(levels, 5)}")


def _categorical(name: str, levels: tuple[str, ...], why: str, *, whole: bool = False) -> Column:
    """A categorical column; with a single level, a bit that is never set."""
    if len(levels) == 1:
        return Column(name, "bernoulli", levels, f"constant: {levels[0]} in every row")
    own_codes = whole and levels == tuple(map(str, range(len(levels))))
    return Column(name, f"categorical:{len(levels)}", () if own_codes else levels, why, whole)


def _truth_values(name: str, levels: tuple[str, ...]) -> Column:
    """A column of true and false, one of which may not occur."""
    pairs = (("False", "True"), ("false", "true"), ("FALSE", "TRUE"))
    pair = next((pair for pair in pairs if set(levels) <= set(pair)), levels)
    why = "true or false" if len(levels) > 1 else f"constant: {levels[0]} in every row"
    return Column(name, "bernoulli", pair, why)


def _refuse_numbers(table: Table, i: int, levels: Iterable[str]) -> None:
    """Raise UserError for dates, and for numbers among words, whose meaning is ambiguous."""
    name, levels = table.names[i], list(levels)
    remedy = f"take all as categories ({_as_categories(table, name)})"
    date = next((one for one in levels if _DATE.fullmatch(one)), None)
    if date is not None:
        reason = table_dates_reason(name, table.remedies)
        raise UserError(f"{_position(table, i, date)} in column {name!r}; it holds {reason}")
    odd = next(
        (one for one in levels if is_number_like_cell(one) and not is_number_cell(one)), None
    )
    if odd is not None:
        raise UserError(
            f"{_position(table, i, odd)} is not a number; {_notation_remedy(odd)}, or {remedy}"
        )
    numbers = sum(map(is_number_cell, levels))
    if numbers and numbers == len(levels):
        raise UserError(
            f"{table.where}: column {name!r} holds numbers as text: convert it (astype(float)), or "
            f"{remedy}"
        )
    if numbers:
        raise UserError(
            f"{_position(table, i, _first_word(table, i))} is not a number, as others in column "
            f"{name!r} are: correct it, or {remedy}"
        )


def refuse_word_column(table: Table, i: int) -> None:
    """Raise UserError for the words of a column that must hold numbers."""
    word = _first_word(table, i)
    if word is None:
        _refuse_numbers(table, i, (one for one in table.columns[i] if one is not None))
    else:
        remedy = f"; {_notation_remedy(word)}" if is_number_like_cell(word) else ""
        raise UserError(f"{_position(table, i, word)} is not a number{remedy}")


def _first_word(table: Table, i: int) -> Any:
    """The first cell of a column that is not a number; None if all are numbers."""
    return next(
        (one for one in table.columns[i] if one is not None and not is_number_cell(one)), None
    )


def _notation_remedy(word: str) -> str:
    """The remedy for a number in another notation."""
    grouped = GROUPED.fullmatch(word.strip())
    if grouped is None:
        return "write numbers like 1234.5 or 1.2345e3"
    mark = "the space" if grouped[1].isspace() else repr(grouped[1])
    return f"write numbers like 1234.5 or 1.2345e3 (without {mark}, if it separates thousands)"


def _as_categories(table: Table, name: str) -> str:
    return table.remedies.categories.format(name=name)


def _position(table: Table, i: int, word: str) -> str:
    """The position of the first cell that holds a word."""
    place = table.place(int(np.flatnonzero(table.columns[i] == word)[0]), i)
    return f"{table.where}: {place}" + ("" if repr(word[:40]) in place else f": {word[:40]!r}")


def _refuse_bytes(table: Table) -> None:
    """Raise UserError if all columns could be the bytes of an image."""
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
    return bool(((present == np.rint(present)) & (np.abs(present) < LARGEST_EXACT)).all())


def _declared_column(table: Table, i: int, words: str) -> Column:
    """The column of the kind that the user declares."""
    name, cells = table.names[i], table.columns[i]
    base = words.partition(":")[0]
    is_text = cells.dtype == object
    whole = not is_text and _are_whole(cells)
    levels = _distinct(cells) if base in ("categorical", "bernoulli") else ()
    if base == "categorical" and (is_text or words in (base, f"{base}:{len(levels)}")):
        column = _categorical(name, levels, "as declared", whole=whole)
        if words not in (base, column.kind) or len(levels) < 2:
            raise UserError(
                f"{table.where}: column {name!r} has {len(levels)} different values, but its kind "
                f"is {words!r}: use 'categorical', or leave the column out if it is constant"
            )
        return column
    if is_text and base == "bernoulli" and len(levels) <= 2:
        if {level.lower() for level in levels} <= TRUTH:
            levels = _truth_values(name, levels).levels
        return Column(name, base, levels, "as declared")
    column_kinds(Kind("table", columns=(words,)))  # refuses an unknown kind
    if is_text:
        refuse_word_column(table, i)
    return Column(name, words, (), "as declared", whole)


def _distinct(cells: np.ndarray) -> tuple[str, ...]:
    """The distinct values of a column in ascending order, as words."""
    if cells.dtype == object:
        return tuple(sorted({cell for cell in cells if cell is not None}))
    return tuple(map(number_as_cell, np.unique(cells[~np.isnan(cells)])))


def columns_as_json(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Columns as JSON, without their reasons: the rule may change, its choices do not."""
    return [
        {"name": one.name, "kind": one.kind}
        | ({"levels": list(one.levels)} if one.levels else {})
        | ({"whole": True} if one.whole else {})
        for one in columns
    ]


def columns_from_json(columns: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The inverse of `columns_as_json`."""
    return tuple(Column(**{**one, "levels": tuple(one.get("levels", ()))}) for one in columns)

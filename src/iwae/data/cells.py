"""Cells of a table: numbers, words and missing values, in text and in arrays."""

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

MISSING_WORDS = ("", "na", "n/a", "nan", "null", "none", "?")
"""Cells of a text file that hold no value, in any case of the letters."""

MISSING_REMEDY = "if it is a missing value, use missing 'at-random' (--missing at-random)"

LARGEST_EXACT = 2**53
"""Beyond it, float64 does not represent every whole number."""

POINT = r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity))"
COMMA = r"[+-]?(?:[0-9]+,?[0-9]*|,[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBER, COMMA_NUMBER = re.compile(POINT), re.compile(COMMA)
"""A number, with a decimal point or comma; infinity is refused later, with its position."""

_ALMOST = re.compile(
    r"[-+−]?[$€£¥]?\s*[-+−]?(?:0x[\da-f]+|[.,]?\d[\d\s.,_'’]*(?:[ed][+-]?\d+)?\s*[%$€£¥]?)", re.I
)
"""A number in another notation, which cannot be a column name."""

GROUPED = re.compile(r"[-+−]?\d{1,3}([.,\s_'’])\d{3}(?:\1\d{3})*(?:(?!\1)[.,]\d*)?")
"""A number whose thousands are separated."""

AMBIGUOUS = "^[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}$"
"""A number whose decimal mark could separate thousands."""


def is_number_cell(word: str) -> bool:
    """Whether a word is a number in decimal notation with a point."""
    return _NUMBER.fullmatch(word.strip()) is not None


def is_number_like_cell(word: str) -> bool:
    """Whether a word is a number in any notation."""
    return is_number_cell(word) or _ALMOST.fullmatch(word.strip()) is not None


def is_null(cell: Any) -> bool:
    """Whether a cell is None, NaN, or pandas' NA or NaT, none of which equals itself."""
    return (
        cell is None
        or str(cell) in ("<NA>", "NaT")
        or (isinstance(cell, float) and math.isnan(cell))
    )


def is_empty(column: np.ndarray) -> np.ndarray:
    """Which cells of a column hold no value, bool `[n]`: NaN, or None among objects."""
    return column == None if column.dtype == object else np.isnan(column)  # noqa: E711


def object_cells(cells: Iterable[Any]) -> np.ndarray:
    """Cells as an array of objects `[n]`, even if all of them are sequences of one length."""
    return np.array([*cells, None], object)[:-1]


def number_as_cell(value: float) -> str:
    """A number in the fewest digits that represent it, without an exponent."""
    return np.format_float_positional(value, trim="-")

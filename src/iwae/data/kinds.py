"""Kinds of data: their names, their parameters and the values that they take. Needs no JAX.

The distribution of each kind is in `iwae.models.likelihoods`, under the same name.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from iwae.data.rows import Examples, row_blocks
from iwae.errors import UserError

LEVELS = 256
"""The number of levels of an 8-bit value."""

LARGEST_COUNT = 2**24
"""The largest count: float32 cannot represent every whole number above it."""

MISSING = ("at-random", "not-at-random", "not-at-random-high", "not-at-random-low")
"""Mechanisms of missing values: at random given the observed values, or not."""


class Kind(NamedTuple):
    """A kind of data with its parameters, None for parameters of other kinds.

    Attributes:
        name: a name in `KINDS`.
        mixtures: for `logistic-mixture`, the number of logistics for each value.
        categories: for `categorical`, the number of categories.
        scale: for `gaussian-fixed`, the standard deviation.
        columns: for `table`, the kind of each column, such as `poisson` or `categorical:3`.
    """

    name: str
    mixtures: int | None = None
    categories: int | None = None
    scale: float | None = None
    columns: tuple[str, ...] | None = None

    def parameters(self) -> dict[str, Any]:
        """The parameters that are set, by name."""
        given = {name: value for name, value in self._asdict().items() if value is not None}
        del given["name"]
        return given

    def __str__(self) -> str:
        words = ", ".join(f"{name} {value}" for name, value in self.parameters().items())
        return f"{self.name} ({words})" if words else self.name


BERNOULLI = Kind("bernoulli")

Legal = Callable[[np.ndarray, Kind], np.ndarray]


class Traits(NamedTuple):
    """The properties of a kind, apart from its distribution.

    Attributes:
        values: the legal values, in words.
        remedy: what to do about other values.
        legal: numbers `[n, d]` and the kind -> which numbers are legal, `[n, d]`.
        parameter: the one parameter of `Kind` that it takes, if any.
        default: the default of that parameter; None if it is required.
        as_stored: the numbers are used as stored; otherwise `binarisation.resolve` decides.
        discrete: the likelihood is a probability, not a density.
        quantised: the values are 8-bit levels; likelihoods are also in bits per dimension.
        white: the value of white in an image; None if the values are not an image.
    """

    values: str
    remedy: str
    legal: Legal
    parameter: str | None = None
    default: int | None = None
    as_stored: bool = False
    discrete: bool = False
    quantised: bool = False
    white: float | None = None


def _whole_up_to(values: np.ndarray, largest: int) -> np.ndarray:
    return (values >= 0) & (values <= largest) & (values == np.rint(values))


def _fits_columns(values: np.ndarray, kind: Kind) -> np.ndarray:
    each = [KINDS[one.name].legal(values[:, j], one) for j, one in enumerate(column_kinds(kind))]
    return np.stack(each, axis=1)


_BIT = (
    "0 or 1",
    "write binary values as 0 and 1; binarise grey levels first, or choose another observation",
    lambda values, _: (values == 0) | (values == 1),
)
_REAL = ("finite numbers", "correct it, or remove its row", lambda values, _: np.isfinite(values))
_LEVEL = (
    "whole numbers from 0 to 255",
    "multiply grey levels within [0, 1] by 255 and store them as uint8",
    lambda values, _: _whole_up_to(values, LEVELS - 1),
)
_CATEGORY = (
    "whole numbers from 0 to `categories` - 1",
    "number the categories from 0, or raise `categories`",
    lambda values, kind: _whole_up_to(values, kind.categories - 1),
)
_COUNT = (
    f"whole numbers from 0 to {LARGEST_COUNT:,}",
    "round counts and remove rows with missing values; use 'gaussian' for other numbers",
    lambda values, _: _whole_up_to(values, LARGEST_COUNT),
)
_TABLE = ("the values of each column's kind", "", _fits_columns)

KINDS: dict[str, Traits] = {
    "bernoulli": Traits(*_BIT, discrete=True, white=1.0),
    "gaussian": Traits(*_REAL, white=1.0),
    "gaussian-shared": Traits(*_REAL, white=1.0),
    "gaussian-fixed": Traits(*_REAL, "scale", white=1.0),
    "logistic-mixture": Traits(
        *_LEVEL, "mixtures", 5, as_stored=True, discrete=True, quantised=True, white=255.0
    ),
    "discretised-gaussian": Traits(
        *_LEVEL, as_stored=True, discrete=True, quantised=True, white=255.0
    ),
    "categorical": Traits(*_CATEGORY, "categories", as_stored=True, discrete=True),
    "poisson": Traits(*_COUNT, as_stored=True, discrete=True),
    "negative-binomial": Traits(*_COUNT, as_stored=True, discrete=True),
    "table": Traits(*_TABLE, "columns", as_stored=True, discrete=True),
}
"""The choices for `--observation`."""

_EXAMPLES = {"scale": "0.1", "categories": "10", "columns": "gaussian poisson categorical:3"}


def make_kind(name: str, **parameters: Any) -> Kind:
    """Build a kind by name; a parameter that is None or left out takes its default.

    Raises:
        UserError: for an unknown name, or a parameter that is invalid, missing or of another kind.
    """
    if name not in KINDS:
        raise UserError(f"unknown observation {name!r}; known: {', '.join(KINDS)}")
    given = {key: value for key, value in parameters.items() if value is not None}
    own, default = KINDS[name].parameter, KINDS[name].default
    for key in given:
        if key != own:
            whose = [other for other, about in KINDS.items() if about.parameter == key]
            raise UserError(
                f"{key} goes with observation {', '.join(map(repr, whose)) or '(none)'}, "
                f"not {name!r}: leave it out"
            )
    if own is None:
        return Kind(name)
    value = given.get(own, default)
    if value is None:
        raise UserError(f"observation {name!r} needs {own}, such as {_EXAMPLES[own]}")
    parameter: dict[str, Any] = {own: tuple(value) if own == "columns" else value}
    kind = Kind(name, **parameter)
    _check_parameters(kind)
    return kind


def _check_parameters(kind: Kind) -> None:
    for name, least in (("mixtures", 1), ("categories", 2)):
        value = getattr(kind, name)
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if kind.scale is not None and not (0 < kind.scale < math.inf):
        raise UserError(f"scale must be a positive number, not {kind.scale!r}")
    if kind.columns is not None:
        if not kind.columns:
            raise UserError("columns must name the kind of each column: give at least one")
        column_kinds(kind)


def as_kind(kind: "Kind | Mapping[str, Any] | str") -> Kind:
    """Build a kind from its JSON form: a name alone, or a name with parameters.

    A name that is not in `KINDS` may be a user's own: looking up its distribution checks it.
    """
    if isinstance(kind, Kind):
        return kind
    if isinstance(kind, str):
        return make_kind(kind) if kind in KINDS else Kind(kind)
    return make_kind(**kind)


def as_json(kind: Kind) -> str | dict[str, Any]:
    """The inverse of `as_kind`: the name alone if there are no parameters."""
    return {"name": kind.name, **kind.parameters()} if kind.parameters() else kind.name


def is_discrete_kind(kind: Kind) -> bool:
    """Whether likelihoods are probabilities instead of densities; for a table, in every column."""
    return all(KINDS[one.name].discrete for one in column_kinds(kind) or (kind,))


def column_kinds(kind: Kind) -> tuple[Kind, ...]:
    """The kind of each column of a table; empty for other kinds."""
    return tuple(map(_parse_column, kind.columns or ()))


def _parse_column(words: str) -> Kind:
    """Parse the kind of a column: `poisson`, or with a parameter, `categorical:3`."""
    name, colon, value = words.partition(":")
    known = [name for name, about in KINDS.items() if about.parameter != "columns"]
    if name not in known:
        raise UserError(f"columns: no kind {name!r}; known: {', '.join(known)}")
    parameter = KINDS[name].parameter
    if not colon:
        return make_kind(name)
    if parameter is None:
        raise UserError(f"columns: {name!r} takes no parameter, but {words!r} gives one")
    try:
        number = float(value) if parameter == "scale" else int(value)
    except ValueError:
        raise UserError(f"columns: {value!r} in {words!r} is not a valid {parameter}") from None
    return make_kind(name, **{parameter: number})


def check_kind_width(kind: Kind, d: int, where: str) -> None:
    """Raise UserError unless a kind names as many columns as an array has."""
    if kind.columns is not None and len(kind.columns) != d:
        raise UserError(
            f"{where} has {d} columns, but columns names {len(kind.columns)} kinds: "
            "name one for each column"
        )


def check_kind_values(rows: Examples, kind: Kind, where: str, *, missing: bool = False) -> None:
    """Check that a kind of data takes all values.

    Args:
        rows: `[n, ...]`.
        kind: the kind of data.
        where: name of the array in messages.
        missing: whether values may be missing (NaN).

    Raises:
        UserError: names the first invalid value, its row and column (from 1), and the remedy.
    """
    check_kind_width(kind, math.prod(rows.shape[1:]), where)
    for start, some in row_blocks(rows):  # so that the masks need little memory
        block = some.reshape(len(some), -1)
        legal = KINDS[kind.name].legal(block, kind) | (np.isnan(block) & missing)
        if not legal.all():
            row, column = (int(i) for i in np.argwhere(~legal)[0])
            one = kind if kind.columns is None else column_kinds(kind)[column]
            about = KINDS[one.name]
            raise UserError(
                f"{where}: row {start + row + 1}, column {column + 1} is {block[row, column]:g}: "
                f"observation {str(one)!r} takes {about.values}; {about.remedy}"
            )

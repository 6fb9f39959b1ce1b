"""Data frames of the estimator: their columns as values, and values as frames of the same form."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from iwae.data.columns import (
    Column,
    as_json,
    choose_columns,
    from_json,
    to_cells,
    to_values,
    with_fractions,
)
from iwae.data.kinds import column_kinds, make_kind
from iwae.data.tables import Remedies, Table, frame_table
from iwae.errors import UserError

_NUMBER = re.compile(r"u?int(8|16|32|64)|float(16|32|64)?|double")
_BIT = re.compile(r"bool(ean)?")

REMEDIES = Remedies("leave it out", "", "leave it out", "by a categorical dtype", "make it missing")
"""The remedies that messages about a column of a frame give."""


class Dtype(NamedTuple):
    """The type of a column of a frame.

    Attributes:
        name: of the type: pandas' own, or that of narwhals for other frames.
        categories: of a categorical column, in order; None for others, and where the library keeps
            none with the type (Polars' Categorical).
        ordered: whether the categories have an order.
    """

    name: str
    categories: list[Any] | None = None
    ordered: bool = False


class Form(NamedTuple):
    """The form of a frame: its library, as narwhals calls it, and the type of each column."""

    library: Any
    dtypes: tuple[Dtype, ...]


# --- frames in -------------------------------------------------------------------------------


def is_auto(observation: Any) -> bool:
    """Whether the kinds of the data are to be taken from the columns of a frame."""
    return isinstance(observation, str) and observation == "auto"


def describe(X: Any) -> tuple[tuple[Column, ...], Form]:
    """The columns of a frame, by the rule of `iwae.data.columns`, and its form.

    A column with a categorical dtype is a category, whatever the rule says of its values.

    Raises:
        UserError: if X is no frame, or names the column that the rule refuses.
    """
    import narwhals as nw

    table = _table(X)
    data = nw.from_native(X, eager_only=True)
    is_pandas = data.implementation.is_pandas()
    if odd := [one for one in data.columns if not isinstance(one, str)]:
        raise UserError(f"X has the column name {odd[0]!r}, which is not a string: rename it")
    wanted = {
        series.name: "categorical"
        for series in data.iter_columns()
        if series.dtype in (nw.Categorical, nw.Enum) and series.drop_nulls().n_unique() > 1
    }
    columns = choose_columns(table, wanted)
    dtypes = (_pandas_dtype if is_pandas else _dtype)(series for series in data.iter_columns())
    return columns, Form(str(data.implementation.value), tuple(dtypes))


def set_columns(estimator: Any, columns: tuple[Column, ...], form: Form) -> None:
    """Set the attributes of an estimator that say what frames it takes."""
    estimator.columns_, estimator._form_ = columns, form
    estimator.feature_names_in_ = np.array([one.name for one in columns], object)
    estimator.n_features_in_ = len(columns)


def _dtype(columns: Any) -> list[Dtype]:
    found = []
    for series in columns:
        categories = getattr(series.dtype, "categories", None)
        name = type(series.dtype).__name__
        found.append(Dtype(name, None if categories is None else list(categories)))
    return found


def _pandas_dtype(columns: Any) -> list[Dtype]:
    found = []
    for series in columns:
        native = series.to_native()
        dtype = native.dtype
        if str(dtype) == "category":
            found.append(Dtype("category", dtype.categories.tolist(), bool(dtype.ordered)))
        else:
            is_bit = dtype.kind == "O" and all(isinstance(one, bool) for one in native.dropna())
            found.append(Dtype("bool" if is_bit else str(dtype)))
    return found


def frame_values(X: Any, columns: Sequence[Column], *, missing: bool) -> Float[np.ndarray, "n d"]:
    """The values of a frame, float64, NaN where missing; its columns are found by name.

    Args:
        columns: those of the frame of `fit`.
        missing: whether values may be missing.

    Raises:
        UserError: if X is no frame, its columns are others, or a word or a gap is refused.
    """
    values = to_values(_table(X), columns)
    if not missing and np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise UserError(
            f"X has no value in row {row + 1}, column {columns[column].name!r}: fit with "
            "missing='at-random', or leave such rows out"
        )
    return values


def _table(X: Any) -> Table:
    import narwhals as nw

    if not nw.dependencies.is_into_dataframe(X):
        raise UserError(
            f"X is a {type(X).__name__}, but observation='auto' takes a data frame (pandas, "
            "Polars, PyArrow): give one, or fit with the kinds of the columns as observation"
        )
    return frame_table(X, where="X", remedies=REMEDIES)


def refuse_words(X: Any) -> None:
    """Raise ValueError for a frame whose columns are not all numbers, or share a name."""
    import narwhals as nw

    if not nw.dependencies.is_into_dataframe(X):
        return
    try:
        data = nw.from_native(X, eager_only=True)
        names = data.columns
    except nw.exceptions.DuplicateError:
        raise ValueError("X has several columns of one name: rename all but one") from None
    for name, series in zip(names, data.iter_columns(), strict=True):
        if series.dtype.is_numeric() or series.dtype == nw.Boolean:
            continue
        cells = series.to_list()
        if any(hasattr(one, "isoformat") and one == one for one in cells):  # noqa: PLR0124 - NaT
            raise ValueError(
                f"X holds dates or times, not numbers, in column {name!r}: convert them first, to "
                "days for instance"
            )
        word = next((one for one in cells if isinstance(one, str)), None)
        if word is not None:
            raise ValueError(
                f"X holds words in column {name!r}, such as {word[:40]!r}: fit with "
                "observation='auto', or convert the column to numbers"
            )


# --- frames out ------------------------------------------------------------------------------


def given_back(estimator: Any, rows: np.ndarray, **like: Any) -> Any:
    """Rows as an estimator gives them: frames, if it was fitted to one with `auto`.

    Args:
        rows: `[n, d]`, or `[draws, n, d]`, of which there is then a list of frames.
        like: `observed` and `like` of `to_frame`.
    """
    if not hasattr(estimator, "columns_"):
        return rows
    if rows.ndim == 3:
        return [given_back(estimator, one, **like) for one in rows]
    return to_frame(rows, estimator.columns_, estimator._form_, **like)


def to_frame(
    values: Float[np.ndarray, "n d"],
    columns: Sequence[Column],
    form: Form,
    *,
    observed: np.ndarray | None = None,
    like: Any = None,
) -> Any:
    """A frame of the form of that of `fit`, from values without gaps.

    Words, booleans and categories come back as they were. Whole numbers are rounded, except in a
    column of `observed` with fractions; those that its integer type cannot hold are int64.

    Args:
        observed: values `[n, d]` that must come back unchanged, NaN where there is none.
        like: a frame whose index the rows have, if it is one of pandas and so is the result.
    """
    import narwhals as nw

    if observed is not None:
        columns = with_fractions(columns, observed)
    cells, types = {}, {}
    for (name, column), dtype in zip(to_cells(values, columns).items(), form.dtypes, strict=True):
        cells[name], types[name] = _restored(column, dtype)
    if form.library != "pandas":
        series = {
            name: nw.new_series(name, one, _narwhals(types[name]), backend=form.library)
            for name, one in cells.items()
        }
        return nw.from_dict(series).to_native()
    import pandas as pd

    index = like.index if isinstance(like, pd.DataFrame) else None
    frame = pd.DataFrame(cells, index=index)
    return frame.astype({name: _pandas(one) for name, one in types.items() if one is not None})


def _restored(cells: np.ndarray, dtype: Dtype) -> tuple[np.ndarray, Dtype | None]:
    """The cells as a type takes them, and the type; None if it does not take them."""
    name = dtype.name.partition("[")[0].lower()
    if dtype.categories is not None:
        words = {_word(one): one for one in dtype.categories}
        return np.array([*(words[_word(one)] for one in cells), None], object)[:-1], dtype
    if _BIT.fullmatch(name):
        return np.array([str(one).lower() == "true" for one in cells]), dtype
    if cells.dtype == object:
        return cells, dtype
    if not _NUMBER.fullmatch(name):
        return cells, None
    if "int" in name:
        held = np.iinfo(name)
        whole = cells.dtype.kind == "i" and len(cells) > 0
        if not whole or cells.min() < held.min or cells.max() > held.max:
            return cells, None
    return cells, dtype


def _word(one: Any) -> str:
    """A category as a level's word."""
    is_number = isinstance(one, int | float | np.number) and not isinstance(one, bool)
    return np.format_float_positional(float(one), trim="-") if is_number else str(one)


def _narwhals(dtype: Dtype | None) -> Any:
    import narwhals as nw

    if dtype is None or dtype.name == "Object":
        return None
    return nw.Enum(dtype.categories) if dtype.categories is not None else getattr(nw, dtype.name)


def _pandas(dtype: Dtype) -> Any:
    import pandas as pd

    if dtype.categories is None:
        return dtype.name
    return pd.CategoricalDtype(dtype.categories, dtype.ordered)


# --- files -----------------------------------------------------------------------------------


def frame_json(columns: Sequence[Column], form: Form) -> dict[str, Any]:
    """Columns and form as JSON."""
    dtypes = [one._asdict() for one in form.dtypes]
    return {"columns": as_json(columns), "library": form.library, "dtypes": dtypes}


def frame_from(facts: Mapping[str, Any]) -> tuple[tuple[Column, ...], Form]:
    """The inverse of `frame_json`.

    Raises:
        ValueError: if they do not describe the same frame, or its library is not installed.
    """
    columns = from_json(facts["columns"])
    form = Form(facts["library"], tuple(Dtype(**one) for one in facts["dtypes"]))
    if not len(form.dtypes) == len(columns) == len({one.name for one in columns}):
        raise ValueError("its columns are not those of a frame")
    kinds = column_kinds(make_kind("table", columns=tuple(one.kind for one in columns)))
    for kind, column in zip(kinds, columns, strict=True):
        known = {"categorical": (kind.categories,), "bernoulli": (1, 2)}.get(kind.name, ())
        if column.levels and len(column.levels) not in known:
            raise ValueError(f"column {column.name!r} has {len(column.levels)} levels")
    if importlib.util.find_spec(str(form.library)) is None:
        raise ValueError(f"its frames are of {form.library!r}, which is not installed")
    return columns, form

"""Data frames of the estimator: values from frames, and frames of the same form from values."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from iwae.data.cells import LARGEST_EXACT, number_as_cell, object_cells
from iwae.data.coding import code_fractions, decode_cells, to_values
from iwae.data.columns import Column, choose_columns, columns_as_json, columns_from_json
from iwae.data.kinds import column_kinds, make_kind
from iwae.data.tables import Remedies, Table, open_table_frame, table_from_frame
from iwae.errors import UserError

_NUMERIC_DTYPE = re.compile(r"u?int(8|16|32|64)|float(16|32|64)?|double")
_BOOLEAN_DTYPE = re.compile(r"bool(ean)?")

REMEDIES = Remedies(
    "leave it out",
    "",
    "leave it out",
    "by a categorical dtype",
    "count unknown words as missing (unknown='missing')",
)
"""The remedies for a column of a frame that is refused."""


class Dtype(NamedTuple):
    """The type of a column of a frame.

    Attributes:
        name: the name of the type: pandas' own, or that of narwhals for other libraries.
        categories: the categories of a categorical column, in order; None for other columns, and
            if the type does not state them (Polars' Categorical).
        ordered: whether the categories have an order.
    """

    name: str
    categories: list[Any] | None = None
    ordered: bool = False


class Form(NamedTuple):
    """The form of a frame.

    Attributes:
        library: the name of its library in narwhals.
        dtypes: the type of each column.
        names: the label of each column; in pandas it need not be a string.
    """

    library: Any
    dtypes: tuple[Dtype, ...]
    names: tuple[Any, ...]


# --- frames in -------------------------------------------------------------------------------


def takes_data_frames(observation: Any) -> bool:
    """Whether `observation` leaves the kinds of data to the columns of a frame."""
    return isinstance(observation, str) and observation == "auto"


def describe(X: Any) -> tuple[tuple[Column, ...], Form]:
    """The columns of a frame, by the rule of `iwae.data.columns`, and its form.

    A column with a categorical dtype is a category, whatever its values.

    Raises:
        UserError: if X is not a frame, or names a column that the rule refuses.
    """
    import narwhals as nw

    table = _frame_table(X)
    data = nw.from_native(X, eager_only=True)
    if odd := [one for one in data.columns if not isinstance(one, str)]:
        raise UserError(f"X has the column name {odd[0]!r}, which is not a string: rename it")
    wanted = {
        series.name: "categorical"
        for series in data.iter_columns()
        if series.dtype in (nw.Categorical, nw.Enum) and series.drop_nulls().n_unique() > 1
    }
    return choose_columns(table, wanted), _form(X)


def data_frame_form(X: Any) -> Form | None:
    """The form of a frame; None if X is none."""
    import narwhals as nw

    return _form(X) if nw.dependencies.is_into_dataframe(X) else None


def _form(X: Any) -> Form:
    import narwhals as nw

    data = nw.from_native(X, eager_only=True)
    is_pandas = data.implementation.is_pandas()
    dtypes = map(_pandas_dtype if is_pandas else _dtype, data.iter_columns())
    names = X.columns.tolist() if is_pandas else data.columns
    return Form(str(data.implementation.value), tuple(dtypes), tuple(names))


def set_data_frame_columns(estimator: Any, columns: tuple[Column, ...], form: Form) -> None:
    """Set the attributes of an estimator that describe the frames it takes."""
    estimator.columns_, estimator._form_ = columns, form
    estimator.feature_names_in_ = np.array([one.name for one in columns], object)
    estimator.n_features_in_ = len(columns)


def _dtype(series: Any) -> Dtype:
    categories = getattr(series.dtype, "categories", None)
    return Dtype(type(series.dtype).__name__, None if categories is None else list(categories))


def _pandas_dtype(series: Any) -> Dtype:
    native = series.to_native()
    dtype = native.dtype
    if str(dtype) == "category":
        return Dtype("category", dtype.categories.tolist(), bool(dtype.ordered))
    is_bit = dtype.kind == "O" and all(isinstance(one, bool) for one in native.dropna())
    return Dtype("bool" if is_bit else str(dtype))


def frame_values(
    X: Any, columns: Sequence[Column], *, missing: bool, unknown: str = "error"
) -> Float[np.ndarray, "n d"]:
    """The values of a frame, float64, NaN where missing; its columns are found by name.

    Args:
        columns: the columns of the frame of `fit`.
        missing: whether values may be missing.
        unknown: as for `iwae.data.coding.to_values`.

    Raises:
        UserError: if X is not a frame, has other columns, or holds a word or a gap that is refused.
    """
    values = to_values(_frame_table(X), columns, unknown=unknown)
    if not missing and np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise UserError(
            f"X has no value in row {row + 1}, column {columns[column].name!r}: fit with "
            "missing='at-random', or leave such rows out"
        )
    return values


def _frame_table(X: Any) -> Table:
    import narwhals as nw

    _refuse_lazy(X)
    if not nw.dependencies.is_into_dataframe(X):
        raise UserError(
            f"X is a {type(X).__name__}, but observation='auto' takes a data frame (pandas, "
            "Polars, PyArrow): give one, or fit with the kinds of the columns as observation"
        )
    return table_from_frame(X, where="X", remedies=REMEDIES)


def _refuse_lazy(X: Any) -> None:
    """Raise UserError for a lazy frame."""
    if hasattr(X, "collect"):
        raise UserError(f"X is a {type(X).__name__}, which has no rows yet: collect() it")


def refuse_data_frame_words(X: Any) -> None:
    """Raise ValueError for a frame whose columns are not all numbers, or share a name."""
    import narwhals as nw

    _refuse_lazy(X)
    if not nw.dependencies.is_into_dataframe(X):
        return
    data = open_table_frame(X, "X")
    for name, series in zip(data.columns, data.iter_columns(), strict=True):
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
        others = (one for one in cells if one is not None and str(one) != "<NA>")
        odd = next((one for one in others if not hasattr(one, "__float__")), None)
        if odd is not None:
            raise ValueError(
                f"X holds {type(odd).__name__} objects in column {name!r}, not numbers: convert "
                "them first, to words for observation='auto'"
            )


# --- frames out ------------------------------------------------------------------------------


def to_data_frame_output(estimator: Any, rows: np.ndarray, form: Form | None, **like: Any) -> Any:
    """Rows as an estimator returns them: frames of a form, or arrays if there is none.

    Args:
        rows: `[n, d]`, or `[draws, n, d]` for a list of frames.
        form: the form of the frame of `fit`; unless `observation` is "auto", that of any frame.
        like: `observed` and `like` of `_to_frame`.
    """
    if form is None:
        return rows
    if rows.ndim == 3:
        return [to_data_frame_output(estimator, one, form, **like) for one in rows]
    columns = getattr(estimator, "columns_", None) or _numeric_columns(rows, form)
    return _to_frame(rows, columns, form, **like)


def _numeric_columns(rows: np.ndarray, form: Form) -> tuple[Column, ...]:
    """Columns of numbers, whole if all their values in these rows are whole."""
    whole = ((rows == np.rint(rows)) & (np.abs(rows) < LARGEST_EXACT)).all(axis=0)
    named = zip(form.names, whole, strict=True)
    return tuple(Column(str(name), "gaussian", whole=bool(one)) for name, one in named)


def _to_frame(
    values: Float[np.ndarray, "n d"],
    columns: Sequence[Column],
    form: Form,
    *,
    observed: np.ndarray | None = None,
    like: Any = None,
) -> Any:
    """A frame of the form of the frame of `fit`, from values without gaps.

    Words, booleans and categories have their types. Whole numbers are rounded, except in a column
    with fractions in `observed`; those beyond the integer type of the column are int64.

    Args:
        observed: observed values `[n, d]`, which stay unchanged; NaN where there is none.
        like: a frame whose index the rows have, if both frames are of pandas.
    """
    import narwhals as nw

    if observed is not None:
        columns = code_fractions(columns, observed)
    _refuse_absent(form.library)
    numbered = [one._replace(name=str(i)) for i, one in enumerate(columns)]
    found = decode_cells(values, numbered).values()
    cells, types = {}, {}
    for i, (column, dtype) in enumerate(zip(found, form.dtypes, strict=True)):
        cells[i], types[i] = _cast(column, dtype)
    if form.library != "pandas":
        series = {
            name: nw.new_series(name, cells[i], _narwhals_dtype(types[i]), backend=form.library)
            for i, name in enumerate(form.names)
        }
        return nw.from_dict(series).to_native()
    import pandas as pd

    index = like.index if isinstance(like, pd.DataFrame) else None
    frame = pd.DataFrame(cells, index=index)
    frame = frame.astype({i: _pandas_type(one) for i, one in types.items() if one is not None})
    return frame.set_axis(pd.Index(form.names), axis=1)


def _cast(cells: np.ndarray, dtype: Dtype) -> tuple[np.ndarray, Dtype | None]:
    """The cells converted for a type, and the type; None for a type that cannot hold them."""
    name = dtype.name.partition("[")[0].lower()
    found: np.ndarray | None = cells
    if dtype.categories is not None:
        found = _to_categories(cells, dtype.categories)
    elif _BOOLEAN_DTYPE.fullmatch(name):
        found = _to_booleans(cells)
    elif cells.dtype != object and "int" in name and _NUMERIC_DTYPE.fullmatch(name):
        held = np.iinfo(name)
        whole = cells.dtype.kind == "i" and len(cells) > 0
        if not whole or cells.min() < held.min or cells.max() > held.max:
            found = None
    elif cells.dtype != object and not _NUMERIC_DTYPE.fullmatch(name):
        found = None
    return (cells, None) if found is None else (found, dtype)


def _to_categories(cells: np.ndarray, categories: Sequence[Any]) -> np.ndarray | None:
    """The cells as categories; None unless all are among them."""
    known = {_level_of(one): one for one in categories}
    words = [_level_of(one) for one in cells]
    if not known.keys() >= set(words):
        return None
    return object_cells(known[one] for one in words)


def _to_booleans(cells: np.ndarray) -> np.ndarray | None:
    """The cells as booleans; None if one is a number other than 0 and 1."""
    if cells.dtype.kind in "if":
        return cells.astype(bool) if np.isin(cells, (0, 1)).all() else None
    return np.array([str(one).lower() == "true" for one in cells])


def _level_of(one: Any) -> str:
    """The level of a category."""
    is_number = isinstance(one, int | float | np.number) and not isinstance(one, bool)
    return number_as_cell(float(one)) if is_number else str(one)


def _narwhals_dtype(dtype: Dtype | None) -> Any:
    import narwhals as nw

    if dtype is None or dtype.name == "Object":
        return None
    return nw.Enum(dtype.categories) if dtype.categories is not None else getattr(nw, dtype.name)


def _pandas_type(dtype: Dtype) -> Any:
    import pandas as pd

    if dtype.categories is None:
        return dtype.name
    return pd.CategoricalDtype(dtype.categories, dtype.ordered)


# --- files -----------------------------------------------------------------------------------


def data_frame_json(columns: Sequence[Column], form: Form) -> dict[str, Any]:
    """Columns and form as JSON; labels that are neither strings nor whole numbers as `repr`."""
    return {
        "columns": columns_as_json(columns),
        "library": form.library,
        "dtypes": [one._asdict() for one in form.dtypes],
        "names": [one if type(one) in (str, int) else repr(one) for one in form.names],
    }


def stored_data_frame_form(facts: Mapping[str, Any], names: Sequence[str]) -> Form:
    """The form of `data_frame_json`.

    Args:
        facts: the result of `data_frame_json`.
        names: the labels of the columns, which older files leave out.

    Raises:
        ValueError: if its parts disagree.
    """
    found = tuple(facts.get("names", names))
    form = Form(facts["library"], tuple(Dtype(**one) for one in facts["dtypes"]), found)
    if not len(form.dtypes) == len(found) == len(set(found)):
        raise ValueError("its columns are not those of a frame")
    return form


def data_frame_from_json(facts: Mapping[str, Any]) -> tuple[tuple[Column, ...], Form]:
    """The inverse of `data_frame_json` for a frame of "auto".

    Raises:
        ValueError: if the facts do not describe a frame, or its library is not installed.
    """
    columns = columns_from_json(facts["columns"])
    form = stored_data_frame_form(facts, names := [one.name for one in columns])
    if list(form.names) != names:
        raise ValueError("its columns are not those of a frame")
    kinds = column_kinds(make_kind("table", columns=tuple(one.kind for one in columns)))
    for kind, column in zip(kinds, columns, strict=True):
        known = {"categorical": (kind.categories,), "bernoulli": (1, 2)}.get(kind.name, ())
        if column.levels and len(column.levels) not in known:
            raise ValueError(f"column {column.name!r} has {len(column.levels)} levels")
    _refuse_absent(form.library)
    return columns, form


def _refuse_absent(library: Any) -> None:
    """Raise UserError if a library of frames is not installed."""
    if importlib.util.find_spec(str(library)) is None:
        raise UserError(f"its frames are of {library!r}, which is not installed: install it")

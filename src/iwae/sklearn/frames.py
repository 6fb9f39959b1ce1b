"""Data frames of the estimator: their columns as values, and values as frames of the same form."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from iwae.data.cells import LARGEST_EXACT
from iwae.data.coding import to_cells, to_values, with_fractions
from iwae.data.columns import Column, as_json, choose_columns, from_json
from iwae.data.kinds import column_kinds, make_kind
from iwae.data.tables import Remedies, Table, frame_table
from iwae.errors import UserError

_NUMBER = re.compile(r"u?int(8|16|32|64)|float(16|32|64)?|double")
_BIT = re.compile(r"bool(ean)?")

REMEDIES = Remedies(
    "leave it out",
    "",
    "leave it out",
    "by a categorical dtype",
    "count unknown words as missing (unknown='missing')",
)
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
    """The form of a frame.

    Attributes:
        library: as narwhals calls it.
        dtypes: the type of each column.
        names: the label of each column; in pandas it need not be a string.
    """

    library: Any
    dtypes: tuple[Dtype, ...]
    names: tuple[Any, ...]


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
    if odd := [one for one in data.columns if not isinstance(one, str)]:
        raise UserError(f"X has the column name {odd[0]!r}, which is not a string: rename it")
    wanted = {
        series.name: "categorical"
        for series in data.iter_columns()
        if series.dtype in (nw.Categorical, nw.Enum) and series.drop_nulls().n_unique() > 1
    }
    return choose_columns(table, wanted), _form(X)


def form_of(X: Any) -> Form | None:
    """The form of a frame; None if X is none."""
    import narwhals as nw

    return _form(X) if nw.dependencies.is_into_dataframe(X) else None


def _form(X: Any) -> Form:
    import narwhals as nw

    data = nw.from_native(X, eager_only=True)
    is_pandas = data.implementation.is_pandas()
    dtypes = (_pandas_dtype if is_pandas else _dtype)(data.iter_columns())
    names = X.columns.tolist() if is_pandas else data.columns
    return Form(str(data.implementation.value), tuple(dtypes), tuple(names))


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


def frame_values(
    X: Any, columns: Sequence[Column], *, missing: bool, unknown: str = "error"
) -> Float[np.ndarray, "n d"]:
    """The values of a frame, float64, NaN where missing; its columns are found by name.

    Args:
        columns: those of the frame of `fit`.
        missing: whether values may be missing.
        unknown: as for `iwae.data.columns.to_values`.

    Raises:
        UserError: if X is no frame, its columns are others, or a word or a gap is refused.
    """
    values = to_values(_table(X), columns, unknown=unknown)
    if not missing and np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise UserError(
            f"X has no value in row {row + 1}, column {columns[column].name!r}: fit with "
            "missing='at-random', or leave such rows out"
        )
    return values


def _table(X: Any) -> Table:
    import narwhals as nw

    refuse_lazy(X)
    if not nw.dependencies.is_into_dataframe(X):
        raise UserError(
            f"X is a {type(X).__name__}, but observation='auto' takes a data frame (pandas, "
            "Polars, PyArrow): give one, or fit with the kinds of the columns as observation"
        )
    return frame_table(X, where="X", remedies=REMEDIES)


def refuse_lazy(X: Any) -> None:
    """Raise UserError for a frame that has no rows yet."""
    if hasattr(X, "collect"):
        raise UserError(f"X is a {type(X).__name__}, which has no rows yet: collect() it")


def refuse_words(X: Any) -> None:
    """Raise ValueError for a frame whose columns are not all numbers, or share a name."""
    import narwhals as nw

    refuse_lazy(X)
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
        others = (one for one in cells if one is not None and str(one) != "<NA>")
        odd = next((one for one in others if not hasattr(one, "__float__")), None)
        if odd is not None:
            raise ValueError(
                f"X holds {type(odd).__name__} objects in column {name!r}, not numbers: convert "
                "them first, to words for observation='auto'"
            )


# --- frames out ------------------------------------------------------------------------------


def given_back(estimator: Any, rows: np.ndarray, form: Form | None, **like: Any) -> Any:
    """Rows as an estimator gives them: frames of a form, arrays if there is none.

    Args:
        rows: `[n, d]`, or `[draws, n, d]`, of which there is then a list of frames.
        form: of the frame of `fit`; with other columns than those of `auto`, that of any frame.
        like: `observed` and `like` of `to_frame`.
    """
    if form is None:
        return rows
    if rows.ndim == 3:
        return [given_back(estimator, one, form, **like) for one in rows]
    columns = getattr(estimator, "columns_", None) or _plain(rows, form)
    return to_frame(rows, columns, form, **like)


def _plain(rows: np.ndarray, form: Form) -> tuple[Column, ...]:
    """Columns of numbers, which are whole if all values in these rows are."""
    whole = ((rows == np.rint(rows)) & (np.abs(rows) < LARGEST_EXACT)).all(axis=0)
    named = zip(form.names, whole, strict=True)
    return tuple(Column(str(name), "gaussian", whole=bool(one)) for name, one in named)


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
    _refuse_absent(form.library)
    numbered = [one._replace(name=str(i)) for i, one in enumerate(columns)]
    found = to_cells(values, numbered).values()
    cells, types = {}, {}
    for i, (column, dtype) in enumerate(zip(found, form.dtypes, strict=True)):
        cells[i], types[i] = _restored(column, dtype)
    if form.library != "pandas":
        series = {
            name: nw.new_series(name, cells[i], _narwhals(types[i]), backend=form.library)
            for i, name in enumerate(form.names)
        }
        return nw.from_dict(series).to_native()
    import pandas as pd

    index = like.index if isinstance(like, pd.DataFrame) else None
    frame = pd.DataFrame(cells, index=index)
    frame = frame.astype({i: _pandas(one) for i, one in types.items() if one is not None})
    return frame.set_axis(pd.Index(form.names), axis=1)


def _restored(cells: np.ndarray, dtype: Dtype) -> tuple[np.ndarray, Dtype | None]:
    """The cells as a type takes them, and the type; None if it does not take them."""
    name = dtype.name.partition("[")[0].lower()
    found: np.ndarray | None = cells
    if dtype.categories is not None:
        found = _categories(cells, dtype.categories)
    elif _BIT.fullmatch(name):
        found = _bits(cells)
    elif cells.dtype != object and "int" in name and _NUMBER.fullmatch(name):
        held = np.iinfo(name)
        whole = cells.dtype.kind == "i" and len(cells) > 0
        if not whole or cells.min() < held.min or cells.max() > held.max:
            found = None
    elif cells.dtype != object and not _NUMBER.fullmatch(name):
        found = None
    return (cells, None) if found is None else (found, dtype)


def _categories(cells: np.ndarray, categories: Sequence[Any]) -> np.ndarray | None:
    """The cells as categories; None if one is none of them."""
    known = {_word(one): one for one in categories}
    words = [_word(one) for one in cells]
    if not known.keys() >= set(words):
        return None
    return np.array([*(known[one] for one in words), None], object)[:-1]


def _bits(cells: np.ndarray) -> np.ndarray | None:
    """The cells as booleans; None if one is a number other than 0 and 1."""
    if cells.dtype.kind in "if":
        return cells.astype(bool) if np.isin(cells, (0, 1)).all() else None
    return np.array([str(one).lower() == "true" for one in cells])


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
    """Columns and form as JSON; labels that are neither strings nor whole numbers as `repr`."""
    return {
        "columns": as_json(columns),
        "library": form.library,
        "dtypes": [one._asdict() for one in form.dtypes],
        "names": [one if type(one) in (str, int) else repr(one) for one in form.names],
    }


def form_from(facts: Mapping[str, Any], names: Sequence[str]) -> Form:
    """The form of `frame_json`.

    Args:
        facts: what that made.
        names: the labels that older files leave out.

    Raises:
        ValueError: if its parts disagree.
    """
    found = tuple(facts.get("names", names))
    form = Form(facts["library"], tuple(Dtype(**one) for one in facts["dtypes"]), found)
    if not len(form.dtypes) == len(found) == len(set(found)):
        raise ValueError("its columns are not those of a frame")
    return form


def frame_from(facts: Mapping[str, Any]) -> tuple[tuple[Column, ...], Form]:
    """The inverse of `frame_json`, of a frame of `auto`.

    Raises:
        ValueError: if they do not describe the same frame, or its library is not installed.
    """
    columns = from_json(facts["columns"])
    form = form_from(facts, names := [one.name for one in columns])
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

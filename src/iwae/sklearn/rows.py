"""Rows in the form of scikit-learn: checks, standardisation, and a hash of each row."""

import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt
from pydantic import TypeAdapter, ValidationError

from iwae.data import Kind
from iwae.data.scaling import fit_scaling, is_constant, refuse_merged, scaled_columns
from iwae.errors import counted
from iwae.evaluation.imputation import Imputed
from iwae.sklearn.frames import refuse_words


def check_count(name: str, value: Any) -> int:
    """The value as an int; ValueError if it is not a whole number of at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} == {value!r}, must be a whole number of at least 1")
    return int(value)


def check_number(name: str, value: Any, legal: Callable[[Any], bool], words: str) -> None:
    """Raise ValueError if the value is not a number that is legal, as the words say."""
    if not isinstance(value, int | float | np.number) or not legal(value):
        raise ValueError(f"{name} == {value!r}, must be a number {words}")


def check_option(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError for an option of an objective that has the wrong type."""
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        words = getattr(hint, "__name__", None) or str(hint)
        raise ValueError(f"objective_params has {name} == {value!r}, must be {words}") from None


def check_hide(hide: Any, missing: Any) -> None:
    """Raise ValueError for a share of values to hide that is none, or without values at random."""
    is_share = isinstance(hide, int | float | np.number) and 0 <= hide < 1
    if hide is not None and not is_share:
        raise ValueError(f"hide == {hide!r}, must be None or a number from 0 to below 1")
    if hide and missing != "at-random":
        raise ValueError(f"hide == {hide!r} needs missing='at-random'")


def check_unknown(unknown: Any, missing: Any, *, is_frame: bool) -> None:
    """Raise ValueError for another treatment of unknown words, or one that the model has not."""
    if not isinstance(unknown, str) or unknown not in ("error", "missing"):
        raise ValueError(f"unknown == {unknown!r}, must be 'error' or 'missing'")
    if unknown == "missing" and (missing is None or not is_frame):
        raise ValueError("unknown == 'missing' needs observation='auto' and missing='at-random'")


def check_source(X: Any) -> None:
    """Raise ValueError for values that scikit-learn would silently convert to wrong numbers."""
    refuse_words(X)
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):
        raise ValueError(
            "X is a masked array, whose mask would be ignored: give X.filled(np.nan), with "
            "missing='at-random'"
        )
    dtypes = X.dtypes if hasattr(X, "dtypes") else [getattr(X, "dtype", None)]
    if any(getattr(dtype, "kind", None) in ("m", "M") for dtype in dtypes):
        raise ValueError(
            "X holds dates or times, not numbers: convert them first, to days for instance"
        )


def column_labels(X: Any) -> list[str] | None:
    """The labels of the columns of a data frame; None if X is not one.

    A label may be a number, a date or a tuple; its `repr` is kept, which any file can store.
    """
    names = getattr(X, "column_names", None) or getattr(X, "columns", None)  # PyArrow's, or labels
    return None if names is None else [repr(label) for label in names]


def check_order(labels: list[str] | None, known: list[str] | None) -> None:
    """Raise ValueError for the columns of `fit` in another order."""
    if labels and known and labels != known and set(labels) == set(known):
        order = ", ".join(known)
        raise ValueError(f"X has the columns of fit in another order: give them as [{order}]")


def check_labels(labels: Any, d: int) -> list[str] | None:
    """Column labels from a file; ValueError if they are not labels of d columns."""
    if labels is None:
        return None
    if not isinstance(labels, list) or [type(one) for one in labels] != [str] * d:
        raise ValueError(f"_labels_ are not those of {d} columns")
    return labels


def check_gaps(rows: Float[np.ndarray, "n d"]) -> None:
    """Raise ValueError for a column whose values are all missing."""
    missing = np.isnan(rows).all(axis=0)
    if missing.any():
        raise ValueError(
            f"column {missing.argmax() + 1} of X has no value in any row: leave it out"
        )


def standards(
    rows: Float[np.ndarray, "n d"], kind: Kind, *, standardize: bool
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Mean and standard deviation of each column to standardise; 0 and 1 for the others.

    Raises:
        ValueError: for a column whose standard deviation is beyond float64, or whose differences
            float32 loses because it is not standardised.
    """
    real = scaled_columns(kind, rows.shape[1])
    constant = real & is_constant(rows)
    if constant.any():
        warnings.warn(
            f"Features {np.flatnonzero(constant)} are constant: their density is as high as "
            "the minimum scale of a Gaussian allows; leave them out",
            UserWarning,
            stacklevel=4,
        )
    found = fit_scaling(rows, real & standardize, "X")
    refuse_merged(rows, found, (), "X")
    return found


def warn_doubtful(found: Imputed, *, anneal: bool) -> None:
    """Warn of rows whose imputed values are unreliable by k-hat of their weights."""
    count = int((found.pareto_k > found.threshold).sum())
    if count:
        warnings.warn(
            f"k-hat is too large for {counted(count, 'row')}, whose imputed values are "
            f"unreliable: {'raise max_iter, or hide' if anneal else 'anneal them'}",
            UserWarning,
            stacklevel=3,
        )


def addresses(rows: np.ndarray) -> UInt[np.ndarray, " n"]:
    """A hash of each row that depends on its values alone; all nans are equal, and 0 and -0."""
    rows = np.where(np.isnan(rows), np.float32(np.nan), rows) + np.float32(0)
    return np.array([zlib.crc32(row.tobytes()) for row in np.ascontiguousarray(rows)], np.uint32)


def one_each(values: Any, d: int) -> np.ndarray:
    """The values as a float64 array with one for each of d columns."""
    array = np.asarray(values, np.float64)
    if array.shape != (d,) or not np.isfinite(array).all():
        raise ValueError(f"expected {d} finite numbers")
    return array


def names_of_each(values: Any, d: int) -> np.ndarray:
    """The values as an object array with a name for each of d columns."""
    named = isinstance(values, list) and all(isinstance(name, str) for name in values)
    if not named or len(values) != d:
        raise ValueError(f"expected {d} column names")
    return np.asarray(values, object)


def plain(value: Any) -> Any:
    """The value as JSON can store it."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(one) for one in np.asarray(value, object).tolist()]
    return value.item() if isinstance(value, np.generic) else value

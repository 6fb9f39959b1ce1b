"""Rows in scikit-learn's form: checks, standardisation, and a hash of each row."""

import warnings
import zlib
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from iwae.data import Kind
from iwae.data.kinds import check_kind_values
from iwae.data.scaling import fit_scaling, refuse_coarse_scaling, scaled_columns
from iwae.sklearn.data_frames import frame_values, refuse_data_frame_words


def read_rows(estimator: Any, X: Any, kind: Kind, *, reset: bool = False) -> np.ndarray:
    """X as an array `[n, d]` of values that are valid for the kind of data.

    Args:
        estimator: an estimator in `fit`, or a fitted one.
        X: an array, a sparse matrix or a frame.
        kind: the kind of data.
        reset: whether X is the input of `fit`.

    Raises:
        ValueError: for any other X.
    """
    missing = estimator.missing if reset else estimator.model_.missing
    validate = partial(validate_data, estimator, reset=reset)
    if hasattr(estimator, "columns_"):
        gaps = missing is not None
        X = frame_values(X, estimator.columns_, missing=gaps, unknown=estimator.unknown)
        validate = partial(check_array, estimator=estimator, input_name="X")
    _check_source(X)
    rows = validate(
        X,
        accept_sparse=("csr", "csc", "coo"),
        dtype=(np.float64, np.float32),
        ensure_all_finite="allow-nan" if missing else True,
        ensure_min_samples=2 if reset else 1,
    )
    # scikit-learn checks the order of columns only if their names are strings.
    labels = _column_labels(X)
    if reset:
        estimator._labels_ = labels
    else:
        _check_order(labels, estimator._labels_)
    rows = rows.toarray() if hasattr(rows, "toarray") else rows
    check_kind_values(rows, kind, "X", missing=missing is not None)
    if reset:
        _check_gaps(rows)
    return rows


def _check_source(X: Any) -> None:
    """Raise ValueError for values that scikit-learn would silently convert to wrong numbers."""
    refuse_data_frame_words(X)
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


def _column_labels(X: Any) -> list[str] | None:
    """The labels of the columns of a data frame, as `repr`; None if X is not a frame.

    A label may be a number, a date or a tuple, but any file can store its `repr`.
    """
    names = getattr(X, "column_names", None) or getattr(X, "columns", None)  # PyArrow's, or labels
    return None if names is None else [repr(label) for label in names]


def _check_order(labels: list[str] | None, known: list[str] | None) -> None:
    """Raise ValueError if the columns of `fit` are in another order."""
    if labels and known and labels != known and set(labels) == set(known):
        order = ", ".join(known)
        raise ValueError(f"X has the columns of fit in another order: give them as [{order}]")


def _check_gaps(rows: Float[np.ndarray, "n d"]) -> None:
    """Raise ValueError for a column whose values are all missing."""
    missing = np.isnan(rows).all(axis=0)
    if missing.any():
        raise ValueError(
            f"column {missing.argmax() + 1} of X has no value in any row: leave it out"
        )


def input_row_standards(
    rows: Float[np.ndarray, "n d"], kind: Kind, *, standardize: bool
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Mean and standard deviation of each column to standardise; 0 and 1 for other columns.

    Raises:
        ValueError: for a column whose standard deviation is beyond float64, or whose differences
            float32 loses.
    """
    real = scaled_columns(kind, rows.shape[1])
    constant = real & _is_constant(rows)
    if constant.any():
        warnings.warn(
            f"Features {np.flatnonzero(constant)} are constant: their density is as high as "
            "the minimum scale of a Gaussian allows; leave them out",
            UserWarning,
            stacklevel=4,
        )
    found = fit_scaling(rows, real & standardize, "X")
    refuse_coarse_scaling(rows, found, (), "X")
    return found


def input_row_addresses(rows: np.ndarray) -> UInt[np.ndarray, " n"]:
    """A hash of the values of each row, for which all nans are equal, and so are 0 and -0."""
    rows = np.where(np.isnan(rows), np.float32(np.nan), rows) + np.float32(0)
    return np.array([zlib.crc32(row.tobytes()) for row in np.ascontiguousarray(rows)], np.uint32)


def _is_constant(rows: Shaped[np.ndarray, "n d"]) -> np.ndarray:
    """Which columns hold at most one distinct value, bool `[d]`; missing values do not count."""
    return np.array([len(np.unique(column[~np.isnan(column)])) < 2 for column in rows.T])

"""Labels of a user's data: a column of a table, or arrays of an .npz file."""

from pathlib import Path

import numpy as np

from iwae.data.cells import LARGEST_EXACT, is_empty, is_null, is_number_cell, object_cells
from iwae.data.tables import Table
from iwae.errors import UserError
from iwae.wording import shorten_value


class MissingLabelError(UserError):
    """A row without a label."""


def as_labels(table: Table, name: str) -> np.ndarray:
    """A carried column as labels `[n]`: whole numbers if all of them are, otherwise words.

    Raises:
        MissingLabelError: if a row has none.
        UserError: if a number is not whole, or no two rows share a label.
    """
    cells = object_cells(None if is_null(one) else str(one).strip() for one in table.ids[name])
    gaps = np.flatnonzero(is_empty(cells))
    if gaps.size:
        line = table.place(int(gaps[0]), len(table.columns) + list(table.ids).index(name))
        raise MissingLabelError(
            f"{table.where}: {line.partition(',')[0]} has no label (column {name!r}): remove such "
            "rows"
        )
    labels = _numbers_or_words(table.where, name, cells)
    if len(labels) > 1 and len(np.unique(labels)) == len(labels):
        raise UserError(
            f"{table.where}: the column {name!r} has a different value in every line, so it cannot "
            "be a label: name a column whose values repeat"
        )
    return labels


def _numbers_or_words(where: str, name: str, cells: np.ndarray) -> np.ndarray:
    """Labels as whole numbers if all are numbers, otherwise as words."""
    if not all(map(is_number_cell, cells)):
        return cells.astype(str)
    numbers = cells.astype(np.float64)
    odd = np.flatnonzero(numbers != np.rint(numbers))
    if odd.size:
        raise UserError(
            f"{where}: the column {name!r} holds {cells[odd[0]]}, but labels must be words or "
            "whole numbers"
        )
    # Larger numbers, which float64 rounds, are labels as written.
    is_exact = bool((np.abs(numbers) <= LARGEST_EXACT).all())
    return numbers.astype(np.int64) if is_exact else cells.astype(str)


def take_labels(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the labels out of a file's arrays: `train_labels` for `train`, or a single `labels`."""
    found = {}
    for key in [key for key in arrays if not key.endswith("labels")]:
        name = f"{key}_labels" if f"{key}_labels" in arrays else "labels"
        if name not in arrays:
            raise UserError(
                f"{path} holds no labels for the array {key!r}: save an .npz file with an array "
                f"{key}_labels of whole numbers or words"
            )
        found[key] = arrays.pop(name)
        if found[key].shape != arrays[key].shape[:1] or found[key].dtype.kind not in "biuU":
            raise UserError(
                f"{path}: array {name!r} must hold a whole number or a word for each of the "
                f"{len(arrays[key])} examples"
            )
    return found


def drop_labels(arrays: dict[str, np.ndarray]) -> None:
    """Drop labels that were not requested, unless the file holds nothing else."""
    for name in {"labels", *(f"{key}_labels" for key in arrays)} & arrays.keys():
        if arrays[name].ndim == 1 and len(arrays) > 1:
            del arrays[name]


def label_indices(
    where: str, label_arrays: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as indices into the classes, and the classes: the training set's labels, sorted."""
    known = label_arrays.get("train", next(iter(label_arrays.values())))
    values = np.unique(known)
    for key, array in label_arrays.items():
        if (array.dtype.kind == "U") != (values.dtype.kind == "U"):
            raise UserError(f"{where}: some labels are words and others are numbers: use one kind")
        unseen = np.setdiff1d(array, values)
        if unseen.size:
            raise UserError(
                f"{where}: the label {shorten_value(unseen[0])} of {key} has no training example: "
                "add one, or remove the label"
            )
    places = {key: np.searchsorted(values, array) for key, array in label_arrays.items()}
    return places, tuple(map(str, values))

"""Read a user's own .npy, .npz or .csv file: its splits, and the meaning of its numbers.

The rules apply to all arrays of a file together, and the identity states the one that was used:
only 0 and 1 is binary; uint8 is grey 0..255; numbers within [0, 1] are grey; everything else is
real. Whole numbers 0..255 of another dtype are ambiguous, and the user must say what they are. No
rule applies if the user declares levels, counts, categories or a table. `splits.resolve` says which
observations suit each meaning. Missing values (NaN) are refused unless the user allows them, and
the rules ignore them.
"""

import io
import lzma
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from iwae.data.catalogue import own_split
from iwae.data.kinds import KINDS, Kind, check_values
from iwae.data.readers import sha256, to_bytes
from iwae.data.splits import Raw
from iwae.data.tables import MISSING_REMEDY, csv_cells, csv_numbers, take_labels
from iwae.errors import UserError, shorten

SUFFIXES = (".npy", ".npz", ".csv")


MOST_UNPACKED, MOST_RATIO = 2**28, 100
"""The most bytes that any file may unpack to; beyond, it may unpack to that many times its size."""


def read_own(
    path: Path, kind: Kind | None = None, *, missing: bool = False, labels: bool | str = False
) -> Raw:
    """Read the splits of a user's file.

    `kind` is the kind of data that the user declares. With `missing`, values may be missing. With
    `labels`, an .npz file also holds an array of labels for each array of examples (without, such
    arrays are dropped); for a .csv file, `labels` is the column that holds them.

    Raises `UserError` naming the file, the place and the remedy.
    """
    content = read_bytes(path)
    if path.suffix.lower() == ".csv":
        found = _read_csv(path, content, missing=missing, labels=labels)
    else:
        found = _read_arrays(path, content, missing=missing, labels=labels)
    arrays, label_arrays, columns = found
    for key, array in arrays.items():
        if kind is not None and KINDS[kind.name].as_stored:
            rest = " without its labels" if isinstance(labels, str) else ""
            check_values(array, kind, f"{path}{rest}: array {key!r}", missing=missing)
    splits, rule = _splits(path, arrays)
    named, classes = _classes(path, label_arrays) if labels else (None, ())
    shape = _common_shape(path, splits)
    values, values_rule = _values(path, splits, kind)
    return Raw(
        name=path.name,
        splits={split: _flat(array, values) for split, array in splits.items()},
        shape=shape,
        values=values,
        files=[{"name": path.name, "sha256": sha256(content), "verified": "a user's file"}],
        split_rule=rule,
        values_rule=values_rule,
        columns=columns,
        labels=None if named is None else _splits(path, named)[0],
        classes=classes,
        label=labels if isinstance(labels, str) else None,
    )


Found = tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[str, ...]]
"""Arrays and their labels, by array name, and the names of columns that may have gaps."""


def _read_csv(path: Path, content: bytes, *, missing: bool, labels: bool | str) -> Found:
    """The numbers of a table, and the labels of its rows."""
    if labels is True:
        raise UserError(f"{path} is a .csv file: name the column of its labels with --label COLUMN")
    known = content
    if labels:
        known, column = take_labels(path, content, labels)
    cells = csv_cells(path, known) if missing else None
    rows = csv_numbers(path, known) if cells is None else cells.values
    names = () if cells is None else cells.names
    check_array(path, "data", rows, first_row=1, missing=missing)
    if not labels:
        return {"data": rows}, {}, names
    if rows.shape[1] == 1:
        raise UserError(f"{path} has only the column of its labels: add columns of values")
    if column.place >= rows.shape[1]:
        raise UserError(f"{path}: the column of labels has a name and no cells in other lines")
    names = tuple(name for place, name in enumerate(names) if place != column.place)
    return {"data": np.delete(rows, column.place, 1)}, {"data": column.labels}, names


def _read_arrays(path: Path, content: bytes, *, missing: bool, labels: bool | str) -> Found:
    """The arrays of a file, and their labels."""
    if isinstance(labels, str):
        raise UserError(
            f"label {labels!r} names a column of a .csv file, but {path} is not one: an .npz file "
            "has its labels in separate arrays, so use conditional alone"
        )
    arrays = read_arrays(path, content)
    label_arrays = {}
    if labels:
        label_arrays = _take_labels(path, arrays)
    else:
        _drop_labels(arrays)
    for key, array in arrays.items():
        check_array(path, key, array, first_row=0, missing=missing)
    return arrays, label_arrays, ()


def _take_labels(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove the labels from a file's arrays: `train_labels` for `train`, or a single `labels`."""
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


def _drop_labels(arrays: dict[str, np.ndarray]) -> None:
    """Drop labels that were not requested, unless the file holds nothing else."""
    for name in {"labels", *(f"{key}_labels" for key in arrays)} & arrays.keys():
        if arrays[name].ndim == 1 and len(arrays) > 1:
            del arrays[name]


def _classes(
    path: Path, label_arrays: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as indices into the sorted distinct labels of the training set, and these."""
    known = label_arrays.get("train", next(iter(label_arrays.values())))
    values = np.unique(known)
    for key, array in label_arrays.items():
        if (array.dtype.kind == "U") != (values.dtype.kind == "U"):
            raise UserError(f"{path}: some labels are words and others are numbers: use one kind")
        unseen = np.setdiff1d(array, values)
        if unseen.size:
            raise UserError(
                f"{path}: the label {shorten(unseen[0])} of {key} has no training example: add "
                "one, or remove the label"
            )
    places = {key: np.searchsorted(values, array) for key, array in label_arrays.items()}
    return places, tuple(map(str, values))


def read_bytes(path: Path) -> bytes:
    """The content of a file; UserError if it cannot be read or is empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise UserError(f"{path} is empty")
    return content


def read_arrays(path: Path, content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npy or .npz file; nothing is unpickled."""
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"data": loaded}
        with loaded:
            _refuse_bomb(path, sum(one.file_size for one in loaded.zip.infolist()), len(content))
            if (changed := loaded.zip.testzip()) is not None:  # reading an array may end too early
                raise zipfile.BadZipFile(f"bad checksum of {changed!r}")
            arrays = {key: loaded[key] for key in loaded.files}
    except UserError:
        raise
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is truncated, corrupt, or does not hold arrays of numbers: {reason}"
        ) from None
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise UserError(
                f"{path} holds {key!r}, which is not an array: keep only arrays of numbers"
            )
    return arrays


def _refuse_bomb(path: Path, unpacked: int, packed: int) -> None:
    if unpacked > max(MOST_UNPACKED, MOST_RATIO * packed):
        raise UserError(
            f"{path} has {packed:,} bytes but unpacks to {unpacked:,}, so it is not read; if you "
            "trust it, save it uncompressed with np.savez"
        )


_UNREADABLE = (
    *(ValueError, OSError, EOFError, KeyError, MemoryError, TypeError, IndexError),
    *(OverflowError, RuntimeError, SyntaxError, tokenize.TokenError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)
"""The exceptions of NumPy for a damaged file, whose header may claim terabytes."""


def check_array(
    path: Path, key: str, array: np.ndarray, *, first_row: int, missing: bool = False
) -> None:
    """Raise UserError unless the array is a table of numbers, finite (or missing if allowed)."""
    where = f"{path}: array {key!r}"
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} has dtype {array.dtype}: examples must be real numbers")
    if array.ndim < 2:
        raise UserError(
            f"{where} has shape {array.shape}: examples must be the rows of [n, d] or [n, h, w] "
            "(for n single numbers, reshape to [n, 1])"
        )
    if 0 in array.shape:
        raise UserError(f"{where} has shape {array.shape}: it holds no numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        single = array if array.dtype.kind in "bu" else array.astype(np.float32)
    legal = np.isfinite(single) | (np.isnan(single) & missing)
    if not legal.all():
        index = tuple(int(i) for i in np.argwhere(~legal)[0])
        value = array[index]
        reason = "too large for float32" if np.isfinite(value) else "not finite"
        reason += f"; {MISSING_REMEDY}" if np.isnan(value) else ""
        place = f"[{', '.join(map(str, index))}]"
        if first_row:
            place += f" (row {index[0] + 1} of numbers, column {index[1] + 1})"
        raise UserError(f"{where} is {value} at {place}: {reason}")


def _splits(path: Path, arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """The splits: train, test and perhaps validation by name, or one array split here."""
    if {"train", "test"} <= arrays.keys() <= {"train", "test", "validation"}:
        return arrays, "as given in the file"
    if len(arrays) != 1:
        raise UserError(
            f"{path} holds the arrays {', '.join(sorted(arrays)) or '(none)'}: name them train and "
            "test (and optionally validation), or keep a single one"
        )
    (array,) = arrays.values()
    if len(array) < 2:
        raise UserError(f"{path} has one example: give at least two, to train and to test")
    train, test, rule = own_split(len(array))
    return {"train": array[train], "test": array[test]}, rule


def _common_shape(path: Path, splits: dict[str, np.ndarray]) -> tuple[int, ...]:
    shapes = {split: array.shape[1:] for split, array in splits.items()}
    if len(set(shapes.values())) > 1:
        words = ", ".join(f"{split} {list(shape)}" for split, shape in shapes.items())
        raise UserError(f"{path}: the splits have examples of different shapes: {words}")
    return shapes["train"]


def _values(path: Path, splits: dict[str, np.ndarray], kind: Kind | None) -> tuple[str, str]:
    """The meaning of the numbers, and the rule that decides it from all splits together."""
    if kind is not None and KINDS[kind.name].as_stored:
        return "stored", f"as stored, by the user's word: {kind}"
    arrays = [array[~np.isnan(array)] for array in splits.values()]
    if not all(array.size for array in arrays):
        raise UserError(f"{path}: a split has no values (all are missing): add observed ones")
    if all(((array == 0) | (array == 1)).all() for array in arrays):
        return "binary", "only 0 and 1: binary"
    are_bytes = {array.dtype == np.uint8 for array in arrays}
    if are_bytes == {True}:
        return "grey", "uint8: grey levels 0..255"
    if True in are_bytes:
        kinds = ", ".join(f"{split} {array.dtype}" for split, array in splits.items())
        raise UserError(f"{path} mixes bytes with other numbers ({kinds}): use one dtype")
    if all(array.min() >= 0 and array.max() <= 1 for array in arrays):
        return "grey", "all within [0, 1]: grey levels, taken as probabilities of ink"
    if kind is None and all(map(_could_be_bytes, arrays)):
        raise UserError(
            f"{path} holds whole numbers within 0..255, but not as bytes: if they are grey levels, "
            "store them as uint8 or divide by 255; otherwise declare what they are, such as "
            "observation 'gaussian' or 'poisson'"
        )
    return "real", "neither bytes nor within [0, 1]: real values"


def _could_be_bytes(array: np.ndarray) -> bool:
    inside = array.min() >= 0 and array.max() <= 255
    return bool(inside and (array == np.rint(array)).all())


def _flat(array: np.ndarray, values: str) -> np.ndarray:
    """Rows `[n, d]` in the dtype that `splits.Raw` requires."""
    rows = array.reshape(len(array), -1)
    if np.isnan(rows).any():
        return np.where(np.isnan(rows), np.nan, rows).astype(np.float32)  # one canonical NaN
    if values == "binary" or rows.dtype == bool:
        return rows.astype(np.uint8)
    if rows.dtype == np.uint8:
        return rows
    rows = rows.astype(np.float32)
    return to_bytes(rows) if values == "grey" else rows

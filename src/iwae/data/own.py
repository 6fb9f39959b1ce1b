"""A user's own file: .npy, .npz or .csv -> splits, and what its numbers mean.

The rules, applied to all the arrays of a file together, are few and stated in the identity:
only 0 and 1 is binary; uint8 is grey 0..255; numbers within [0, 1] are grey; all else is real,
except that whole numbers 0..255 of another type could be either, and the user must say. Where the
user says that they are levels, counts, categories or a table, no rule applies: they are that.
`splits.resolve` says what may be asked of each. Missing values (NaN) are refused unless the user
says that there may be some; no rule looks at them.
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
from iwae.errors import UserError

SUFFIXES = (".npy", ".npz", ".csv")


MOST_UNPACKED = 2**34
"""Bytes that the arrays of a smaller file may have: more are not read."""


def read_own(
    path: Path, kind: Kind | None = None, *, missing: bool = False, labels: bool | str = False
) -> Raw:
    """The splits of a user's file; raises `UserError` naming the file, the place and the remedy.

    `kind` is what the user says of it; with `missing`, values may be missing. With `labels`, an
    .npz file also holds an array of them for each array of examples, which is left out without; of
    a .csv file they are the column of that name.
    """
    content = read_bytes(path)
    if path.suffix.lower() == ".csv":
        found = _read_csv(path, content, missing=missing, labels=labels)
    else:
        found = _read_arrays(path, content, missing=missing, labels=labels)
    arrays, marks, columns = found
    for key, array in arrays.items():
        if kind is not None and KINDS[kind.name].as_stored:
            rest = " without its labels" if isinstance(labels, str) else ""
            check_values(array, kind, f"{path}{rest}: array {key!r}", missing=missing)
    splits, rule = _splits(path, arrays)
    named, classes = _classes(path, marks) if labels else (None, ())
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
"""Arrays of a file and their labels, by name, and the names of columns that may have gaps."""


def _read_csv(path: Path, content: bytes, *, missing: bool, labels: bool | str) -> Found:
    """The numbers of a table, and the labels of its lines."""
    if labels is True:
        raise UserError(f"{path} holds no labels unless one of its columns does: --label COLUMN")
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
        raise UserError(f"{path} has no column but that of its labels")
    names = tuple(name for place, name in enumerate(names) if place != column.place)
    return {"data": np.delete(rows, column.place, 1)}, {"data": column.labels}, names


def _read_arrays(path: Path, content: bytes, *, missing: bool, labels: bool | str) -> Found:
    """The arrays of a file, and their labels."""
    if isinstance(labels, str):
        raise UserError(
            f"label {labels!r} is a column of a .csv file, and {path} is none: an .npz file has "
            "labels in arrays of their own, and conditional is enough"
        )
    arrays = read_arrays(path, content)
    marks = {}
    if labels:
        marks = _take_labels(path, arrays)
    else:
        _drop_labels(arrays)
    for key, array in arrays.items():
        check_array(path, key, array, first_row=0, missing=missing)
    return arrays, marks, ()


def _take_labels(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take the labels out of a file's arrays: `train_labels` beside `train`, or `labels` alone."""
    found = {}
    for key in [key for key in arrays if not key.endswith("labels")]:
        name = f"{key}_labels" if f"{key}_labels" in arrays else "labels"
        if name not in arrays:
            raise UserError(
                f"{path} holds no labels of the array {key!r}: an .npz file has them in an array "
                f"{key}_labels, whole numbers or words"
            )
        found[key] = arrays.pop(name)
        if found[key].shape != arrays[key].shape[:1] or found[key].dtype.kind not in "biuU":
            raise UserError(
                f"{path}: array {name!r} has to hold a whole number or a word for each of the "
                f"{len(arrays[key])} examples"
            )
    return found


def _drop_labels(arrays: dict[str, np.ndarray]) -> None:
    """Take out labels that nobody asked for, unless they are all there is."""
    for name in {"labels", *(f"{key}_labels" for key in arrays)} & arrays.keys():
        if arrays[name].ndim == 1 and len(arrays) > 1:
            del arrays[name]


def _classes(
    path: Path, marks: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as places in the sorted list of those of the training data, and that list."""
    known = marks.get("train", next(iter(marks.values())))
    values = np.unique(known)
    for key, array in marks.items():
        if (array.dtype.kind == "U") != (values.dtype.kind == "U"):
            raise UserError(f"{path}: some labels are words and others are numbers: use one kind")
        unseen = np.setdiff1d(array, values)
        if unseen.size:
            raise UserError(f"{path}: the label {unseen[0]} of {key} has no training example")
    places = {key: np.searchsorted(values, array) for key, array in marks.items()}
    return places, tuple(map(str, values))


def read_bytes(path: Path) -> bytes:
    """What a file holds, or UserError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise UserError(f"{path} is empty")
    return content


def read_arrays(path: Path, content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npy or .npz file, never unpickled."""
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"data": loaded}
        with loaded:
            _refuse_bomb(path, sum(one.file_size for one in loaded.zip.infolist()), len(content))
            arrays = {key: loaded[key] for key in loaded.files}
    except UserError:
        raise
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is truncated, corrupt, or holds other things than arrays of numbers: {reason}"
        ) from None
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path} holds {key!r}, which is no array: keep only arrays of numbers")
    return arrays


def _refuse_bomb(path: Path, unpacked: int, packed: int) -> None:
    if unpacked > max(MOST_UNPACKED, 2 * packed):
        raise UserError(
            f"{path} has {packed:,} bytes and unpacks to {unpacked:,}: it is not read; if it is "
            "what it should be, save it by np.savez"
        )


_UNREADABLE = (
    *(ValueError, OSError, EOFError, KeyError, MemoryError, TypeError, IndexError),
    *(OverflowError, RuntimeError, SyntaxError, tokenize.TokenError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)
"""What NumPy raises for a damaged file; one byte of its header can claim terabytes."""


def check_array(
    path: Path, key: str, array: np.ndarray, *, first_row: int, missing: bool = False
) -> None:
    """Refuse what is not a table of numbers, finite or missing where that may be."""
    where = f"{path}: array {key!r}"
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} has dtype {array.dtype}; examples are numbers")
    if array.ndim < 2:
        raise UserError(
            f"{where} has shape {array.shape}; examples are the rows of [n, d] or [n, h, w] "
            "(for n single numbers, reshape to [n, 1])"
        )
    if 0 in array.shape:
        raise UserError(f"{where} has shape {array.shape}: it holds no numbers")
    with np.errstate(over="ignore"):
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
    """Train, test and perhaps validation: by their names, or one array split here."""
    if {"train", "test"} <= arrays.keys() <= {"train", "test", "validation"}:
        return arrays, "as given in the file"
    if len(arrays) != 1:
        raise UserError(
            f"{path} holds the arrays {', '.join(sorted(arrays)) or '(none)'}: name them train and "
            "test (and validation, if you like), or keep a single one"
        )
    (array,) = arrays.values()
    if len(array) < 2:
        raise UserError(f"{path} has one example; at least two are needed, to train and to test")
    train, test, rule = own_split(len(array))
    return {"train": array[train], "test": array[test]}, rule


def _common_shape(path: Path, splits: dict[str, np.ndarray]) -> tuple[int, ...]:
    shapes = {split: array.shape[1:] for split, array in splits.items()}
    if len(set(shapes.values())) > 1:
        words = ", ".join(f"{split} {list(shape)}" for split, shape in shapes.items())
        raise UserError(f"{path}: the splits have examples of different shapes: {words}")
    return shapes["train"]


def _values(path: Path, splits: dict[str, np.ndarray], kind: Kind | None) -> tuple[str, str]:
    """What the numbers are, and the rule that says so, decided on all splits together."""
    if kind is not None and KINDS[kind.name].as_stored:
        return "stored", f"as stored, by the user's word: {kind}"
    arrays = [array[~np.isnan(array)] for array in splits.values()]
    if not all(array.size for array in arrays):
        raise UserError(f"{path}: a split has no values, all of them are missing")
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
            "store them as uint8 or divide by 255; if not, say what they are, such as observation "
            "'gaussian' or 'poisson'"
        )
    return "real", "neither bytes nor within [0, 1]: real values"


def _could_be_bytes(array: np.ndarray) -> bool:
    inside = array.min() >= 0 and array.max() <= 255
    return bool(inside and (array == np.rint(array)).all())


def _flat(array: np.ndarray, values: str) -> np.ndarray:
    """Rows `[n, d]` in the dtype that `splits.Raw` asks for."""
    rows = array.reshape(len(array), -1)
    if np.isnan(rows).any():
        return np.where(np.isnan(rows), np.nan, rows).astype(np.float32)  # one NaN of the many
    if values == "binary" or rows.dtype == bool:
        return rows.astype(np.uint8)
    if rows.dtype == np.uint8:
        return rows
    rows = rows.astype(np.float32)
    return to_bytes(rows) if values == "grey" else rows

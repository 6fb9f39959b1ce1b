"""Read a user's own data: their splits, and the meaning of their numbers.

A table that names its columns or holds words has a kind for each column (`columns`). For the rest,
the rules apply to all arrays of a file together, and the identity states the one that was used:
only 0 and 1 is binary; uint8 is grey 0..255, and colour is levels; numbers within [0, 1] are grey;
everything else is real. Whole numbers 0..255 of another dtype are ambiguous, and the user must say
what they are. No rule applies if the user declares levels, counts, categories or a table.
`splits.resolve` says which observations suit each meaning. Missing values (NaN) are refused unless
the user allows them, and the rules ignore them.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.data import tables
from iwae.data.arrays import ROUNDING, check_array, extent, read_arrays
from iwae.data.catalogue import DATASETS, own_split
from iwae.data.columns import Column, choose_columns, given_columns, observation, to_values
from iwae.data.delimited import MISSING_REMEDY
from iwae.data.kinds import KINDS, Kind, check_values, make_kind
from iwae.data.parquet import digest, pieces, places, stored_values, values_in
from iwae.data.readers import are_bytes, sha256, to_bytes
from iwae.data.rows import Examples, blocks, converted, flat, kept, stored, subset
from iwae.data.splits import BYTES, Raw
from iwae.data.tables import Table, as_labels, frame_table, read_table
from iwae.errors import UserError, counted, shorten

SUFFIXES = (".npy", ".npz", *tables.SUFFIXES)

STREAMED = (".npy", ".parquet")
"""Files that can be read block by block."""


class Wish(NamedTuple):
    """A user's choices about the reading of data.

    Attributes:
        kind: the kind of data, if declared.
        missing: whether values may be missing.
        labels: whether an .npz file or a folder holds labels, or the column of a table that does.
        drop: columns of a table to leave out.
        ids: columns of a table to carry through.
        columns: kinds of columns by name; or columns of other data, which these must have too.
        unknown: "error" or "missing", for words that those other data do not have.
        binarization: the binarisation, if chosen; the values are then grey or binary.
        resize: height and width of images.
        stream: whether the data are to be read block by block.
    """

    kind: Kind | None = None
    missing: bool = False
    labels: bool | str = False
    drop: Sequence[str] = ()
    ids: Sequence[str] = ()
    columns: Mapping[str, str] | Sequence[Column] | None = None
    unknown: str = "error"
    binarization: str | None = None
    resize: int | Sequence[int] | None = None
    stream: bool = False


class Found(NamedTuple):
    """The content of a source.

    Attributes:
        arrays: `[n, ...]`, by name; those of an .npy file are read when they are needed.
        labels: of each, `[n]`; empty if there are none.
        columns: of a table with names.
        kind: the kind of data, if it is declared or follows from the columns.
        values: their meaning and the rule, if they follow from the columns.
        remarks: what a person should know about how they were read, as lines.
    """

    arrays: Mapping[str, Examples]
    labels: dict[str, np.ndarray]
    columns: tuple[Column, ...] = ()
    kind: Kind | None = None
    values: tuple[str, str] | None = None
    remarks: tuple[str, ...] = ()


def is_own(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this is a file or a folder of a user's own, not the name of a data set."""
    path = Path(name_or_path).expanduser()
    known = name_or_path == "" or (isinstance(name_or_path, str) and name_or_path in DATASETS)
    if known or path.suffix.lower() in SUFFIXES:
        return not known
    try:
        return path.is_dir()
    except OSError:  # too long a name
        return False


LARGE = 2**31
"""Bytes of values from which a run reads a file block by block."""


def is_large(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a run reads these data block by block unless told otherwise."""
    path = Path(name_or_path).expanduser()
    if not is_own(name_or_path) or path.suffix.lower() not in STREAMED or not path.is_file():
        return False
    if path.suffix.lower() == ".npy":
        return sum(array.nbytes for array in read_arrays(path).values()) >= LARGE
    return values_in(path) * np.dtype(np.float64).itemsize >= LARGE


def read_own(source: Any, wish: Wish) -> tuple[Raw, Kind | None]:
    """Read the splits of a user's data, and the kind of data if it is declared or follows.

    Args:
        source: path of a file or a folder of images, or a data frame.
        wish: the user's choices. Without `labels`, an .npz file's arrays of labels are dropped.

    Raises:
        UserError: names the source, the place and the remedy.
    """
    where = str(source) if isinstance(source, Path) else "the frame"
    found, files = _read(source, wish)
    arrays, kind = found.arrays, found.kind
    for key, array in arrays.items():
        if kind is not None and KINDS[kind.name].as_stored:
            rest = " without its labels" if isinstance(wish.labels, str) else ""
            check_values(array, kind, f"{where}{rest}: array {key!r}", missing=wish.missing)
    splits, rule = _splits(where, arrays)
    named, classes = _classes(where, found.labels) if wish.labels else (None, ())
    shape = _common_shape(where, splits)
    values, values_rule = found.values or _values(where, splits, kind)
    raw = Raw(
        name=source.name if isinstance(source, Path) else "frame",
        splits={split: _flat(array, values) for split, array in splits.items()},
        shape=shape,
        values=values,
        files=files,
        split_rule=rule,
        values_rule=values_rule,
        columns=found.columns,
        labels=named and {name: kept(one) for name, one in _splits(where, named)[0].items()},
        classes=classes,
        label=wish.labels if isinstance(wish.labels, str) else None,
        is_own=True,
        remarks=found.remarks,
        notes={name: list(given) for name in ("drop", "ids") if (given := getattr(wish, name))},
    )
    return raw, kind


def _read(source: Any, wish: Wish) -> tuple[Found, list[dict[str, str]]]:
    """The content of a source, and the description of its files."""
    if not isinstance(source, Path):
        found = _columns(_table(source, wish), wish)
        digest = sha256(np.ascontiguousarray(found.arrays["data"]).tobytes())
        return found, [{"name": "frame", "sha256": digest, "verified": "a user's data frame"}]
    if wish.stream and source.suffix.lower() == ".parquet":
        found = _stored_columns(source, wish)
    elif source.suffix.lower() in tables.SUFFIXES:
        found = _columns(_table(source, wish), wish)
    elif wish.drop or wish.ids or wish.columns:
        raise UserError(f"{source} is no table: leave out drop, ids and kinds of columns by name")
    elif source.suffix.lower() not in SUFFIXES:
        return _folder(source, wish)
    else:
        found = _read_arrays(source, wish)
    if wish.resize is not None:
        raise UserError(f"{source} is no folder of images: leave out resize")
    return found, [{"name": source.name, "sha256": _digest(source), "verified": "a user's file"}]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- tables ----------------------------------------------------------------------------------


def _table(source: Any, wish: Wish) -> Table:
    """The table of a file or a frame, without missing values unless they are allowed."""
    if wish.labels is True:
        raise UserError(
            f"{source if isinstance(source, Path) else 'the frame'} is a table: name the column of "
            "its labels with --label COLUMN"
        )
    _refuse_clash(source, wish)
    carried = [*wish.ids, *([wish.labels] if wish.labels else [])]
    read = read_table if isinstance(source, Path) else frame_table
    table = read(source, drop=wish.drop, ids=carried)
    if not table.names:
        raise UserError(
            f"{table.where} has only the column of its labels: add columns of values"
            if wish.labels
            else f"{table.where} has no column of values: drop or carry through fewer"
        )
    if not wish.missing:
        _refuse_gaps(table)
    return table


def _refuse_clash(source: Any, wish: Wish) -> None:
    """Raise UserError for a column with two purposes: dropped, carried through, label, or value."""
    label = [wish.labels] if isinstance(wish.labels, str) else []
    kinds = wish.columns if isinstance(wish.columns, Mapping) else ()
    uses = {"drop": wish.drop, "id": wish.ids, "label": label, "columns": kinds}
    for (one, names), (other, others) in combinations(uses.items(), 2):
        same = {name.strip() for name in names} & {name.strip() for name in others}
        if same and {one, other} != {"id", "label"}:
            raise UserError(
                f"{source if isinstance(source, Path) else 'the frame'}: column {min(same)!r} is "
                f"named by both {one} and {other}, but it is either {_USES[one]} or "
                f"{_USES[other]}: leave out one of them"
            )


_USES = {
    "drop": "left out",
    "id": "carried through",
    "label": "the label",
    "columns": "a value with a kind",
}
"""Options that name columns, and what these columns are."""


def _refuse_gaps(table: Table) -> None:
    first = min(
        ((int(gaps[0]), i) for i, one in enumerate(table.columns) if len(gaps := _gaps(one))),
        default=None,
    )
    if first is not None:
        raise UserError(
            f"{table.where}: {table.place(*first)} is not a number or a word; {MISSING_REMEDY}"
        )


def _gaps(column: np.ndarray) -> np.ndarray:
    """The rows where a column has no value."""
    return np.flatnonzero(column == None if column.dtype == object else np.isnan(column))  # noqa: E711


def _columns(table: Table, wish: Wish) -> Found:
    """The values of a table, by the kinds that are declared for its columns or follow from them."""
    columns, kind, values = _kinds(table, wish)
    positional = columns or given_columns(table.names, make_kind("gaussian"), len(table.names))
    rows = to_values(table, positional, unknown=wish.unknown)
    check_array(table.where, "data", rows, place=table.place, missing=wish.missing)
    labels = {}
    if isinstance(wish.labels, str):
        labels = {"data": as_labels(table, wish.labels.strip())}
    # Numbers without names are rows of an array; words are not read again without their levels.
    named = columns if table.named or any(column.levels for column in columns) else ()
    return Found({"data": rows}, labels, named, kind, values, table.remarks)


def _stored_columns(path: Path, wish: Wish) -> Found:
    """`_columns` of a .parquet file whose values are to stay on disk."""
    wanted = wish.columns if isinstance(wish.columns, Mapping) else None

    _refuse_clash(path, wish)

    def tables() -> Iterator[Table]:
        for table in pieces(path, drop=wish.drop, ids=wish.ids):
            if not wish.missing:
                _refuse_gaps(table)
            yield table

    table = digest(tables(), wanted)
    columns, kind, values = _kinds(table, wish)
    positional = columns or given_columns(table.names, make_kind("gaussian"), len(table.names))
    rows = stored_values(path, tables(), positional, unknown=wish.unknown)
    check_array(str(path), "data", rows, place=places(positional), missing=wish.missing)
    return Found({"data": rows}, {}, columns, kind, values)


def _kinds(
    table: Table, wish: Wish
) -> tuple[tuple[Column, ...], Kind | None, tuple[str, str] | None]:
    """The columns of a table, the kind of data, and the meaning of the values with its rule.

    Nothing for numbers without names, to which the rules of arrays apply.
    """
    wanted, n = wish.columns, len(table.names)
    if wanted is not None and not isinstance(wanted, Mapping):
        columns = tuple(wanted)
        if not all(isinstance(column, Column) for column in columns):
            raise UserError(
                "columns must be kinds by name, such as {'age': 'gaussian'}, or the columns of "
                "other data; kinds in order are make_kind('table', columns=...)"
            )
    elif wish.kind is not None and not wanted:
        return given_columns(table.names, _fitting(table, wish.kind), n), wish.kind, None
    else:
        has_words = any(column.dtype == object for column in table.columns)
        is_grey = wish.binarization not in (None, "none")
        if not wanted and not has_words and (is_grey or not table.named):
            return (), None, None
        columns = choose_columns(table, wanted)
    kind = observation(columns)
    if wish.kind not in (None, kind):
        raise UserError(
            f"observation {str(wish.kind)!r} contradicts the kinds of the columns, which make "
            f"{kind.name!r}: leave one of them out"
        )
    meaning = {"gaussian": "real", "bernoulli": "binary"}.get(kind.name, "stored")
    return columns, kind, (meaning, "the kind of each column")


def _fitting(table: Table, kind: Kind) -> Kind:
    """A kind, checked to name as many columns as a table has."""
    if kind.columns is not None and len(kind.columns) != len(table.names):
        raise UserError(
            f"{table.where}: array 'data' has {len(table.names)} columns, but columns names "
            f"{len(kind.columns)} kinds: name one for each column"
        )
    return kind


# --- images and arrays -----------------------------------------------------------------------


def _folder(folder: Path, wish: Wish) -> tuple[Found, list[dict[str, str]]]:
    """The images of a folder, and its description: one digest of all their files."""
    from iwae.data.images import read_images

    if isinstance(wish.labels, str):
        raise UserError(
            f"{folder} is a folder, whose sub-folders are labels: use conditional alone"
        )
    images = read_images(folder, wish.resize)
    labels = {}
    if wish.labels:
        if images.labels is None:
            raise UserError(f"{folder} has no sub-folders, whose names would be labels: add them")
        labels = {"data": images.labels}
    files = [{"name": folder.name, "sha256": images.sha256, "verified": "a user's folder"}]
    arrays = {"data": images.pixels}
    return Found(arrays, labels, kind=wish.kind, remarks=images.remarks), files


def _read_arrays(path: Path, wish: Wish) -> Found:
    """The arrays of a file, and their labels."""
    if isinstance(wish.labels, str):
        raise UserError(
            f"label {wish.labels!r} names a column of a table, but {path} is not one: an .npz file "
            "has its labels in separate arrays, so use conditional alone"
        )
    arrays = read_arrays(path)
    labels = {}
    if wish.labels:
        labels = _take_labels(path, arrays)
    else:
        _drop_labels(arrays)
    lazy = {key: stored(array) for key, array in arrays.items()}
    for key, array in lazy.items():
        check_array(str(path), key, array, missing=wish.missing)
    return Found(lazy, labels, kind=wish.kind)


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
    where: str, label_arrays: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as indices into the sorted distinct labels of the training set, and these."""
    known = label_arrays.get("train", next(iter(label_arrays.values())))
    values = np.unique(known)
    for key, array in label_arrays.items():
        if (array.dtype.kind == "U") != (values.dtype.kind == "U"):
            raise UserError(f"{where}: some labels are words and others are numbers: use one kind")
        unseen = np.setdiff1d(array, values)
        if unseen.size:
            raise UserError(
                f"{where}: the label {shorten(unseen[0])} of {key} has no training example: add "
                "one, or remove the label"
            )
    places = {key: np.searchsorted(values, array) for key, array in label_arrays.items()}
    return places, tuple(map(str, values))


LEAST = 10
"""Examples to split: two to test, so that a mean has an error, one to validate, seven to train."""


def _splits(where: str, arrays: Mapping[str, Examples]) -> tuple[Mapping[str, Examples], str]:
    """The splits: train, test and perhaps validation by name, or one array split here."""
    if {"train", "test"} <= arrays.keys() <= {"train", "test", "validation"}:
        return arrays, "as given in the file"
    if len(arrays) != 1:
        raise UserError(
            f"{where} holds the arrays {', '.join(sorted(arrays)) or '(none)'}: name them train "
            "and test (and optionally validation), or keep a single one"
        )
    (array,) = arrays.values()
    if len(array) < LEAST:
        raise UserError(
            f"{where} has {counted(len(array), 'example')}: give at least {LEAST}, of which a "
            "fifth is the test set"
        )
    train, test, rule = own_split(len(array))
    return {"train": subset(array, train), "test": subset(array, test)}, rule


def _common_shape(where: str, splits: Mapping[str, Examples]) -> tuple[int, ...]:
    shapes = {split: array.shape[1:] for split, array in splits.items()}
    if len(set(shapes.values())) > 1:
        words = ", ".join(f"{split} {list(shape)}" for split, shape in shapes.items())
        raise UserError(f"{where}: the splits have examples of different shapes: {words}")
    return shapes["train"]


def _values(where: str, splits: Mapping[str, Examples], kind: Kind | None) -> tuple[str, str]:
    """The meaning of the numbers, and the rule that decides it from all splits together."""
    if kind is not None and KINDS[kind.name].as_stored:
        # These words are in checkpoints, which a resumed run compares.
        return "stored", f"as stored, by the user's word: {kind}"
    extents = [extent(array) for array in splits.values()]
    if not all(one.size for one in extents):
        raise UserError(f"{where}: a split has no values (all are missing): add observed ones")
    low, high = min(one.low for one in extents), max(one.high for one in extents)
    whole = all(one.whole for one in extents)
    if whole and low >= 0 and high <= 1:
        return "binary", "only 0 and 1: binary"
    are_bytes = {array.dtype == np.uint8 for array in splits.values()}
    if are_bytes == {True}:
        return "grey", BYTES
    if True in are_bytes:
        kinds = ", ".join(f"{split} {array.dtype}" for split, array in splits.items())
        raise UserError(f"{where} mixes bytes with other numbers ({kinds}): use one dtype")
    if low >= 0 and high <= 1:
        return "grey", "all within [0, 1]: grey levels, taken as probabilities of ink"
    if kind is None and whole and low >= 0 and high <= 255:
        raise UserError(
            f"{where} holds whole numbers within 0..255, but not as bytes: if they are grey "
            "levels, store them as uint8 or divide by 255; otherwise declare what they are, such "
            "as observation 'gaussian' or 'poisson'"
        )
    if low > -ROUNDING and high < 1 + ROUNDING:
        near, count = sum(one.near for one in extents), sum(one.size for one in extents)
        return "real", (
            f"real values: {near:,} of {count:,} lie outside [0, 1] by less than {ROUNDING:.0e}; "
            "clip them if they are grey levels"
        )
    return "real", "neither bytes nor within [0, 1]: real values"


def _flat(array: Examples, values: str) -> Examples:
    """Rows `[n, d]` in the dtype that `splits.Raw` requires."""
    rows = flat(array)
    if rows.dtype == np.uint8:
        return rows
    gaps = rows.dtype.kind == "f" and any(np.isnan(block).any() for _, block in blocks(rows))
    if rows.dtype == bool or (values == "binary" and not gaps):
        return converted(rows, lambda block, _: block.astype(np.uint8), np.uint8)
    exact = values in ("real", "stored") and rows.dtype.newbyteorder("=") != np.float32
    dtype = np.float64 if exact else np.float32
    if gaps:
        return converted(rows, lambda block, _: _one_nan(block, dtype), dtype)
    if values == "grey" and all(
        are_bytes(block.astype(dtype, copy=False)) for _, block in blocks(rows)
    ):
        return converted(rows, lambda block, _: to_bytes(block.astype(dtype)), np.uint8)
    if rows.dtype == dtype:
        return rows
    return converted(rows, lambda block, _: block.astype(dtype), dtype)


def _one_nan(block: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """Values whose missing ones are one canonical NaN."""
    values = block.astype(dtype)
    values[np.isnan(values)] = np.nan
    return values

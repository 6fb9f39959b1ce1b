"""Read a user's own data and split them.

A table that names its columns or holds words has a kind for each column (`columns`); other arrays
have a meaning (`meaning`). `binarisation.resolve` says which observations suit each meaning.
Missing values (NaN) are refused unless the user allows them.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.data import tables
from iwae.data.arrays import check_array, read_arrays
from iwae.data.catalogue import DATASETS
from iwae.data.cells import MISSING_REMEDY, is_empty
from iwae.data.coding import to_values
from iwae.data.columns import Column, choose_columns, columns_to_kind, named_columns
from iwae.data.held_out import hold_out_fifth
from iwae.data.kinds import KINDS, Kind, check_kind_values, check_kind_width, make_kind
from iwae.data.labels import as_labels, drop_labels, label_indices, take_labels
from iwae.data.meaning import meaning_of, rows_by_meaning
from iwae.data.parquet_files import count_parquet_cells
from iwae.data.rows import Examples, row_subset, rows_in_memory, stored
from iwae.data.splits import Options, Raw
from iwae.data.streamed_tables import (
    condense_streamed_table,
    stream_tables,
    streamed_places,
    streamed_values,
)
from iwae.data.tables import Table
from iwae.errors import UserError
from iwae.files import file_content_sha256
from iwae.wording import count_in_words

SUFFIXES = (".npy", ".npz", *tables.SUFFIXES)

STREAMED = (".npy", ".parquet")
"""Files that can be read block by block."""

LARGE = 2**31
"""Bytes of values from which a run reads a file block by block."""

LEAST = 10
"""Examples to split: two to test, so that a mean has an error, one to validate, seven to train."""


class Content(NamedTuple):
    """The content of a source.

    Attributes:
        arrays: `[n, ...]`, by name; arrays of an .npy file are read on demand.
        labels: the labels of each array, `[n]`; empty if there are none.
        columns: the columns of a table with names.
        kind: the kind of data, if it is declared or follows from the columns.
        values: the meaning of the values and its rule, if they follow from the columns.
        remarks: what the user should know about how the source was read, as lines.
    """

    arrays: Mapping[str, Examples]
    labels: dict[str, np.ndarray]
    columns: tuple[Column, ...] = ()
    kind: Kind | None = None
    values: tuple[str, str] | None = None
    remarks: tuple[str, ...] = ()


def is_own(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this is the path of a file or a folder, not the name of a data set."""
    path = Path(name_or_path).expanduser()
    known = name_or_path == "" or (isinstance(name_or_path, str) and name_or_path in DATASETS)
    if known or path.suffix.lower() in SUFFIXES:
        return not known
    try:
        return path.is_dir()
    except OSError:  # too long a name
        return False


def is_large_own_file(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether a run reads these data block by block unless told otherwise."""
    path = Path(name_or_path).expanduser()
    if not is_own(name_or_path) or path.suffix.lower() not in STREAMED or not path.is_file():
        return False
    if path.suffix.lower() == ".npy":
        return sum(array.nbytes for array in read_arrays(path).values()) >= LARGE
    return count_parquet_cells(path) * np.dtype(np.float64).itemsize >= LARGE


def resolved_own_data(dataset: str) -> str:
    """The name of a data set, or the absolute path of an existing file or folder."""
    own = Path(dataset).expanduser()
    return str(own.resolve()) if is_own(dataset) and own.exists() else dataset


def read_own(source: Any, options: Options) -> tuple[Raw, Kind | None]:
    """Read the splits of a user's data, and the kind of data if it is declared or follows.

    Args:
        source: path of a file or a folder of images, or a data frame.
        options: the user's choices. Without `labels`, the labels in an .npz file are dropped.

    Raises:
        UserError: names the source, the place and the remedy.
    """
    where = _name(source)
    content, files = _read(source, options)
    kind, label = content.kind, options.labels if isinstance(options.labels, str) else None
    if kind is not None and KINDS[kind.name].as_stored:
        rest = "" if label is None else " without its labels"
        for key, array in content.arrays.items():
            check_kind_values(array, kind, f"{where}{rest}: array {key!r}", missing=options.missing)
    splits, rule = _splits(where, content.arrays)
    indices, classes = label_indices(where, content.labels) if options.labels else (None, ())
    shape = _common_shape(where, splits)
    values, values_rule = content.values or meaning_of(where, splits, kind)
    raw = Raw(
        name=source.name if isinstance(source, Path) else "frame",
        splits={split: rows_by_meaning(array, values) for split, array in splits.items()},
        shape=shape,
        values=values,
        files=files,
        split_rule=rule,
        values_rule=values_rule,
        columns=content.columns,
        labels=indices
        and {name: rows_in_memory(one) for name, one in _splits(where, indices)[0].items()},
        classes=classes,
        label=label,
        is_own=True,
        remarks=content.remarks,
        notes={name: list(given) for name in ("drop", "ids") if (given := getattr(options, name))},
    )
    return raw, kind


def _name(source: Any) -> str:
    """The name of a source in messages."""
    return str(source) if isinstance(source, Path) else "the frame"


def _read(source: Any, options: Options) -> tuple[Content, list[dict[str, str]]]:
    """The content of a source, and the description of its files."""
    if not isinstance(source, Path):
        content = _read_table(source, options)
        digest = file_content_sha256(np.ascontiguousarray(content.arrays["data"]).tobytes())
        return content, [{"name": "frame", "sha256": digest, "verified": "a user's data frame"}]
    if source.suffix.lower() in tables.SUFFIXES:
        content = _read_table(source, options)
    elif options.drop or options.ids or options.columns:
        raise UserError(
            f"{source} is not a table: leave out drop, ids and kinds of columns by name"
        )
    elif source.suffix.lower() not in SUFFIXES:
        return _read_folder(source, options)
    else:
        content = _read_arrays(source, options)
    if options.resize is not None:
        raise UserError(f"{source} is not a folder of images: leave out resize")
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return content, [{"name": source.name, "sha256": digest, "verified": "a user's file"}]


# --- tables ----------------------------------------------------------------------------------


def _read_table(source: Any, options: Options) -> Content:
    """The values of a table, by the kinds that are declared for its columns or follow from them.

    Values of a .parquet file that is streamed are kept on disk.
    """
    stream = options.stream and isinstance(source, Path) and source.suffix.lower() == ".parquet"
    _refuse_clash(source, options)
    if stream:
        declared = options.columns if isinstance(options.columns, Mapping) else None
        table = condense_streamed_table(_pieces(source, options), declared)
    else:
        table = _whole_table(source, options)
    columns, kind, values = _kinds(table, options)
    used = columns or named_columns(table.names, make_kind("gaussian"), len(table.names))
    if stream:
        pieces = _pieces(source, options)
        rows: Examples = streamed_values(source, pieces, used, unknown=options.unknown)
    else:
        rows = to_values(table, used, unknown=options.unknown)
    place = streamed_places(used) if stream else table.place
    check_array(table.where, "data", rows, place=place, missing=options.missing)
    found = {}
    if isinstance(options.labels, str):
        found = {"data": as_labels(table, options.labels.strip())}
    # Numbers without names are rows of an array; words are not read again without their levels.
    named = columns if table.named or any(column.levels for column in columns) else ()
    return Content({"data": rows}, found, named, kind, values, table.remarks)


def _whole_table(source: Any, options: Options) -> Table:
    """The table of a file or a frame in memory."""
    carried = [*options.ids, *([options.labels] if isinstance(options.labels, str) else [])]
    read = tables.read_table if isinstance(source, Path) else tables.table_from_frame
    table = read(source, drop=options.drop, ids=carried)
    if not table.names:
        raise UserError(
            f"{table.where} has only the column of its labels: add columns of values"
            if options.labels
            else f"{table.where} has no column of values: drop or carry through fewer"
        )
    _refuse_gaps(table, options)
    return table


def _pieces(path: Path, options: Options) -> Iterator[Table]:
    """The rows of a .parquet file, piece by piece."""
    for table in stream_tables(path, drop=options.drop, ids=options.ids):
        _refuse_gaps(table, options)
        yield table


def _refuse_clash(source: Any, options: Options) -> None:
    """Raise UserError for a column with two purposes, or labels without a column."""
    if options.labels is True:
        raise UserError(
            f"{_name(source)} is a table: name the column of its labels with --label COLUMN"
        )
    label = [options.labels] if isinstance(options.labels, str) else []
    kinds = options.columns if isinstance(options.columns, Mapping) else ()
    uses = {"drop": options.drop, "id": options.ids, "label": label, "columns": kinds}
    for (one, names), (other, others) in combinations(uses.items(), 2):
        same = {name.strip() for name in names} & {name.strip() for name in others}
        if same and {one, other} != {"id", "label"}:
            raise UserError(
                f"{_name(source)}: column {min(same)!r} is named by both {one} and {other}, but it "
                f"is either {_USES[one]} or {_USES[other]}: leave out one of them"
            )


_USES = {
    "drop": "left out",
    "id": "carried through",
    "label": "the label",
    "columns": "a value with a kind",
}
"""The use of the columns that each option names."""


def _refuse_gaps(table: Table, options: Options) -> None:
    """Raise UserError for the first missing value, unless values may be missing."""
    if options.missing:
        return
    gaps = [np.flatnonzero(is_empty(one)) for one in table.columns]
    first = min(((int(one[0]), i) for i, one in enumerate(gaps) if len(one)), default=None)
    if first is not None:
        raise UserError(
            f"{table.where}: {table.place(*first)} is not a number or a word; {MISSING_REMEDY}"
        )


def _kinds(
    table: Table, options: Options
) -> tuple[tuple[Column, ...], Kind | None, tuple[str, str] | None]:
    """The columns of a table, the kind of data, and the meaning of the values with its rule.

    Nothing for numbers without names, to which the rules of arrays apply.
    """
    wanted, n = options.columns, len(table.names)
    if wanted is not None and not isinstance(wanted, Mapping):
        columns = tuple(wanted)
        if not all(isinstance(column, Column) for column in columns):
            raise UserError(
                "columns must be kinds by name, such as {'age': 'gaussian'}, or the columns of "
                "other data; kinds in order are make_kind('table', columns=...)"
            )
    elif options.kind is not None and not wanted:
        check_kind_width(options.kind, n, f"{table.where}: array 'data'")
        return named_columns(table.names, options.kind, n), options.kind, None
    else:
        has_words = any(column.dtype == object for column in table.columns)
        is_grey = options.binarization not in (None, "none")
        if not wanted and not has_words and (is_grey or not table.named):
            return (), None, None
        columns = choose_columns(table, wanted)
    kind = columns_to_kind(columns)
    if options.kind not in (None, kind):
        raise UserError(
            f"observation {str(options.kind)!r} contradicts the kinds of the columns, which make "
            f"{kind.name!r}: leave one of them out"
        )
    meaning = {"gaussian": "real", "bernoulli": "binary"}.get(kind.name, "stored")
    return columns, kind, (meaning, "the kind of each column")


# --- images and arrays -----------------------------------------------------------------------


def _read_folder(folder: Path, options: Options) -> tuple[Content, list[dict[str, str]]]:
    """The images of a folder, and its description: one digest of all their files."""
    from iwae.data.images import read_images

    if isinstance(options.labels, str):
        raise UserError(
            f"{folder} is a folder, whose sub-folders are labels: use conditional alone"
        )
    images = read_images(folder, options.resize)
    found = {}
    if options.labels:
        if images.labels is None:
            raise UserError(f"{folder} has no sub-folders, whose names would be labels: add them")
        found = {"data": images.labels}
    files = [{"name": folder.name, "sha256": images.sha256, "verified": "a user's folder"}]
    arrays = {"data": images.pixels}
    return Content(arrays, found, kind=options.kind, remarks=images.remarks), files


def _read_arrays(path: Path, options: Options) -> Content:
    """The arrays of a file, and their labels."""
    if isinstance(options.labels, str):
        raise UserError(
            f"label {options.labels!r} names a column of a table, but {path} is not one: an .npz "
            "file has its labels in separate arrays, so use conditional alone"
        )
    arrays = read_arrays(path)
    found = take_labels(path, arrays) if options.labels else {}
    if not options.labels:
        drop_labels(arrays)
    lazy = {key: stored(array) for key, array in arrays.items()}
    for key, array in lazy.items():
        check_array(str(path), key, array, missing=options.missing)
    return Content(lazy, found, kind=options.kind)


def _splits(where: str, arrays: Mapping[str, Examples]) -> tuple[Mapping[str, Examples], str]:
    """The arrays named train, test and perhaps validation, or the splits of a single array."""
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
            f"{where} has {count_in_words(len(array), 'example')}: give at least {LEAST}, of which "
            "a fifth is the test set"
        )
    train, test, rule = hold_out_fifth(len(array))
    return {"train": row_subset(array, train), "test": row_subset(array, test)}, rule


def _common_shape(where: str, splits: Mapping[str, Examples]) -> tuple[int, ...]:
    """The shape of an example, which must be that of all splits."""
    shapes = {split: array.shape[1:] for split, array in splits.items()}
    if len(set(shapes.values())) > 1:
        words = ", ".join(f"{split} {list(shape)}" for split, shape in shapes.items())
        raise UserError(f"{where}: the splits have examples of different shapes: {words}")
    return shapes["train"]

"""Load a data set from its name or path."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iwae.data.catalogue import DATASETS, Source, catalogued_source
from iwae.data.columns import Column
from iwae.data.dataset import Dataset
from iwae.data.dataset_files import Checked, locate_dataset_file, obtain_dataset_file
from iwae.data.kinds import KINDS, MISSING, Kind, as_kind, check_kind_values, make_kind
from iwae.data.own import STREAMED, is_own, read_own
from iwae.data.readers import DamagedError
from iwae.data.splits import Options, Raw, assemble_splits
from iwae.errors import UserError


def load_dataset(
    name_or_path: Any,
    *,
    binarization: str | None = None,
    validation: int | float | str | None = None,
    seed: int = 0,
    binarization_seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    observation: Kind | str | None = None,
    missing: bool | str = False,
    labels: bool | str = False,
    drop: Sequence[str] = (),
    ids: Sequence[str] = (),
    columns: Mapping[str, str] | Sequence[Column] | None = None,
    unknown: str = "error",
    resize: int | Sequence[int] | None = None,
    standardize: bool | None = None,
    stream: bool = False,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """Load a named data set or your own data, split and ready to train on.

    Files are looked up in `data_dir`, then in the user's cache.

    Args:
        name_or_path: a name; the path of a .csv, .tsv, .parquet, .npy or .npz file or of a folder
            of images; or a data frame (pandas, Polars, PyArrow).
        binarization: the binarisation; by default, that of the values (`binarisation.resolve`).
        validation: the number or share of training examples to hold out, or "authors" for those of
            the code of Burda et al.; by default, none.
        seed: seed of the choice of these examples.
        binarization_seed: seed of the draws of the validation and test examples (and of all under
            `static`), independent of `seed`, so that runs with different seeds are measured on the
            same tensor.
        data_dir: folder of the files; by default, the environment variable IWAE_DATA.
        shape: the shape of one example, in place of that of the data.
        observation: the kind of data: a name in `kinds.KINDS`, or a `Kind` if it needs a parameter.
            By default, it follows from the values; each column of a table that names its columns or
            holds words then has its own kind, chosen by the rule of `columns`.
        missing: whether values of your own data may be missing (NaN, or empty cells of a text
            file): True, or a mechanism such as "at-random".
        labels: whether each example is followed by its label (see `Dataset`). For a table, the name
            of the column that holds the labels, or its number from 1 if the columns have no names;
            for a folder, the labels are the names of its sub-folders.
        drop: columns of a table to leave out.
        ids: columns of a table to carry through beside the values.
        columns: kinds of columns by name, in place of those of the rule; or the columns of other
            data (`Dataset.columns`), which these data must have too, with the same levels.
        unknown: "error" or "missing", for a word that is not among these levels.
        resize: height and width of a folder's images.
        standardize: whether to scale real values to mean 0 and standard deviation 1 over the
            training rows (see `Dataset.scaling`); by default, only those of your own data.
        stream: whether to read an .npy or .parquet file block by block, on demand: the splits are
            then `rows.Rows`, not arrays, with the same values and statistics.
        download: whether to download missing files into the cache.
        progress: whether to show the progress of downloads.

    Raises:
        UserError: for unknown names, contradictory choices, and files that are missing, truncated,
            corrupt, of the wrong shape or out of range.
    """
    # The kind with the default of its parameter; `as_kind` may not have checked it.
    kind = None if observation is None else make_kind(**as_kind(observation)._asdict())
    if isinstance(missing, str) and missing not in MISSING:
        raise UserError(f"unknown missing {missing!r}; known: {', '.join(MISSING)}")
    options = Options(
        kind=kind,
        binarization=binarization,
        validation=validation,
        seed=seed,
        binarization_seed=binarization_seed,
        shape=shape,
        missing=bool(missing),
        labels=labels,
        drop=drop,
        ids=ids,
        columns=columns,
        unknown=unknown,
        resize=resize,
        standardize=standardize,
        stream=stream,
    )
    if stream:
        _refuse_stream(name_or_path, labels)
    if not isinstance(name_or_path, str | os.PathLike):
        raw, kind = read_own(name_or_path, options)
    elif is_own(name_or_path):
        raw, kind = read_own(Path(name_or_path).expanduser(), options)
    else:
        find = partial(obtain_dataset_file, data_dir=data_dir, download=download, progress=progress)
        raw = _read_named(os.fspath(name_or_path), find)
        _refuse_own(raw.name, options)
        if labels:
            raw = _with_labels(raw, find)
        if kind is not None and KINDS[kind.name].as_stored:
            for split, rows in raw.splits.items():
                check_kind_values(rows, kind, f"{raw.name}: {split}")
    return assemble_splits(raw, options._replace(kind=kind))


def _refuse_stream(source: Any, labels: bool | str) -> None:
    """Raise UserError for data that cannot be read block by block."""
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    if path is None or not is_own(path) or path.suffix.lower() not in STREAMED:
        raise UserError(
            f"{'the frame' if path is None else path} cannot be streamed: only .npy and .parquet "
            "files are read block by block; save the data as one of these, or leave out stream"
        )
    if labels:
        raise UserError(f"{path} cannot be streamed with labels: leave out stream")


def _refuse_own(name: str, options: Options) -> None:
    """Raise UserError for choices that only a user's own data have."""
    if isinstance(options.labels, str):
        raise UserError(
            f"label {options.labels!r} names a column of a table, but {name} is a named data set: "
            "use conditional alone"
        )
    for option in ("drop", "ids", "columns", "resize"):
        if getattr(options, option):
            raise UserError(f"{option} is for your own data, but {name} is a named data set")


def can_load_labels(
    name_or_path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> bool:
    """Whether `load_dataset(..., labels=True)` finds labels on this machine, without reading them.

    The labels of a table do not count: only its user knows their column.
    """
    path = Path(name_or_path).expanduser()
    if not is_own(name_or_path):
        source = catalogued_source(os.fspath(name_or_path))
        if not source.label_variants:
            return source.generate_labels is not None
        return all(
            locate_dataset_file(replace(source, variants=source.label_variants), data_dir).values()
        )
    if path.is_dir():
        return any(child.is_dir() for child in path.iterdir())
    if path.suffix.lower() != ".npz":
        return False
    with np.load(path, allow_pickle=False) as arrays:
        return any(key.endswith("labels") for key in arrays)


def check_load_arguments(name_or_path: str | os.PathLike[str]) -> None:
    """Raise UserError for an unknown name or a missing file, as `load_dataset` does."""
    path = Path(name_or_path).expanduser()
    if not is_own(name_or_path):
        catalogued_source(os.fspath(name_or_path))
    elif not path.is_file() and not path.is_dir():
        raise UserError(f"{path} cannot be read: No such file or directory")


def _read_named(name: str, find: Callable[[Source], list[Checked]]) -> Raw:
    """Read the splits of a named set."""
    source = catalogued_source(name)
    files: list[dict[str, str]] = []
    if source.generate:
        try:
            splits = source.generate()
        except DamagedError as damage:
            raise UserError(f"data set {name!r} cannot be generated: {damage}") from None
    else:
        checked = find(source)
        splits = _merged_splits(checked)
        files = [_file_identity(each) for each in checked]
    return Raw(
        name=name,
        splits=splits,
        shape=source.shape,
        values=source.values,
        files=files,
        split_rule=source.split_rule,
        authors=source.authors,
        log_density=source.log_density,
    )


def _with_labels(raw: Raw, find: Callable[[Source], list[Checked]]) -> Raw:
    """Add the labels of a named set."""
    source = catalogued_source(raw.name)
    if source.generate_labels is not None:
        return raw._replace(labels=source.generate_labels(), classes=source.classes)
    if not source.label_variants:
        have = ", ".join(one.name for one in DATASETS.values() if one.classes)
        raise UserError(f"{raw.name} has no labels: use {have}, or a file of your own")
    checked = find(replace(source, variants=source.label_variants))
    files = map(_file_identity, checked)
    return raw._replace(
        labels=_merged_splits(checked),
        classes=checked[0].file.classes or source.classes,
        files=[*raw.files, *(one for one in files if one not in raw.files)],
    )


def _merged_splits(checked: Sequence[Checked]) -> dict[str, np.ndarray]:
    """The splits of several files."""
    return {split: rows for file in checked for split, rows in file.splits.items()}


def _file_identity(checked: Checked) -> dict[str, str]:
    """The description of a file in records, without its path, which differs between machines."""
    identity = {
        "name": checked.file.name,
        "sha256": checked.sha256,
        "verified": checked.verified,
    }
    return identity | ({"note": checked.file.note} if checked.file.note else {})

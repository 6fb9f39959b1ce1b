"""Load a data set from its name or path."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from iwae.data.catalogue import DATASETS, Source
from iwae.data.kinds import KINDS, Kind, as_kind, check_values, make_kind
from iwae.data.own import SUFFIXES, read_bytes, read_own
from iwae.data.readers import DamagedError
from iwae.data.splits import Choices, Dataset, Raw, assemble
from iwae.data.store import Checked, named, obtain
from iwae.errors import UserError


def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    binarization: str | None = None,
    validation: int | float | str | None = None,
    seed: int = 0,
    binarization_seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    observation: Kind | str | None = None,
    missing: bool = False,
    labels: bool | str = False,
    standardize: bool | None = None,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """Load a named data set, or a user's own .npy, .npz or .csv file, split and ready to train on.

    `binarization` and `observation` default to what the values call for (`splits.resolve`). An
    observation is a name in `kinds.KINDS`, or a `Kind` if it needs a parameter.
    `validation` examples (a number, or a share between 0 and 1) are held out of the training set,
    chosen by `seed`; "authors" holds out the same examples as the code of Burda et al.
    `binarization_seed` fixes the draws of the validation and test examples (and of all under
    `static`), independently of `seed`, so that runs with different seeds are measured on the same
    tensor. `shape` overrides that of one example.
    With `missing`, values of your own file may be missing: NaN, or empty cells of a .csv file.
    `standardize` scales real values to mean 0 and standard deviation 1 over the training rows (see
    `Dataset.scaling`); by default, those of your own file.
    With `labels`, each example is followed by its label (see `Dataset`). For a .csv file, `labels`
    is the column that holds them: its name, or its number from 1 if the columns have no names.
    Files are looked up in `data_dir` (or the environment variable IWAE_DATA), then in the user's
    cache. Missing files are downloaded into the cache if `download` is true.

    Raises `UserError` for unknown names, contradictory choices, and files that are missing,
    truncated, corrupt, of the wrong shape or out of range.
    """
    kind = None if observation is None else _checked_kind(as_kind(observation))
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() in SUFFIXES:
        raw = read_own(path, kind, missing=missing, labels=labels)
    else:
        find = partial(obtain, data_dir=data_dir, download=download, progress=progress)
        raw = _read_named(os.fspath(name_or_path), find)
        if isinstance(labels, str):
            raise UserError(
                f"label {labels!r} names a column of a .csv file, but {raw.name} is a named data "
                "set: use conditional alone"
            )
        if labels:
            raw = _with_labels(raw, find)
        if kind is not None and KINDS[kind.name].as_stored:
            for split, rows in raw.splits.items():
                check_values(rows, kind, f"{raw.name}: {split}")
    choices = (kind, binarization, validation, seed, binarization_seed, shape, missing, standardize)
    return assemble(raw, Choices(*choices))


def check_name(name_or_path: str | os.PathLike[str]) -> None:
    """Raise `UserError` for an unknown name or a missing file, as `load_dataset` does."""
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        named(os.fspath(name_or_path))
    elif not path.is_file():
        read_bytes(path)


def _checked_kind(kind: Kind) -> Kind:
    """The kind, checked and with the default of its parameter."""
    return make_kind(**kind._asdict())


def _read_named(name: str, find: Callable[[Source], list[Checked]]) -> Raw:
    source = named(name)
    files: list[dict[str, str]] = []
    if source.generate:
        try:
            splits = source.generate()
        except DamagedError as damage:
            raise UserError(f"data set {name!r} cannot be generated: {damage}") from None
    else:
        checked = find(source)
        splits = {split: rows for file in checked for split, rows in file.splits.items()}
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
    source = named(raw.name)
    if source.generate_labels is not None:
        return raw._replace(labels=source.generate_labels(), classes=source.classes)
    if not source.label_variants:
        have = ", ".join(one.name for one in DATASETS.values() if one.classes)
        raise UserError(f"{raw.name} has no labels: use {have}, or a file of your own")
    checked = find(replace(source, variants=source.label_variants))
    files = map(_file_identity, checked)
    return raw._replace(
        labels={split: rows for file in checked for split, rows in file.splits.items()},
        classes=checked[0].file.classes or source.classes,
        files=[*raw.files, *(one for one in files if one not in raw.files)],
    )


def _file_identity(checked: Checked) -> dict[str, str]:
    """The description of a file in records: without its path, which differs between machines."""
    identity = {
        "name": checked.file.name,
        "sha256": checked.sha256,
        "verified": checked.verified,
    }
    return identity | ({"note": checked.file.note} if checked.file.note else {})

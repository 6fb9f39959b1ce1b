"""One function from a name or a path to a data set."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from iwae.data.catalogue import DATASETS
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
    validation: int | str | None = None,
    seed: int = 0,
    binarization_seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    shape: Sequence[int] | None = None,
    observation: Kind | str | None = None,
    missing: bool = False,
    labels: bool | str = False,
    download: bool = True,
    progress: bool = True,
) -> Dataset:
    """A named data set, or a user's own .npy, .npz or .csv file, split and ready to train on.

    `binarization` and `observation` are by default what the values call for (`splits.resolve`); an
    observation is a name in `kinds.KINDS`, or a `Kind` where it needs a parameter.
    `validation` examples are held out of the training data, chosen by `seed`; "authors" holds out
    what the code of Burda et al. does. `binarization_seed` fixes the draws of the validation and
    test examples (and of all under `static`), independently of `seed`, so that runs with different
    seeds are measured on the same tensor. `shape` is that of one example, if it is to be another.
    With `missing`, values of your own file may be missing: NaN, or empty cells of a .csv file.
    With `labels`, each example has its label after it (see `Dataset`); of a .csv file, `labels` is
    the column that holds them, by its name, or its number from 1 where there are no names.
    Files are looked for in `data_dir` (else the environment's IWAE_DATA), then in the user's cache,
    then downloaded into the cache if `download`.

    Raises `UserError` for unknown names, contradictory choices, and files that are missing,
    truncated, corrupt, wrongly shaped or out of range.
    """
    kind = None if observation is None else _known(as_kind(observation))
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() in SUFFIXES:
        raw = read_own(path, kind, missing=missing, labels=labels)
    else:
        raw = _read_named(os.fspath(name_or_path), data_dir, download, progress)
        if isinstance(labels, str):
            raise UserError(
                f"label {labels!r} is a column of a .csv file of your own, and {raw.name} is none: "
                "where it has labels, conditional is enough"
            )
        if labels:
            raw = _with_labels(raw, data_dir, download, progress)
        if kind is not None and KINDS[kind.name].as_stored:
            for split, rows in raw.splits.items():
                check_values(rows, kind, f"{raw.name}: {split}")
    choices = Choices(kind, binarization, validation, seed, binarization_seed, shape, missing)
    return assemble(raw, choices)


def check_name(name_or_path: str | os.PathLike[str]) -> None:
    """Raise `UserError` for an unknown name or a file that is not there, as `load_dataset` does."""
    path = Path(name_or_path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        named(os.fspath(name_or_path))
    elif not path.is_file():
        read_bytes(path)


def _known(kind: Kind) -> Kind:
    """A kind with what it needs."""
    return make_kind(**kind._asdict())


def _read_named(
    name: str, data_dir: str | os.PathLike[str] | None, download: bool, progress: bool
) -> Raw:
    source = named(name)
    files: list[dict[str, str]] = []
    if source.generate:
        try:
            splits = source.generate()
        except DamagedError as damage:
            raise UserError(f"data set {name!r} cannot be made: {damage}") from None
    else:
        checked = obtain(source, data_dir, download=download, progress=progress)
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


def _with_labels(
    raw: Raw, data_dir: str | os.PathLike[str] | None, download: bool, progress: bool
) -> Raw:
    """A named set with its labels."""
    source = named(raw.name)
    if source.generate_labels is not None:
        return raw._replace(labels=source.generate_labels(), classes=source.classes)
    if not source.label_variants:
        have = ", ".join(one.name for one in DATASETS.values() if one.classes)
        raise UserError(f"{raw.name} has no labels; these have: {have}, or a file of your own")
    labels_of = replace(source, variants=source.label_variants)
    checked = obtain(labels_of, data_dir, download=download, progress=progress)
    files = map(_file_identity, checked)
    return raw._replace(
        labels={split: rows for file in checked for split, rows in file.splits.items()},
        classes=checked[0].file.classes or source.classes,
        files=[*raw.files, *(one for one in files if one not in raw.files)],
    )


def _file_identity(checked: Checked) -> dict[str, str]:
    """What a record says of a file: no path, so that it is the same on every machine."""
    identity = {
        "name": checked.file.name,
        "sha256": checked.sha256,
        "verified": checked.verified,
    }
    return identity | ({"note": checked.file.note} if checked.file.note else {})

"""Files of records: `NAME.json` with the values behind it, `NAME.npz`, or many packed into two.

A measurement writes files of its own, so that concurrent ones cannot lose each other's. `pack`
moves the finished ones of a folder into `records.jsonl` and `values.npz`. A file of its own takes
precedence over a packed record of the same name.
"""

import hashlib
import json
import lzma
import tokenize
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from zipfile import BadZipFile

import numpy as np

from iwae.data.arrays import refusing_oversized_arrays
from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.results.schema import REMEDY, VERSION, Document, parse
from iwae.runs.named_arrays import UNREADABLE, digest_named_arrays
from iwae.wording import first_error_line

RECORDS, VALUES = "records.jsonl", "values.npz"
"""Files of a packed folder."""

Arrays = dict[str, np.ndarray]

DAMAGES = (
    *(*UNREADABLE, LookupError, EOFError, BadZipFile, zlib.error, lzma.LZMAError, SyntaxError),
    tokenize.TokenError,  # by the header of an array
    RuntimeError,  # by an unknown compression, or a bit that says "encrypted"
)
"""Exceptions that reading a damaged JSON or .npz file can raise."""

Damaged = Callable[[str], None]
"""Called with a description of a damaged record or of damaged values; it may raise."""


def refuse_damaged_record(words: str) -> NoReturn:
    """Raise UserError for damage, with the remedy."""
    raise UserError(f"{words}: {REMEDY}")


def read_documents(folder: Path, damaged: Damaged = refuse_damaged_record) -> dict[Path, Any]:
    """The JSON documents of a folder, sorted by the path that each has, or had before packing."""
    found = {path: entry.document for path, entry in _packed(folder, damaged).items()}
    for path in Path(folder).glob("[!.]*.json"):
        found.pop(path, None)
        try:
            found[path] = json.loads(path.read_text())
        except DAMAGES as error:
            damaged(f"{path} cannot be read as a record ({first_error_line(error)})")
    return dict(sorted(found.items()))


class _Entry(NamedTuple):
    """A line of `records.jsonl`: a record, and the digests of its text and of its values."""

    document: Any
    record_sha256: str
    values_sha256: str | None


def _packed(folder: Path, damaged: Damaged = refuse_damaged_record) -> dict[Path, _Entry]:
    """The packed records of a folder, by the path that each had."""
    file, found = Path(folder) / RECORDS, {}
    lines = file.read_bytes().splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            path = Path(folder) / f"{entry['name']}.json"
            found[path] = _Entry(entry["record"], entry["record_sha256"], entry["values_sha256"])
        except DAMAGES as error:
            damaged(
                f"{file}, line {number}, cannot be read as a record ({first_error_line(error)})"
            )
    return found


def read_record_arrays(
    path: Path, damaged: Damaged = refuse_damaged_record, names: Sequence[str] = ()
) -> Arrays | None:
    """The values behind the record at `path`; None if they, or those named, cannot be read."""
    values, packed = path.with_suffix(".npz"), path.with_name(VALUES)
    own = path.exists() or not packed.exists()
    try:
        arrays = load_record_arrays(values) if own else load_record_arrays(packed, f"{path.stem}/")
        if missing := [name for name in names if name not in arrays]:
            raise LookupError(f"no array {missing[0]}")
        return arrays
    except DAMAGES as error:
        damaged(f"{values if own else packed} cannot be read ({first_error_line(error)})")
        return None


def load_record_arrays(file: Path, prefix: str = "") -> Arrays:
    """The arrays of a file whose names begin with a prefix, by the rest of their names.

    Raises:
        LookupError: if there is none, or a member with such a name is no array.
    """
    with (
        refusing_oversized_arrays(file),
        file.open("rb") as opened,
        np.load(opened, allow_pickle=False) as arrays,
    ):
        found = {n.removeprefix(prefix): arrays[n] for n in arrays if n.startswith(prefix)}
    if not found or not all(isinstance(one, np.ndarray) for one in found.values()):
        raise LookupError(f"no array {prefix}*, or not only arrays")
    return found


def record_place(path: Path) -> str:
    """The place of the record that has this path, or had it before packing, in words."""
    return str(path) if path.exists() else f"{path.with_name(RECORDS)}, {path.stem},"


def has_record_files(path: Path) -> bool:
    """Whether there is a record that has this path, or had it before packing."""
    return path.exists() or path in _packed(path.parent)


def write_record(
    run: Path, name: str, record: Document, arrays: Mapping[str, np.ndarray]
) -> Document:
    """Write `RUN/evaluations/NAME.json` and the values behind it, `NAME.npz`.

    Returns:
        The record as it was written.
    """
    found = parse(json.loads(_text_of({"version": VERSION, **record})))
    written = {"version": VERSION, **found.document()}  # first, for a person who reads the file
    write_record_files(Path(run) / "evaluations" / f"{name}.json", written, arrays)
    return written


def write_record_files(
    path: Path, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> None:
    """Write a record, and the values behind it if any, as files of their own.

    Raises:
        FileNotFoundError: if the run was removed meanwhile; its folder is not created again.
    """
    if arrays:
        with atomic_write(path.with_suffix(".npz"), parents=False) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
    with atomic_write(path, parents=False) as temporary:
        temporary.write_text(_text_of(document))


def _text_of(document: Mapping[str, Any]) -> str:
    """A record as the text of its file."""
    return json.dumps(document, indent=1, default=str) + "\n"


def pack(folder: Path) -> list[Path]:
    """Move the records of a folder that have files of their own into two files.

    The new files are written whole before an old one is removed. An old file that has been written
    again meanwhile stays.

    Returns:
        The files removed.

    Raises:
        UserError: if a record or its values cannot be read; nothing is removed then.
    """
    paths = sorted(Path(folder).glob("[!.]*.json"))
    own = [file for path in paths for file in (path, path.with_suffix(".npz")) if file.exists()]
    times = {file: file.stat().st_mtime_ns for file in own}
    if not own:
        return []
    lines, arrays = [], Arrays()
    for path, document in read_documents(folder).items():
        values = _values_behind(path)
        arrays |= {f"{path.stem}/{name}": array for name, array in values.items()}
        entry = {"name": path.stem, **_digests(document, values), "record": document}
        lines.append(json.dumps(entry) + "\n")
    if arrays:
        with atomic_write(Path(folder) / VALUES) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
    with atomic_write(Path(folder) / RECORDS) as temporary:
        temporary.write_text("".join(lines))
    old = [file for file in own if file.stat().st_mtime_ns == times[file]]
    for file in old:
        file.unlink()
    return old


def unpack(folder: Path) -> None:
    """Give each packed record of a folder its own files again."""
    for path, document in read_documents(folder).items():
        if not path.exists():
            write_record_files(path, document, _values_behind(path))
    for name in (RECORDS, VALUES):
        (Path(folder) / name).unlink(missing_ok=True)


def check_packed_records(folder: Path) -> int:
    """The number of packed records of a folder.

    Raises:
        UserError: names the first whose digests are not those of its contents.
    """
    entries = _packed(folder)
    for path, entry in entries.items():
        values: Arrays = {}
        if entry.values_sha256:
            values = load_record_arrays(Path(folder) / VALUES, f"{path.stem}/")
        for name, digest in _digests(entry.document, values).items():
            if getattr(entry, name) != digest:
                refuse_damaged_record(
                    f"{path.stem} in {folder} is not what was packed (its {name})"
                )
    return len(entries)


def _values_behind(path: Path) -> Arrays:
    """The values behind a record; none if it has none."""
    own = path.exists()
    has = path.with_suffix(".npz").exists() if own else _packed(path.parent)[path].values_sha256
    return (read_record_arrays(path) or {}) if has else {}


def _digests(document: Mapping[str, Any], values: Arrays) -> dict[str, str | None]:
    """SHA-256 of the text of a record, and of the arrays behind it."""
    return {
        "record_sha256": hashlib.sha256(_text_of(document).encode()).hexdigest(),
        "values_sha256": digest_named_arrays(values, "") if values else None,
    }

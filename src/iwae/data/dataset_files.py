"""Find the files of a named data set: in a user's folder, in the cache, or on a mirror.

A file counts only once its content has been read and checked; nothing is unpickled or executed.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.data.catalogue import DATASETS, DataFile, Source, catalogued_source
from iwae.data.dataset import test_sha256
from iwae.data.readers import ONLY_PUBLISHED, DamagedError, unpack
from iwae.errors import UserError
from iwae.files import atomic_write, file_content_sha256

ENVIRONMENT = "IWAE_DATA"
TIMEOUT = 30  # seconds without an answer before the next address is tried


class Checked(NamedTuple):
    """A file whose content has been read and checked."""

    file: DataFile
    path: Path
    splits: dict[str, np.ndarray]
    sha256: str  # of the unpacked content
    verified: str  # by "sha256", "values", "md5", or "structure" alone


def cache_dir() -> Path:
    """The folder for downloads, inside the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("iwae", appauthor=False)) / "data"


def locate_dataset_file(
    source: Source, data_dir: str | os.PathLike[str] | None
) -> dict[str, Path | None]:
    """The path of each file of a set, None if it is missing; all in one place if possible."""
    places = _search_folders(source, data_dir)
    for folders in places:
        for variant in source.variants:
            found = {file.name: _find(file, folders) for file in variant}
            if all(found.values()):
                return found
    return {file.name: _find(file, chain(*places)) for file in source.variants[0]}


def obtain_dataset_file(
    source: Source,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    progress: bool = True,
) -> list[Checked]:
    """Check every file of a set, after downloading missing files into the cache.

    Raises:
        UserError: for a damaged file, or for missing files, all of which it names.
    """
    paths = locate_dataset_file(source, data_dir)
    found: dict[str, Checked] = {}
    failures: dict[str, list[str]] = {}
    for name, path in paths.items():
        file = source.files[name]
        checked = None if path is None else _read_at_hand(file, path, download)
        # Once all mirrors of one file have failed, those of the next are not tried.
        if checked is None and download and not any(failures.values()):
            checked, failures[name] = _download(file, cache_dir() / source.name, progress)
        if checked is not None:
            found[name] = checked
    missing = [source.files[name] for name in paths if name not in found]
    if missing:
        raise UserError(_missing_message(source, missing, failures, data_dir))
    return [found[name] for name in paths]


def fetch(
    name: str, data_dir: str | os.PathLike[str] | None = None, progress: bool = True
) -> list[Path]:
    """Download the missing files of a named set; return all paths ([] for built-in sets)."""
    source = catalogued_source(name)
    if source.generate:
        return []
    return [checked.path for checked in obtain_dataset_file(source, data_dir, progress=progress)]


def verify(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> list[tuple[str, bool, str]]:
    """Check every file of a named set without downloading: (file, whether correct, details)."""
    source = catalogued_source(name)
    if source.generate:
        return [_verify_generated(source)]
    rows = []
    for file_name, path in locate_dataset_file(source, data_dir).items():
        if path is None:
            message = f"not found; `iwae data fetch {name}` downloads it"
            rows.append((file_name, False, message))
            continue
        try:
            checked = check_dataset_file(source.files[file_name], path)
            words = "; ".join(filter(None, (_VERIFIED[checked.verified], checked.file.note)))
            rows.append((str(path), True, f"{words}; sha256 {checked.sha256}"))
        except DamagedError as damage:
            rows.append((str(path), False, str(damage)))
    return rows


class Listing(NamedTuple):
    """A row of `iwae data list`."""

    name: str
    description: str
    sizes: tuple[int, int, int]  # train, validation, test
    shape: tuple[int, ...]
    observation: str
    binarization: str
    present: bool
    where: str


def list_datasets(data_dir: str | os.PathLike[str] | None = None) -> list[Listing]:
    """All named data sets, and whether each is at hand (`verify` checks its content)."""
    return [
        Listing(
            source.name,
            source.description,
            source.sizes,
            source.shape,
            source.observation,
            source.binarization,
            *_whereabouts(source, data_dir),
        )
        for source in DATASETS.values()
    ]


_VERIFIED = {
    "sha256": "the expected content",
    "values": "the expected values, in another text layout",
    "md5": "the published file",
    "structure": "structure correct, but no checksum of this file is known",
}


def _search_folders(source: Source, data_dir: str | os.PathLike[str] | None) -> list[list[Path]]:
    """The folders to search: in the user's folder, if there is one, then the cache."""
    given = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT) or None
    places = [[cache_dir() / source.name]]
    if given is not None:
        root = Path(given).expanduser()
        if not root.is_dir():
            setting = "data_dir" if data_dir is not None else f"environment variable {ENVIRONMENT}"
            raise UserError(
                f"{setting} is {str(root)!r}, which is not a folder: create or change it"
            )
        places.insert(0, [root / folder for folder in (*source.folders, ".")])
    return places


def _find(file: DataFile, folders: Iterable[Path]) -> Path | None:
    """The first file, plain or compressed, with one of the names."""
    names = [name + end for name in (file.name, *file.other_names) for end in ("", ".gz")]
    paths = (folder / name for folder in folders for name in names)
    return next(filter(Path.is_file, paths), None)


def _whereabouts(source: Source, data_dir: str | os.PathLike[str] | None) -> tuple[bool, str]:
    """Whether all files of a set are at hand, and where."""
    if source.generate:
        return True, source.origin
    paths = list(locate_dataset_file(source, data_dir).values())
    folders = sorted({str(path.parent) for path in paths if path is not None})
    if None in paths:
        return False, f"in part: {', '.join(folders)}" if folders else ""
    return True, ", ".join(folders)


def check_dataset_file(file: DataFile, path: Path) -> Checked:
    """Read a file and check its content; DamagedError if it is another one."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"it cannot be read ({error.strerror})") from None
    content = unpack(packed)
    digest = file_content_sha256(content)
    known = {file.sha256, file.md5} - {None}
    if file.read in ONLY_PUBLISHED and known and not known & {digest, _md5(content)}:
        raise DamagedError(f"its content is not the published one (sha256 {digest})")
    splits = file.read(content, file.shapes)
    verified = _verified(file, packed, content, digest, splits)
    return Checked(file, path, splits, digest, verified)


def _verified(
    file: DataFile, packed: bytes, content: bytes, digest: str, splits: dict[str, np.ndarray]
) -> str:
    """The method that verifies a well-formed file; DamagedError if it is another file."""
    if file.sha256 == digest:
        return "sha256"
    if file.values_sha256 and file.values_sha256 == test_sha256(*splits.values()):
        return "values"
    if file.sha256:
        raise DamagedError(
            f"its content is not the published one (sha256 {digest}, not {file.sha256})"
        )
    for source in DATASETS.values():  # MNIST and other sets share the names of files
        if any(other.sha256 == digest for other in source.files.values()):
            raise DamagedError(f"it is a file of the data set {source.name!r}")
    if file.md5 == _md5(content) or file.archive_md5 == _md5(packed):
        return "md5"
    return "structure"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _read_at_hand(file: DataFile, path: Path, download: bool) -> Checked | None:
    """Read and check a file; None if it is damaged in the cache, to be downloaded again.

    Raises:
        UserError: if it is damaged elsewhere.
    """
    try:
        return check_dataset_file(file, path)
    except DamagedError as damage:
        if download and file.mirrors and path.is_relative_to(cache_dir()):
            return None
        raise UserError(
            f"{path} cannot be used: {damage}; replace it, or move it away to download it again"
        ) from None


def _download(file: DataFile, folder: Path, progress: bool) -> tuple[Checked | None, list[str]]:
    """Download a file from the first mirror that has it, or list the failures of all mirrors."""
    failures = []
    for address in file.mirrors:
        try:
            return _download_from(address, file, folder, progress), []
        except (OSError, DamagedError, ValueError) as error:  # requests' exceptions are OSErrors
            failures.append(f"{address} ({_failure(error)})")
    return None, failures


def _download_from(address: str, file: DataFile, folder: Path, progress: bool) -> Checked:
    """Download a file from a mirror, and check it before it is put in place."""
    import pooch

    target = folder / address.rsplit("/", 1)[1]
    visible = progress and sys.stderr.isatty()
    with atomic_write(target) as temporary, _bar(file.name, visible) as bar:
        get = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=TIMEOUT)
        get(address, str(temporary), None)
        checked = check_dataset_file(file, temporary)
        if checked.verified == "structure":
            raise DamagedError(f"its content is not the published one (sha256 {checked.sha256})")
    return checked._replace(path=target)


def _bar(name: str, visible: bool) -> AbstractContextManager[Any]:
    """A progress bar whose total pooch sets; False for none."""
    if not visible:
        return nullcontext(False)
    from tqdm import tqdm

    # Without a total, a bar is falsy, and pooch would not use it.
    return tqdm(desc=name, total=1, unit="B", unit_scale=True, leave=False, file=sys.stderr)


def _failure(error: Exception) -> str:
    """The reason for a failed download, in a few words; requests has long ones."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error)


def _missing_message(
    source: Source,
    missing: Sequence[DataFile],
    failures: dict[str, list[str]],
    data_dir: str | os.PathLike[str] | None,
) -> str:
    """The message that names missing files, the failures of mirrors and where to put the files."""
    tried = any(failures.values())
    lines = [
        f"data set {source.name!r} is not on this machine"
        + (" and could not be downloaded. Missing:" if tried else ". Missing:")
    ]
    for file in missing:
        lines.append(f"  {file.name} (plain or .gz)")
        lines += [f"    {address}" for address in failures.get(file.name) or file.mirrors]
    for variant in source.variants[1:]:
        lines.append(f"  (or instead: {', '.join(file.name for file in variant)})")
    root = data_dir or os.environ.get(ENVIRONMENT) or "DIR"
    lines.append(
        f"Put them into {root}/{source.folders[0]} and use --data-dir {root} or "
        f"{ENVIRONMENT}={root}, or put them into {cache_dir() / source.name}"
    )
    return "\n".join(lines)


def _verify_generated(source: Source) -> tuple[str, bool, str]:
    """Check the test examples of a built-in set."""
    assert source.generate is not None  # noqa: S101 - for the type checker
    digest = test_sha256(source.generate()["test"])
    if digest == source.generated_sha256:
        return source.name, True, f"{source.origin}; sha256 of the test examples {digest}"
    message = (
        f"{source.origin}, but its test examples differ from those of other machines "
        f"(sha256 {digest}, not {source.generated_sha256})"
    )
    return source.name, False, message

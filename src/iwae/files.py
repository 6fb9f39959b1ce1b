"""Files: read whole, written whole or not at all, checked before they are written, and locked."""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from iwae.errors import UserError

TEMPORARY = ".iwae-"
"""Beginning of the names of files and folders that are still being written."""


@contextmanager
def atomic_write(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it to `path` if the block succeeds.

    A reader sees either the old file or the new one, never part of one, even after a power cut.
    Temporary files that a killed process left in the folder are removed.

    Args:
        path: path of the file.
        parents: whether to create the folders above that of the file. Without them, a folder that
            is removed meanwhile is an error.

    Raises:
        FileNotFoundError: without `parents`, if a folder does not exist or is removed meanwhile.
    """
    path = Path(path)
    path.parent.mkdir(parents=parents, exist_ok=True)
    # Keep the suffix: matplotlib and NumPy choose the file format by it.
    with _temporary(path.parent, path.suffix) as temporary, _naming(path, temporary):
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
        if not (parents or path.exists()):
            raise FileNotFoundError(errno.ENOENT, "removed while it was written", str(path))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, and move it to `path` if the block succeeds.

    An existing folder at `path` is removed only after the new one has taken its name.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _sync(temporary)
        with temporary_folder(path.parent) as old:
            _replace_folder(temporary, path, old)
        _sync(path.parent)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Let a system error, such as a full disk, name the file instead of the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new hidden folder in `parent`, which is removed at the end."""
    with _temporary(parent, None) as temporary:
        yield temporary


@contextmanager
def _temporary(parent: Path, suffix: str | None) -> Iterator[Path]:
    """Yield a new temporary file with a suffix, or a folder, locked while it is in use."""
    _remove_left_over(parent)
    temporary, handle = _locked_temporary(parent, suffix)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


def _locked_temporary(parent: Path, suffix: str | None) -> tuple[Path, int]:
    """Create a temporary file, or a folder if there is no suffix, and a handle that locks it."""
    while True:
        if suffix is None:
            name = tempfile.mkdtemp(dir=parent, prefix=TEMPORARY)
            handle = os.open(name, os.O_RDONLY)
        else:
            handle, name = tempfile.mkstemp(dir=parent, prefix=TEMPORARY, suffix=suffix)
        with suppress(OSError):  # a file system without locks, on which left-over files stay
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():
            return Path(name), handle
        os.close(handle)  # another process took it for left over before it was locked


def _remove_left_over(parent: Path) -> None:
    """Remove temporary files and folders that no process has locked."""
    for path in parent.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # in use, gone already, or not ours
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _replace_folder(new: Path, path: Path, old: Path) -> None:
    """Rename a folder, and move an existing one to the empty folder `old`, or back on failure."""
    if not path.exists():
        new.rename(path)
        return
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise


def read_bytes(path: Path) -> bytes:
    """The content of a file; UserError if it cannot be read or is empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise UserError(f"{path} is empty")
    return content


def file_content_sha256(content: bytes | memoryview) -> str:
    """The SHA-256 of the content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def refuse_folder_as_file(path: Path) -> None:
    """Raise UserError if a folder is in the place of a file."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, where a file is needed: remove it")


def check_writable_file(path: Path, source: Path | None = None, *, overwrite: bool = False) -> None:
    """Check, before anything is computed, that an answer can be written to a file.

    Args:
        path: path of the file.
        source: the input of the answer, which is never replaced.
        overwrite: whether an existing file may be replaced.

    Raises:
        UserError: if the file exists, is the input or a folder, or has no folder to be in.
    """
    if source is not None and path.resolve() == source.resolve():
        raise UserError(f"{path} is the input: choose another name")
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists: choose another, or give --overwrite")
    refuse_folder_as_file(path)
    if not path.resolve().parent.is_dir():
        raise UserError(f"there is no folder {path.resolve().parent}: create it first")


def lock_file(handle: IO[Any], kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file until it is closed; False if another process has locked it.

    Raises:
        UserError: if the file system does not support locks.
    """
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{handle.name} cannot be locked ({error.strerror}): choose a folder on a file system "
            "with locks, which keep processes from training in the same folder"
        ) from error
    return True


def _umask() -> int:
    """The permission bits that the user withholds from new files."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

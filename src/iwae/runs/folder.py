"""The folder of a run: its configuration, exclusive access to it, and signals that stop it."""

import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from iwae.config.experiment import TrainConfig, read_stored
from iwae.errors import UserError
from iwae.files import refuse_folder
from iwae.runs.trackers import FOLDER

FOLDS = "folds"
"""The folder for the models of cross-validation, each trained without some rows."""

Claim = Callable[[], None]
"""Raises if another process has taken over the folder and continues the run from there."""


def claimed() -> None:
    """A claim that no other process disputes."""


def run_config(run: Path) -> TrainConfig:
    """The configuration of a run, or UserError if the folder holds none."""
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} holds no run: config.toml is missing")
    return read_stored(run / "config.toml")


@contextmanager
def locked(run: Path, also: Claim = claimed) -> Iterator[Claim]:
    """Lock the folder, so that no second process trains in it.

    Args:
        also: a further claim to check.

    Yields:
        The claim: raises OSError once the folder has been removed, moved or replaced.

    Raises:
        UserError: if another process has locked it, or it cannot be locked.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / ".lock"
    refuse_folder(path)
    with path.open("w") as handle:
        if not take_lock(handle):
            raise UserError(
                f"{run} is in use by another process: let it finish, or choose another folder"
            )

        def claim() -> None:
            also()
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(handle.fileno())):
                raise OSError(
                    f"{run} was removed or replaced during training: what was trained since its "
                    "last checkpoint is lost; restore the folder and resume, or train again"
                )

        yield claim


def take_lock(handle: IO[Any], kind: int = fcntl.LOCK_EX) -> bool:
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


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of ending the process; a second one interrupts it."""
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    names = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = [signal.signal(name, note) for name in names]
    try:
        yield received
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Training has saved its state and stopped, on a signal or at its deadline."""

    def __init__(self, signal_number: int | None):
        named = signal_number is not None and f"by {signal.Signals(signal_number).name}"
        super().__init__(f"stopped {named or 'because its time is up'}")
        self.signal_number = signal_number

    def __reduce__(self) -> tuple[type, tuple[int | None]]:
        """Pickle it for other processes."""
        return type(self), (self.signal_number,)

    @property
    def status(self) -> int:
        """The exit status of a program that stops for this reason."""
        return 0 if self.signal_number is None else 128 + self.signal_number


def refuse_used(run: Path) -> None:
    """Raise UserError if a new run cannot be written to this folder."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; name a folder for the run")
    if (run / "config.toml").exists():
        raise UserError(
            f"{run} already holds a run; continue it with --resume {run}, or choose another"
        )
    others = [path for path in run.glob("[!.]*") if path.name not in (FOLDER, FOLDS)]
    if others:
        raise UserError(f"{run} is not empty; choose another folder for the run")

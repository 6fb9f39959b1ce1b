"""The folder of a run: its configuration, and exclusive access to it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from iwae.config.experiment import TrainConfig, make_config, stored
from iwae.config.toml import read_toml
from iwae.errors import UserError
from iwae.files import lock_file, refuse_folder_as_file
from iwae.runs.trackers import FOLDER

FOLDS = "folds"
"""The folder for the models of cross-validation, each trained without some rows."""

Claim = Callable[[], None]
"""Raises if another process has taken over the folder and continues the run from there."""


def undisputed_folder() -> None:
    """A claim that no other process disputes."""


def folder_config(run: Path) -> TrainConfig:
    """The configuration of a run, or UserError if the folder holds none."""
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} holds no run: config.toml is missing")
    return _read_stored_config(run / "config.toml")


def _read_stored_config(path: Path) -> TrainConfig:
    """Read the configuration that a run stored; UserError as from `read_config`."""
    values = read_toml(path)
    if "dataset" not in values:
        raise UserError(f"{path} is damaged: a run stores the name of its data set there")
    return make_config(stored(values), str(path))


@contextmanager
def locked_run_folder(run: Path, also: Claim = undisputed_folder) -> Iterator[Claim]:
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
    refuse_folder_as_file(path)
    with path.open("w") as handle:
        if not lock_file(handle):
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


def refuse_used_folder(run: Path) -> None:
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

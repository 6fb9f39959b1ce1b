"""Checkpoints: safetensors files with the state needed to resume a run, named by its step."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.runs.named_arrays import (
    UNREADABLE,
    digest_named_arrays,
    from_named_arrays,
    to_named_arrays,
    write_arrays,
)
from iwae.training.loop import Best
from iwae.training.steps import TrainState
from iwae.wording import first_error_line


class Checkpoint(NamedTuple):
    """The state that a run needs to resume."""

    state: TrainState
    best: Best
    notes: dict[str, Any]  # JSON: position in the schedule, wall time, names of parts


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint to a file named by its step, whole or not at all."""
    path = folder / f"{int(np.asarray(checkpoint.state.step).max()):010d}{CHECKPOINT}"
    if path.exists():
        return path  # the same step of the same run has the same contents
    named = to_named_arrays((checkpoint.state, checkpoint.best))
    notes = json.dumps(checkpoint.notes, sort_keys=True)
    with atomic_write(path) as temporary:
        write_arrays(
            named, temporary, {"notes": notes, "sha256": digest_named_arrays(named, notes)}
        )
    return path


def load_checkpoint(path: Path, like: tuple[TrainState, Best]) -> Checkpoint:
    """Read a checkpoint of a run whose state is shaped like `like`.

    Raises:
        UserError: if it is damaged (unreadable or changed) or belongs to another model.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            notes, expected = (file.metadata()[name] for name in ("notes", "sha256"))
    except UNREADABLE as error:
        raise DamagedCheckpointError(
            f"checkpoint {path} cannot be read: {first_error_line(error)}"
        ) from error
    if digest_named_arrays(named, notes) != expected:
        raise DamagedCheckpointError(f"checkpoint {path} is damaged: its checksum does not match")
    state, best = from_named_arrays(named, like, path)
    return Checkpoint(state, best, json.loads(notes))


class DamagedCheckpointError(UserError):
    """A checkpoint whose file differs from what was written."""


CHECKPOINT = ".safetensors"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first.

    Raises:
        UserError: if all are from version 0.1, which wrote them in another format.
    """
    found = [path for path in sorted(folder.glob("[0-9]*")) if path.stem.isdigit()]
    files = [path for path in found if path.suffix == CHECKPOINT]
    if found and not files:
        raise UserError(
            f"{folder} holds checkpoints of iwae 0.1 (Orbax): resume the run with that version; "
            "its finished models also work with this one"
        )
    return files


def prune_checkpoints(folder: Path, keep_steps: set[int], keep_last: int = 2) -> None:
    """Remove all checkpoints but the newest ones and those at `keep_steps`."""
    for path in list_checkpoints(folder)[:-keep_last]:
        if int(path.stem) not in keep_steps:
            path.unlink()

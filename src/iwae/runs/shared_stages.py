"""First stages that runs share, so that they are trained only once."""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.config.experiment import TrainConfig
from iwae.errors import UserError
from iwae.runs.checkpoints import CHECKPOINT, Checkpoint, DamagedCheckpointError, load_checkpoint
from iwae.runs.folder import folder_config
from iwae.runs.jobs import Job, blank_job_state
from iwae.runs.metrics import copy_metrics

log = logging.getLogger("iwae")

_ELSEWHERE = {"dataset", "log_every"}
"""Settings that may differ: the data are compared by identity, and logging trains nothing."""


class Beginning(NamedTuple):
    """First stages that another run has trained.

    Attributes:
        run: the folder of that run.
        stages: the number of them.
        checkpoint: at the end of the last one.
    """

    run: Path
    stages: int
    checkpoint: Checkpoint

    @property
    def step(self) -> int:
        """The number of steps of these stages."""
        return int(np.asarray(self.checkpoint.state.step).max())


def shared_stages(one: TrainConfig, other: TrainConfig) -> int:
    """The number of stages after which two runs on the same data have the same state.

    Args:
        one, other: resolved configurations, as runs store them.
    """
    count = 0
    for epochs, others in zip(one.stage_epochs(), other.stage_epochs(), strict=False):
        if epochs != others or _trains(one, count, epochs) != _trains(other, count, epochs):
            break
        count += 1
    return count


def _trains(config: TrainConfig, i: int, epochs: int) -> dict[str, Any]:
    """All settings that the result of a stage depends on."""
    fresh = config.stages[i].fresh if config.stages is not None else None
    return {**config.stage(i, epochs).model_dump(exclude=_ELSEWHERE), "fresh": fresh}


def shared_beginning(job: Job, runs: Iterable[Path], identity: Any) -> Beginning | None:
    """The longest beginning for which one of some runs has a checkpoint.

    Args:
        runs: folders.
        identity: of the job's data, as in the notes of a checkpoint.
    """
    found = [(shared_stages(job.config, folder_config(run)), run) for run in runs]
    for stages, run in sorted(found, reverse=True):
        step = 0
        if stages:
            step = job.stage_ends[stages - 1] if job.config.stages else job.stage_ends[-1]
        path = run / "checkpoints" / f"{step:010d}{CHECKPOINT}"
        if not step or not path.is_file():
            continue
        try:
            checkpoint = load_checkpoint(path, blank_job_state(job, step))
        except DamagedCheckpointError as error:
            log.warning("%s; no stage of its run is reused", error)
            continue
        if checkpoint.notes["dataset"] == identity:
            return Beginning(run, stages, checkpoint)
    return None


def copy_shared_log(beginning: Beginning, run: Path) -> None:
    """Copy the metrics and frames of a beginning into the folder of a run."""
    rows = copy_metrics(beginning.run, run, beginning.step)
    last = max((row["epoch"] for row in rows), default=0)
    (run / "frames").mkdir(exist_ok=True)
    for frame in sorted((beginning.run / "frames").glob("[0-9]*.npz")):
        if int(frame.stem) <= last:
            shutil.copyfile(frame, run / "frames" / frame.name)


def shared_stage_candidates(folder: Path, but: Path) -> list[Path]:
    """The runs below a folder, except one, that have checkpoints and a readable configuration."""
    found = []
    for path in sorted(folder.rglob("checkpoints")):
        run = path.parent
        if run == but or not (run / "config.toml").is_file():
            continue
        try:
            folder_config(run)
        except UserError as error:
            log.warning("%s; no stage of its run is reused", error)
            continue
        found.append(run)
    return found

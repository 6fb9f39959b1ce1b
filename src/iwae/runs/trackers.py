"""Experiment trackers: the scalars of a run, sent during training.

A tracker is a function (run's folder, configuration, id or None) -> `Tracked`. The id is the
tracker's name for a run that it already knows. RUN/trackers/NAME.jsonl keeps the id and the steps
that were sent, so that a resumed run has the same id, and nothing is sent twice.
"""

import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, final

from iwae.config.experiment import TrainConfig, config_without_folders
from iwae.config.toml import config_toml_values
from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.wording import first_error_line

log = logging.getLogger("iwae")

FOLDER = "trackers"
"""Folder in a run's folder for ids and steps, and for the files of an offline tracker."""

Scalars = Mapping[str, float]


class Tracked(NamedTuple):
    """A run as known to a tracker.

    Attributes:
        id: the tracker's name for it.
        write: takes a step and its scalars, by name.
        close: takes whether training finished.
    """

    id: str
    write: Callable[[int, Scalars], None]
    close: Callable[[bool], None]


Tracker = Callable[[Path, TrainConfig, str | None], Tracked]


@contextmanager
def tracking(
    trackers: Mapping[str, Tracker], run: Path, config: TrainConfig
) -> Iterator[Callable[[int, Scalars], None]]:
    """A function (step, scalars) that sends each tracker what it has not received yet.

    Training continues without a tracker that fails, after one warning.

    Args:
        trackers: by name.
        run: the run's folder.

    Raises:
        UserError: if a tracker cannot be used at the start.
    """
    with ExitStack() as stack:
        connections = []
        for name, tracker in trackers.items():
            connections.append(_Connection(name, tracker, run, config))
            stack.push(connections[-1].close)

        def write(step: int, scalars: Scalars) -> None:
            for connection in connections:
                connection.write(step, scalars)

        yield write


@final
class _Connection:
    """A tracker, the last step sent to it, and whether it has failed."""

    def __init__(self, name: str, tracker: Tracker, run: Path, config: TrainConfig):
        self.name, self.run, self.lost = name, run, False
        self.notes = run / FOLDER / f"{name}.jsonl"
        known, self.sent = _read_notes(self.notes)
        self.tracked = _open(name, tracker, run, config, known)
        self.sent = self.sent if self.tracked.id == known else -1
        with atomic_write(self.notes) as path:
            path.write_text(json.dumps({"id": self.tracked.id, "step": self.sent}) + "\n")

    def write(self, step: int, scalars: Scalars) -> None:
        """Send the scalars of a step, unless they were sent before."""
        if self.lost or step <= self.sent:
            return
        self._attempt(self.tracked.write, step, scalars)
        if not self.lost:
            self.sent = step
            with self.notes.open("a") as file:
                file.write(json.dumps({"step": step}) + "\n")

    def close(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the tracker; training has finished if there is no exception."""
        self._attempt(self.tracked.close, kind is None)

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call a tracker; log its first error, of any kind, so that training continues."""
        try:
            call(*arguments)
        except Exception as error:
            if not self.lost:
                log.warning(
                    "%s failed and receives no more of this run: %s; training continues, and "
                    "`iwae train --resume %s --track %s` sends the rest",
                    *(self.name, first_error_line(error), self.run, self.name),
                )
            self.lost = True


def _open(
    name: str, tracker: Tracker, run: Path, config: TrainConfig, known: str | None
) -> Tracked:
    try:
        return tracker(run, config, known)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} cannot be used: {first_error_line(error)}; leave out --track {name} to train "
            "without it"
        ) from error


def _read_notes(path: Path) -> tuple[str | None, int]:
    """The id given by a tracker and the last step sent to it; None and -1 without them."""
    known, sent = None, -1
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            name, step = row.get("id", known), row.get("step", -1)
        except (ValueError, AttributeError, RecursionError):
            continue  # a kill may truncate the last line
        if type(step) is int and isinstance(name, str | None):
            known, sent = name, max(sent, step)
    return known, sent


def _extra(name: str) -> Any:
    """The module of an extra; UserError with the command to install it if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"--track {name} needs {name}: pip install 'iwae[{name}]'") from error


# --- the named trackers ----------------------------------------------------------


def wandb(run: Path, config: TrainConfig, known: str | None) -> Tracked:
    """Weights & Biases: the project WANDB_PROJECT, or `iwae`; offline if WANDB_MODE says so."""
    module = _extra("wandb")
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    tracked = module.init(
        project=os.environ.get("WANDB_PROJECT", "iwae"),
        name=run.resolve().name,
        id=known,
        resume="allow",
        dir=str(folder),
        config=config_toml_values(config_without_folders(config)),
        settings=module.Settings(console="off"),
    )

    def write(step: int, scalars: Scalars) -> None:
        tracked.log(dict(scalars), step=step)

    return Tracked(tracked.id, write, lambda ended: tracked.finish(exit_code=0 if ended else 1))


MLFLOW_BATCH, MLFLOW_TEXT = 1000, 500
"""Maximum metrics in one call of MLflow, and characters of a parameter in all its versions."""


def mlflow(run: Path, config: TrainConfig, known: str | None) -> Tracked:
    """MLflow: the store MLFLOW_TRACKING_URI, the experiment MLFLOW_EXPERIMENT_NAME or `iwae`."""
    client, entities = _extra("mlflow").MlflowClient(), _extra("mlflow.entities")
    run_id = known or _new_mlflow_run(client, entities, run, config)
    if known:
        client.update_run(known, status="RUNNING")

    def write(step: int, scalars: Scalars) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [entities.Metric(name, value, now, step) for name, value in scalars.items()]
        for first in range(0, len(metrics), MLFLOW_BATCH):
            client.log_batch(run_id, metrics=metrics[first : first + MLFLOW_BATCH])

    def close(ended: bool) -> None:
        client.set_terminated(run_id, status="FINISHED" if ended else "KILLED")

    return Tracked(run_id, write, close)


def _new_mlflow_run(client: Any, entities: Any, run: Path, config: TrainConfig) -> str:
    """The id of a new run with the configuration as its parameters."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "iwae")
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    run_id = client.create_run(experiment, run_name=run.resolve().name).info.run_id
    values = config_toml_values(config_without_folders(config))
    parameters = [entities.Param(key, str(value)[:MLFLOW_TEXT]) for key, value in values.items()]
    client.log_batch(run_id, params=parameters)
    return run_id


TRACKERS: dict[str, Tracker] = {"wandb": wandb, "mlflow": mlflow}
"""The trackers that `--track` accepts."""

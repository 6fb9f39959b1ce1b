"""Experiment trackers: the scalars of a run, sent on while it is trained.

A tracker is a function (run's folder, configuration, id or None) -> `Tracked`. The id is what the
tracker calls this run, if it knows it already. RUN/trackers/NAME.jsonl keeps the id and the steps
that were sent, so that a run that goes on is the same run there, and nothing is sent twice.
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

from iwae.config.experiment import TrainConfig, config_values, without_folders
from iwae.errors import UserError
from iwae.files import atomic_write

log = logging.getLogger("iwae")

FOLDER = "trackers"
"""Where in the folder of a run the ids and steps are, and what an offline tracker writes."""

Scalars = Mapping[str, float]


class Tracked(NamedTuple):
    """A run as a tracker has it.

    Attributes:
        id: what it is called there.
        write: takes a step and its scalars, by name.
        close: takes whether training came to its end.
    """

    id: str
    write: Callable[[int, Scalars], None]
    close: Callable[[bool], None]


Tracker = Callable[[Path, TrainConfig, str | None], Tracked]


@contextmanager
def tracking(
    trackers: Mapping[str, Tracker], run: Path, config: TrainConfig
) -> Iterator[Callable[[int, Scalars], None]]:
    """A function (step, scalars) that sends to every tracker what it has not been sent before.

    A tracker that fails on the way is left alone from then on, with one warning: training goes on.

    Args:
        trackers: by name.
        run: the folder.

    Raises:
        UserError: if a tracker cannot be used from the start.
    """
    with ExitStack() as stack:
        lines = []
        for name, tracker in trackers.items():
            lines.append(_Line(name, tracker, run, config))
            stack.push(lines[-1].close)

        def write(step: int, scalars: Scalars) -> None:
            for line in lines:
                line.write(step, scalars)

        yield write


@final
class _Line:
    """What goes to one tracker: what it has been sent, and whether it still takes any."""

    def __init__(self, name: str, tracker: Tracker, run: Path, config: TrainConfig):
        self.name, self.run, self.lost = name, run, False
        self.notes = run / FOLDER / f"{name}.jsonl"
        known, self.sent = _read_notes(self.notes)
        self.tracked = _open(name, tracker, run, config, known)
        self.sent = self.sent if self.tracked.id == known else -1
        with atomic_write(self.notes) as path:
            path.write_text(json.dumps({"id": self.tracked.id, "step": self.sent}) + "\n")

    def write(self, step: int, scalars: Scalars) -> None:
        """Send what was not sent before."""
        if self.lost or step <= self.sent:
            return
        self._attempt(self.tracked.write, step, scalars)
        if not self.lost:
            self.sent = step
            with self.notes.open("a") as file:
                file.write(json.dumps({"step": step}) + "\n")

    def close(self, kind: type[BaseException] | None, *_: object) -> None:
        """Say whether training came to its end, which it does without an exception."""
        self._attempt(self.tracked.close, kind is None)

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call a tracker; at its first error, whatever it is, say so: training is worth more."""
        try:
            call(*arguments)
        except Exception as error:
            if not self.lost:
                log.warning(
                    "%s failed and gets no more of this run: %s; training goes on, and "
                    "`iwae train --resume %s --track %s` sends the rest",
                    *(self.name, _reason(error), self.run, self.name),
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
            f"{name} cannot be used: {_reason(error)}; leave --track {name} out to train without it"
        ) from error


def _reason(error: Exception) -> str:
    """What a library says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def _read_notes(path: Path) -> tuple[str | None, int]:
    """The id that a tracker gave, and the last step that it was sent; None and -1 without them."""
    known, sent = None, -1
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            known, sent = row.get("id", known), max(sent, row.get("step", -1))
        except (ValueError, TypeError, AttributeError):
            continue  # a kill may cut the last line off
    return known, sent


def _extra(name: str) -> Any:
    """The module of an extra, or UserError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"--track {name} needs {name}: pip install 'iwae[{name}]'") from error


# --- the trackers that have a name ----------------------------------------------------------


def wandb(run: Path, config: TrainConfig, known: str | None) -> Tracked:
    """Weights & Biases: the project of WANDB_PROJECT, or `iwae`; offline if WANDB_MODE says so."""
    module = _extra("wandb")
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    there = module.init(
        project=os.environ.get("WANDB_PROJECT", "iwae"),
        name=run.resolve().name,
        id=known,
        resume="allow",
        dir=str(folder),
        config=config_values(without_folders(config)),
        settings=module.Settings(console="off"),
    )

    def write(step: int, scalars: Scalars) -> None:
        there.log(dict(scalars), step=step)

    return Tracked(there.id, write, lambda ended: there.finish(exit_code=0 if ended else 1))


MLFLOW_BATCH, MLFLOW_TEXT = 1000, 500
"""The most metrics in a call of MLflow, and the most characters of a parameter in all versions."""


def mlflow(run: Path, config: TrainConfig, known: str | None) -> Tracked:
    """MLflow: the store MLFLOW_TRACKING_URI, the experiment MLFLOW_EXPERIMENT_NAME or `iwae`."""
    client, entities = _extra("mlflow").MlflowClient(), _extra("mlflow.entities")
    there = known or _new_mlflow_run(client, entities, run, config)
    if known:
        client.update_run(known, status="RUNNING")

    def write(step: int, scalars: Scalars) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [entities.Metric(name, value, now, step) for name, value in scalars.items()]
        for first in range(0, len(metrics), MLFLOW_BATCH):
            client.log_batch(there, metrics=metrics[first : first + MLFLOW_BATCH])

    def close(ended: bool) -> None:
        client.set_terminated(there, status="FINISHED" if ended else "KILLED")

    return Tracked(there, write, close)


def _new_mlflow_run(client: Any, entities: Any, run: Path, config: TrainConfig) -> str:
    """The id of a new run with the configuration as its parameters."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "iwae")
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    there = client.create_run(experiment, run_name=run.resolve().name).info.run_id
    values = config_values(without_folders(config))
    parameters = [entities.Param(key, str(value)[:MLFLOW_TEXT]) for key, value in values.items()]
    client.log_batch(there, params=parameters)
    return there


TRACKERS: dict[str, Tracker] = {"wandb": wandb, "mlflow": mlflow}
"""What `--track` can name."""

"""Logging of a run during training: metrics per epoch, and pictures at some epochs."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from iwae.evaluation.elbo_terms import elbo_terms
from iwae.evaluation.examples import gather_examples, map_examples
from iwae.evaluation.units import active_units
from iwae.files import atomic_write, refuse_folder_as_file
from iwae.models.conditional import Model
from iwae.runs.jobs import Job
from iwae.runs.split_examples import split_examples
from iwae.training.loop import Report
from iwae.training.replicates import replicate_model, weights_of_replicates
from iwae.training.steps import TrainState

log = logging.getLogger("iwae")

FRAMES = 16
"""Pictures of the model during training, at logarithmically spaced epochs."""

MONITORED = 1000
"""Examples on which reconstruction, KL and active units are logged."""

LAST = 0.1
"""Share of the epochs over which `late_metrics_rise` looks."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The logged epochs of a run, oldest first; truncated or damaged lines are skipped."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    refuse_folder_as_file(path)
    lines = path.read_bytes().split(b"\n")[:-1]  # a kill may truncate the last one
    rows = [_metrics_row(line) for line in lines]
    if None in rows:
        log.warning("%s: line %d is damaged and skipped", path, rows.index(None) + 1)
    return [row for row in rows if row is not None]


def copy_metrics(source: Path, run: Path, step: int) -> list[dict[str, Any]]:
    """Write the logged epochs of a run up to a step to a run's folder, and return them."""
    rows = [row for row in read_metrics(source) if row["step"] <= step]
    with atomic_write(run / "metrics.jsonl") as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _metrics_row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, or None if it is damaged."""
    try:
        row = json.loads(line)
        whole = all(type(row[name]) is int and row[name] >= 0 for name in ("epoch", "step"))
        lists = [row["train_bound"], *(row[name] for name in row.keys() - SINGLE)]
        each = [one for value in lists for one in _entries(value)]
        numbers = [row["learning_rate"], *(one for one in each if one is not None)]
        fine = all(type(one) in (int, float) and math.isfinite(one) for one in numbers)
        return row if whole and fine else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def _entries(values: Any) -> Iterator[Any]:
    """The numbers of a list with an entry per replicate, or a list of one per layer."""
    if not isinstance(values, list):
        raise TypeError(f"{type(values)} in place of a list")
    for value in values:
        yield from value if isinstance(value, list) else (value,)


SINGLE = ("epoch", "step", "stage", "learning_rate")
"""Entries of a line of metrics that are not lists of a value for each replicate."""


def late_metrics_rise(epochs: int, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Nats by which the last tenth of all epochs raised the best validation bound.

    Args:
        epochs: maximum epochs of the run.
        rows: lines of metrics, as `read_metrics` returns them.

    Returns:
        None if training stopped earlier, or without validations to compare.
    """
    bounds = {row["epoch"]: np.mean(row["validation_bound"]) for row in rows if _validated(row)}
    first = epochs - max(1, round(LAST * epochs))
    late = [bound for epoch, bound in bounds.items() if epoch > first]
    early = [bound for epoch, bound in bounds.items() if epoch <= first]
    if not (late and early) or rows[-1]["epoch"] < epochs:
        return None
    return float(max(late) - max(early))


def _validated(row: Mapping[str, Any]) -> bool:
    """Whether a line of metrics has a validation of every replicate."""
    return None not in row.get("validation_bound", (None,))


class Book(NamedTuple):
    """Settings for logging the epochs of a run.

    Attributes:
        job: the training job.
        folder: the run's folder.
        frame_epochs: epochs after which pictures are taken.
        monitored: examples on which the model is monitored, in its units.
    """

    job: Job
    folder: Path
    frame_epochs: set[int]
    monitored: np.ndarray


def open_metrics(job: Job, folder: Path) -> Book:
    """The book of a run, which monitors held-out examples or, without any, training examples."""
    split = "validation" if len(job.dataset.validation) else "train"
    epochs = np.unique(np.round(np.geomspace(1, job.config.epochs, FRAMES)))
    monitored = np.asarray(split_examples(job.dataset, split, MONITORED))
    return Book(job, folder, set(map(int, epochs)), monitored)


def monitored_metrics(model: Model, examples: np.ndarray, key: Array) -> dict[str, Any]:
    """Reconstruction (nats), and KL (nats) and active units per layer, of one replicate."""
    slabs = map_examples(elbo_terms(1), model, examples, key, batch_size=100, slab_size=MONITORED)
    terms = gather_examples(slabs)
    units = active_units(model, examples, key)
    return {
        "reconstruction": float(terms["reconstruction"].mean()),
        "kl": terms["kl"].mean(axis=0).tolist(),
        "active_units": list(units.counts),
    }


def log_metrics(book: Book, state: TrainState, report: Report) -> dict[str, float]:
    """Write a line of metrics and, at some epochs, a frame; return the line as named scalars."""
    job = book.job
    row: dict[str, Any] = {
        "epoch": report.epoch,
        "step": report.step,
        **({"stage": report.stage} if job.config.stages else {}),
        "learning_rate": job.learning_rate(report.step),
        "train_bound": report.bound.tolist(),
        **{f"train_{name}": values.tolist() for name, values in report.metrics.items()},
    }
    if report.validation is not None:
        row["validation_bound"] = report.validation.tolist()
    if report.epoch % (job.config.log_every or 1) == 0 or report.epoch == job.config.epochs:
        key = jax.random.key(0)
        params = jax.device_get(weights_of_replicates(state))
        models = [replicate_model(job.models[0], params, r) for r in range(job.config.replicates)]
        monitored = [monitored_metrics(model, book.monitored, key) for model in models]
        row |= {name: [values[name] for values in monitored] for name in monitored[0]}
    row = _finite(row)
    with (book.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")
    if report.epoch in book.frame_epochs:
        save_metrics_frame(book, state, report.epoch)
    return dict(scalars(row))


def _finite(row: Any) -> Any:
    """Replace nan and infinity, which JSON lacks, with None; a stopped replicate has no bound."""
    if isinstance(row, dict):
        return {name: _finite(value) for name, value in row.items()}
    if isinstance(row, list):
        return [_finite(value) for value in row]
    return row if np.isfinite(row) else None


def scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics, by names with replicate and layer."""
    yield "learning_rate", row["learning_rate"]
    for name in (name for name in row if name not in SINGLE):
        for replicate, value in enumerate(row[name]):
            layers = value if isinstance(value, list) else [value]
            for layer, number in enumerate(layers, start=1):
                suffix = f"/layer_{layer}" if isinstance(value, list) else ""
                if number is not None:
                    yield f"{name}/replicate_{replicate}{suffix}", float(number)


@contextmanager
def tensorboard_metrics(
    folder: Path, step: int
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function (step, scalars) that writes a TensorBoard file for the steps after `step`.

    The library's own SummaryWriter writes in a thread, which dies on a full disk; training would
    then wait for ever.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import scalar

    (folder / "tensorboard").mkdir(exist_ok=True)
    # With the step, file names differ even if the clock was set back.
    writer = EventsWriter(str(folder / "tensorboard" / "events"), f".{step}")

    def write(step: int, scalars: Mapping[str, float]) -> None:
        values = [scalar(tag, value).value[0] for tag, value in scalars.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        writer.write_event(event)
        writer.flush()

    with closing(writer):
        # So that viewers hide what an earlier process wrote after this step.
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
        yield write


def save_metrics_frame(book: Book, state: TrainState, epoch: int) -> None:
    """Save the first replicate's means for fixed prior draws and fixed test examples."""
    model = replicate_model(book.job.models[0], jax.device_get(weights_of_replicates(state)), 0)
    test = book.job.dataset.examples("test")
    examples = test[:: max(1, len(test) // 16)][:16]
    samples, reconstructions = _frame_means(model, jax.device_put(np.float32(examples)))
    with atomic_write(book.folder / "frames" / f"{epoch:06d}.npz") as path:
        np.savez(path, samples=samples, reconstructions=reconstructions, examples=examples)


@eqx.filter_jit
def _frame_means(model: Model, examples: Array) -> tuple[Array, Array]:
    """Means of p(x|z) for 16 fixed prior draws, and for a draw from q(z|x) of each example."""
    draws, encodings = jax.random.split(jax.random.key(0))

    def reconstruct(x: Array, key: Array) -> Array:
        given, x = model.condition(x)
        return given.decode(given.posterior(x).sample(key)).mean

    def make(key: Array) -> Array:
        z, x = model.sample(key)
        return model.condition(x)[0].decode(z).mean

    keys = jax.random.split(encodings, len(examples))
    return jax.vmap(make)(jax.random.split(draws, 16)), jax.vmap(reconstruct)(examples, keys)

"""The number of epochs by cross-validation, for data of few rows.

A tenth of a small table is a dozen rows, and the epoch that suits these best is a lucky one. With
folds, every training row is held out once, and the epoch is that of the best bound over all of
them. The model is then trained on all rows for that number of epochs.
"""

import json
import math
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from iwae.data import Dataset, sampling
from iwae.data.dataset import test_sha256
from iwae.data.rows import Examples
from iwae.errors import UserError
from iwae.files import atomic_folder
from iwae.models.conditional import Model
from iwae.runs.configured_stages import configured_stages
from iwae.runs.folder import FOLDS
from iwae.runs.initial_models import make_initial_models
from iwae.runs.jobs import Job, initial_job_state
from iwae.runs.model_files import load_model, save_model
from iwae.runs.stopping import Stopped, stop_signals
from iwae.training.loop import Plan, training_loop
from iwae.training.replicates import replicate_model, weights_of_replicates

FACTS = "folds.json"


class Folds(NamedTuple):
    """The result of cross-validation.

    Attributes:
        epochs: the number of epochs with the best bound.
        bounds: `[E]`, the mean bound of all rows, each by the model that has not seen it, after
            each epoch, nats.
        fold_of: `[n]`, the fold of each training row.
        models: the model of each fold after `epochs` epochs.
    """

    epochs: int
    bounds: Float[np.ndarray, " E"]
    fold_of: Int[np.ndarray, " n"]
    models: list[Model]


def cross_validate(job: Job) -> Folds:
    """Train a model without each fold, side by side, and find the epoch with the best mean bound.

    Epochs within a warm-up do not count. Training ends with the patience of the run. The bounds are
    means over its replicates; the models are those of the first.
    """
    rows, number = job.dataset.examples("train"), int(job.config.folds or 0)
    order = sampling.sampling_order(len(rows), seed=job.config.data_seed, stream=sampling.FOLDS)
    fold_of = np.empty(len(rows), int)
    fold_of[order] = np.arange(len(rows)) % number
    shares = np.bincount(fold_of) / len(rows)
    # With fewer epochs, training on all rows would end during its warm-up.
    first = max(1, job.config.kl_warmup, math.ceil(job.config.lr_warmup))
    bounds: list[float] = []
    epochs, best, kept = 0, -np.inf, []
    with ExitStack() as stack:
        signals = stack.enter_context(stop_signals())  # an exit in mid-step can crash XLA
        folds = [
            _train_fold(_without(job, fold_of == i), rows[fold_of == i]) for i in range(number)
        ]
        for fold in folds:
            stack.enter_context(closing(fold))
        for epoch, each in enumerate(zip(*folds, strict=True), start=1):
            if signals:
                raise Stopped(signals[0])
            bounds.append(float(shares @ [bound for _, bound in each]))
            if epoch < first:
                continue
            if bounds[-1] > best + job.plan.threshold:
                epochs, best, kept = epoch, bounds[-1], [params for params, _ in each]
            elif job.plan.patience is not None and epoch - epochs >= job.plan.patience:
                break
    models = [replicate_model(job.models[0], params, 0) for params in kept]
    return Folds(epochs, np.array(bounds), fold_of, models)


def _without(job: Job, held_out: Bool[np.ndarray, " n"]) -> Job:
    """The job of training without some rows, which are not among the first pseudo-inputs either.

    Columns are standardised by all rows, so that bounds have the same units, and every column with
    a value has a mean.
    """
    data, seen = job.dataset, ~held_out
    labels = data.given_labels and data.given_labels._replace(train=data.labels.train[seen])
    fewer = replace(data, train=data.train[seen], given_labels=labels)
    size = min(job.stages[0].settings.batch_size, len(fewer.train))
    config = job.config.model_copy(update={"batch_size": size})
    stages, ends = configured_stages(config, fewer)
    models = make_initial_models(config, data, fewer)
    return replace(job, config=config, dataset=fewer, models=models, stages=stages, stage_ends=ends)


def _train_fold(job: Job, held_out: Examples) -> Generator[tuple[PyTree, float]]:
    """The weights after each epoch of training, and the mean bound of the held-out rows, nats."""
    (stage,) = job.stages
    for state, _, report in training_loop(
        *initial_job_state(job),
        job.dataset.examples("train"),
        stage.schedule,
        job.models[0],
        stage.settings,
        Plan(job.plan.epochs),
        held_out,
    ):
        if report.validation is not None:
            yield weights_of_replicates(state), float(report.validation.mean())


def without_folds(job: Job, epochs: int) -> Job:
    """A job that trains on all rows for the chosen number of epochs."""
    chosen = {"epochs": epochs, "folds": None, "patience": None, "threshold": 0.0}
    config = job.config.model_copy(update=chosen)
    stages, ends = configured_stages(config, job.dataset)
    return replace(job, config=config, stages=stages, stage_ends=ends, plan=Plan(epochs))


def save_folds(folds: Folds, job: Job, run: Path, **about: Any) -> None:
    """Write the folds of a run, whole or not at all."""
    facts = {
        "epochs": folds.epochs,
        "bounds": folds.bounds.tolist(),
        "fold_of": folds.fold_of.tolist(),
        "train_sha256": test_sha256(job.dataset.train),
    }
    with atomic_folder(run / FOLDS) as folder:
        for i, model in enumerate(folds.models):
            save_model(model, folder / str(i), **about, fold=i, epoch=folds.epochs)
        (folder / FACTS).write_text(json.dumps(facts) + "\n")


def has_folds(run: Path) -> bool:
    """Whether a run chose its epochs by cross-validation."""
    return (run / FOLDS / FACTS).is_file()


def load_folds(run: Path, dataset: Dataset) -> Folds:
    """The folds of a run.

    Raises:
        UserError: if they cannot be read, or the data are not those of the run.
    """
    path = run / FOLDS / FACTS
    try:
        facts = json.loads(path.read_text())
        fold_of = np.array(facts["fold_of"], int)
        same = facts["train_sha256"] == test_sha256(dataset.train)
        found = int(facts["epochs"]), np.array(facts["bounds"], float)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): train again") from None
    if not same:
        raise UserError(f"the data of {run} have changed since it was trained")
    models = [load_model(run / FOLDS / str(i)) for i in range(int(fold_of.max()) + 1)]
    return Folds(*found, fold_of, models)

"""The subject of a measurement, a run's models and examples, and its facts in every record."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from iwae.config.experiment import TrainConfig, config_without_folders
from iwae.config.toml import config_toml_values
from iwae.data import Dataset, test_sha256
from iwae.data.rows import Examples, Rows, row_subset
from iwae.errors import UserError
from iwae.evaluation.pruning import prune
from iwae.evaluation.units import active_units, authors_active_units
from iwae.models.conditional import Model
from iwae.results.provenance import record_provenance
from iwae.results.schema import Document
from iwae.results.subsets import subset_facts, subset_places
from iwae.runs.folder import folder_config
from iwae.runs.jobs import load_job_dataset
from iwae.runs.measurement_progress import no_progress
from iwae.runs.model_files import read_model_facts
from iwae.runs.split_examples import split_examples
from iwae.runs.trained import (
    trained_model_digests,
    trained_model_folder,
    trained_model_for,
    trained_model_sha256,
)

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]

SPLITS = ("train", "validation", "test")

SIMULATED = "simulated"
"""The split of examples drawn from a model."""

AUTHORS_EXAMPLES = 500
"""First training examples on which the paper's published code counts active units."""


class Subject(NamedTuple):
    """The models and examples to measure.

    Attributes:
        run: the run's folder.
        config: its configuration.
        dataset: its data.
        weights: "final" or "best".
        pruned: without the inactive units.
        split: the split's name.
        data: `[n, d]` examples in the model's units.
        places: `[n]` indices of the examples in the split.
        subset: whether they are only some of the split.
        seed: of all random numbers.
        batch_size: examples at a time on each device; None leaves it to the method.
        track: shows progress.
        stratified_by: the bound that stratifies the subset; None without one.
    """

    run: Path
    config: TrainConfig
    dataset: Dataset
    weights: str
    pruned: bool
    split: str
    data: Examples
    places: np.ndarray
    subset: bool
    seed: int
    batch_size: int | None
    track: Track
    stratified_by: str | None = None

    def models(self) -> Iterator[tuple[int, Any]]:
        """Each replicate's number and model, pruned if requested."""
        for replicate in range(self.config.replicates):
            model = trained_model_for(self.run, self.weights, replicate, self.dataset)
            if self.pruned:
                train = split_examples(self.dataset, "train")
                units = active_units(model, train, jax.random.key(self.seed))
                model = prune(model, units.masks, units.means)
            yield replicate, model

    @property
    def choice(self) -> Document:
        """The facts that identify its subset among those of the run."""
        return subset_facts(
            self.split, len(self.data), self.seed, self.dataset.identity["test_sha256"]
        )

    def settings(self, replicate: int, **more: Any) -> dict[str, Any]:
        """Everything that the numbers of one replicate depend on."""
        return {
            "model": trained_model_sha256(self.run, self.weights, replicate),
            "pruned": self.pruned,
            "examples": test_sha256(np.ascontiguousarray(self.data)),
            "seed": self.seed,
            "version": version("iwae"),
            **more,
        }


def make_subject(
    run: Path,
    *,
    split: str = "test",
    weights: str = "final",
    examples: int | None = None,
    pruned: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    track: Track = no_progress,
) -> Subject:
    """The models and examples to measure.

    Args:
        examples: a seeded random subset of the split instead of all of it.

    Raises:
        UserError: if the run, its data or the split are missing, or the split is too small.
    """
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; it must be between 0 and {2**31 - 1}")
    config = folder_config(run)
    dataset = load_job_dataset(config, data_dir)
    _check_data(run, config, weights, dataset)
    total = check_subject_split(dataset, split, examples)
    places, by = np.arange(total), None
    if examples is not None:
        wanted = subset_facts(split, examples, seed, dataset.identity["test_sha256"])
        digests = trained_model_digests(run, weights, config.replicates)
        places, by = subset_places(
            run, total, wanted, weights=weights, pruned=pruned, digests=digests
        )
    chosen = split, subject_examples(dataset, split, places), places, examples is not None, seed
    return Subject(run, config, dataset, weights, pruned, *chosen, batch_size, track, by)


def _check_data(run: Path, config: TrainConfig, weights: str, dataset: Dataset) -> None:
    """Raise UserError if the data are not those of the models, or records cannot be written."""
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to, and the record would go there")
    identity = json.loads(json.dumps(dataset.identity))
    for replicate in range(config.replicates):
        model = trained_model_folder(run, weights, replicate)
        if model.is_dir() and read_model_facts(model).get("dataset", identity) != identity:
            raise UserError(
                f"the data found now as {dataset.name} are not those that {run} was trained with: "
                "their files or their splits differ; restore them, or train on them as they are"
            )


def subject_examples(dataset: Dataset, split: str, places: np.ndarray) -> Examples:
    """The examples of a split at some indices, in the model's units."""
    examples = split_examples(dataset, split)
    return row_subset(examples, places) if isinstance(examples, Rows) else examples[places]


def check_subject_split(dataset: Dataset, split: str, count: int | None) -> int:
    """The number of examples of a split; UserError for a subset of more than these."""
    if split not in SPLITS:
        raise UserError(f"no split {split!r}; known: {', '.join(SPLITS)}")
    total = len(getattr(dataset, split))
    if total == 0:
        raise UserError(f"the {split} split of {dataset.name} is empty")
    if count is not None and not 1 <= count <= total:
        raise UserError(f"examples is {count}; the {split} split has {total}")
    return total


def subject_facts(subject: Subject, method: str) -> Document:
    """The facts about the subject, the method and the machine, for a record."""
    dataset, data, by = subject.dataset, subject.data, subject.stratified_by
    facts = {
        "method": method,
        "split": subject.split,
        "unit": "nats",
        "weights": subject.weights,
        "pruned": subject.pruned,
        "seed": subject.seed,
        **record_provenance(),
    }
    if subject.split == SIMULATED:
        return {"dataset": f"drawn from the model of {dataset.name}", **facts}
    subset = {"examples": len(data), "seed": subject.seed} | ({"stratified_by": by} if by else {})
    density = dataset.log_density
    return {
        "dataset": dataset.name,
        "n": len(data),
        "subset": subset if subject.subset else None,
        "test_sha256": dataset.identity["test_sha256"],
        "examples_sha256": test_sha256(np.ascontiguousarray(data)),
        **facts,
        "true_log_likelihood": density and float(density(np.asarray(data, np.float64)).mean()),
        "data": dataset.identity,
        "config": config_toml_values(config_without_folders(subject.config)),
    }


def subject_unit_counts(subject: Subject, model: Model) -> tuple[Document, tuple[np.ndarray, ...]]:
    """Active units by both definitions, for a record, and the variances that decide them."""
    key = jax.random.key(subject.seed)
    units = active_units(model, subject.data, key)
    first = split_examples(subject.dataset, "train")[:AUTHORS_EXAMPLES]
    authors = authors_active_units(model, first, key)
    counts = {
        "active_units": list(units.counts),
        "active_units_authors": list(authors.counts),
        "threshold": units.threshold,
    }
    return counts, units.variances


def subject_model_facts(subject: Subject, replicate: int) -> Document:
    """The facts that identify a model."""
    about = read_model_facts(trained_model_folder(subject.run, subject.weights, replicate))
    return {
        "replicate": about.get("replicate"),
        "epoch": about.get("epoch"),
        "model_sha256": trained_model_sha256(subject.run, subject.weights, replicate),
    }


def subject_record_name(subject: Subject, *words: str) -> str:
    """The name of a record's files, which distinguishes it from the run's other records."""
    name = "-".join([subject.split, subject.weights, *["pruned"] * subject.pruned, *words])
    name += f"-n{len(subject.data)}" if subject.subset else ""
    return name + ("" if subject.seed == 0 else f"-seed{subject.seed}")

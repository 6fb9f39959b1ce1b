"""The parts that all records share: the subject measured, and summaries of numbers."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from iwae.config.experiment import TrainConfig, config_values, without_folders
from iwae.data import Dataset, test_sha256
from iwae.data.rows import Examples, Rows, subset
from iwae.errors import UserError
from iwae.evaluation import diagnostics
from iwae.evaluation.jackknife import BATCHES
from iwae.evaluation.likelihood import KHAT_WEIGHTS
from iwae.evaluation.pruning import prune
from iwae.evaluation.units import active_units, authors_active_units
from iwae.inference.kernels import KHAT_LEAST
from iwae.models.conditional import Model
from iwae.results.schema import Document, fields_of
from iwae.results.subsets import choice, subset_places
from iwae.runs.folder import run_config
from iwae.runs.models import WEIGHTS, read_about
from iwae.runs.setup import load_config_dataset, split_examples
from iwae.runs.trained import model_folder, run_model

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]

SPLITS = ("train", "validation", "test")

SIMULATED = "simulated"
"""The split of examples drawn from a model."""

AUTHORS_EXAMPLES = 500
"""First training examples on which the paper's published code counts active units."""


def untracked(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:  # noqa: ARG001
    """No progress bar."""
    return items


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
            model = run_model(self.run, self.weights, replicate, self.dataset)
            if self.pruned:
                train = split_examples(self.dataset, "train")
                units = active_units(model, train, jax.random.key(self.seed))
                model = prune(model, units.masks, units.means)
            yield replicate, model

    @property
    def choice(self) -> Document:
        """The facts that identify its subset among those of the run."""
        return choice(self.split, len(self.data), self.seed, self.dataset.identity["test_sha256"])

    def settings(self, replicate: int, **more: Any) -> dict[str, Any]:
        """Everything that the numbers of one replicate depend on."""
        return {
            "model": model_sha256(self.run, self.weights, replicate),
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
    track: Track = untracked,
) -> Subject:
    """The models and examples to measure.

    Args:
        examples: a seeded random subset of the split instead of all of it.

    Raises:
        UserError: if the run, its data or the split are missing, or the split is too small.
    """
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; it must be between 0 and {2**31 - 1}")
    config = run_config(run)
    dataset = load_config_dataset(config, data_dir)
    _check_data(run, config, weights, dataset)
    total = check_subset(dataset, split, examples)
    places, by = np.arange(total), None
    if examples is not None:
        wanted = choice(split, examples, seed, dataset.identity["test_sha256"])
        digests = known_digests(run, weights, config.replicates)
        places, by = subset_places(
            run, total, wanted, weights=weights, pruned=pruned, digests=digests
        )
    chosen = split, examples_at(dataset, split, places), places, examples is not None, seed
    return Subject(run, config, dataset, weights, pruned, *chosen, batch_size, track, by)


def _check_data(run: Path, config: TrainConfig, weights: str, dataset: Dataset) -> None:
    """Raise UserError if the data are not those of the models, or records cannot be written."""
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to, and the record would go there")
    identity = json.loads(json.dumps(dataset.identity))
    for replicate in range(config.replicates):
        model = model_folder(run, weights, replicate)
        if model.is_dir() and read_about(model).get("dataset", identity) != identity:
            raise UserError(
                f"the data found now as {dataset.name} are not those that {run} was trained with: "
                "their files or their splits differ; restore them, or train on them as they are"
            )


def examples_at(dataset: Dataset, split: str, places: np.ndarray) -> Examples:
    """The examples of a split at some indices, in the model's units."""
    examples = split_examples(dataset, split)
    return subset(examples, places) if isinstance(examples, Rows) else examples[places]


def check_subset(dataset: Dataset, split: str, count: int | None) -> int:
    """The number of examples of a split; UserError for a subset of more than these."""
    if split not in SPLITS:
        raise UserError(f"no split {split!r}; known: {', '.join(SPLITS)}")
    total = len(getattr(dataset, split))
    if total == 0:
        raise UserError(f"the {split} split of {dataset.name} is empty")
    if count is not None and not 1 <= count <= total:
        raise UserError(f"examples is {count}; the {split} split has {total}")
    return total


def model_sha256(run: Path, weights: str, replicate: int) -> str:
    """SHA-256 of the file with a model's weights."""
    path = model_folder(run, weights, replicate) / WEIGHTS
    return hashlib.sha256(path.read_bytes()).hexdigest()


def known_digests(run: Path, weights: str, replicates: int) -> list[str] | None:
    """Digests of the present models; None if some are missing."""
    try:
        return [model_sha256(run, weights, replicate) for replicate in range(replicates)]
    except FileNotFoundError:
        return None


def shared_record(subject: Subject, method: str) -> Document:
    """The facts about the subject, the method and the machine, for a record."""
    dataset, data, by = subject.dataset, subject.data, subject.stratified_by
    facts = {
        "method": method,
        "split": subject.split,
        "unit": "nats",
        "weights": subject.weights,
        "pruned": subject.pruned,
        "seed": subject.seed,
        **provenance(),
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
        "config": config_values(without_folders(subject.config)),
    }


def provenance(*packages: str) -> Document:
    """The facts about the machine, the code and further packages, for a record."""
    return {
        "dtype": "float32",
        "device": jax.local_devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "versions": {
            **{name: version(name) for name in ("iwae", "jax", *packages)},
            **_commit(),
        },
    }


@cache
def _commit() -> dict[str, Any]:
    """The commit of a checkout, and whether code or dependencies have changed since."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return {}

    def git(*words: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(root), *words],  # noqa: S607 - git as the shell finds it
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "pyproject.toml", "requirements.txt")
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(changed)}
    except (OSError, subprocess.CalledProcessError):  # no git here, or not our checkout
        return {}


def number(value: float | None) -> float | None:
    """A number for JSON: None if it is not finite."""
    return None if value is None or not np.isfinite(value) else float(value)


def means(**values: np.ndarray) -> Document:
    """Means over examples and their standard errors, as fields by name."""
    found: Document = {}
    for name, each in values.items():
        found |= dict(zip(fields_of(name), mean_and_error(each), strict=True))
    return found


def summary_over_replicates(values: np.ndarray) -> dict[str, float | None]:
    """The summary of values `[R, n]`, and the standard deviation between replicates, nats."""
    total = means(log_likelihood=values.mean(axis=0))
    known = len(values) > 1 and total["log_likelihood"] is not None
    spread = np.std(values.mean(axis=1), ddof=1) if known else np.nan
    return {**total, "between_replicates_sd": number(spread)}


def mean_and_error(values: np.ndarray) -> tuple[float | None, float | None]:
    """A mean and its standard error; None where they are not finite."""
    if not np.isfinite(values).all():
        return None, None
    return float(values.mean()), number(diagnostics.test_sample_error(values))


def weight_summary(values: Mapping[str, np.ndarray], k: int) -> Document:
    """A log-likelihood with its errors, and diagnostics of the k weights of each example."""
    weights, known = min(k, KHAT_WEIGHTS), k >= KHAT_LEAST  # weights that k-hat is fitted to
    share = diagnostics.share_unreliable(values["pareto_k"], weights) if known else None
    infinite = int(np.isinf(values["monte_carlo_error"]).sum())
    return {
        **means(log_likelihood=values["log_likelihood"]),
        "monte_carlo_error": number(diagnostics.monte_carlo_error(values["monte_carlo_error"])),
        "monte_carlo_batches": min(k, BATCHES),
        **({"monte_carlo_infinite": infinite} if infinite else {}),
        "ess_mean": float(values["ess"].mean()),
        "ess_min": float(values["ess"].min()),
        "pareto_k_unreliable": number(share),
        "pareto_k_threshold": diagnostics.pareto_threshold(weights) if known else None,
    }


def unit_counts(subject: Subject, model: Model) -> tuple[Document, tuple[np.ndarray, ...]]:
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


def model_facts(subject: Subject, replicate: int) -> Document:
    """The facts that identify a model."""
    about = read_about(model_folder(subject.run, subject.weights, replicate))
    return {
        "replicate": about.get("replicate"),
        "epoch": about.get("epoch"),
        "model_sha256": model_sha256(subject.run, subject.weights, replicate),
    }


def record_name(subject: Subject, *words: str) -> str:
    """The name of a record's files, which distinguishes it from the run's other records."""
    name = "-".join([subject.split, subject.weights, *["pruned"] * subject.pruned, *words])
    name += f"-n{len(subject.data)}" if subject.subset else ""
    return name + ("" if subject.seed == 0 else f"-seed{subject.seed}")

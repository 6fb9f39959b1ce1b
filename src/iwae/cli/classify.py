"""`iwae classify`."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from iwae.cli import parsing
from iwae.cli.evaluate import print_measured


@dataclasses.dataclass(frozen=True)
class Classify:
    """Measure how well a conditional run tells labels apart, and other data from its own.

    Each example is scored under every label: p(y|x) follows by Bayes' rule. Writes a record and the
    per-example values to RUN/evaluations: accuracy, log p(y|x), log p(x|y), log p(x), and which
    labels were taken for which.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder; it was trained with --conditional."""
    split: Literal["train", "validation", "test"] = "test"
    """What to classify."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    k: int = 100
    """Importance samples for each example and label."""
    against: str | None = None
    """Other data, a name or a file: how often an example is likelier than one of theirs (AUROC)."""
    examples: int | None = None
    """A seeded random subset of so many instead of all, of the other data too."""
    seed: int = 0
    """Seed of the samples and of the subsets."""
    batch_size: int | None = None
    """Examples at a time; changes the speed, not the numbers."""
    data_dir: Path | None = None
    """Where the data files are looked for first; also IWAE_DATA."""
    json: bool = False
    """Print exactly one JSON object on standard output."""
    quiet: bool = False
    """No progress."""


def classify(arguments: Sequence[str]) -> int:
    """`iwae classify`."""
    options = parsing.parse(Classify, "classify", arguments)
    parsing.set_up_jax()
    from iwae.results.classes import classify_run
    from iwae.runs.progress import tracker

    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    as_json, track = chosen.pop("json"), tracker(quiet=chosen.pop("quiet"))
    return print_measured(partial(classify_run, track=track, **chosen), as_json=as_json)

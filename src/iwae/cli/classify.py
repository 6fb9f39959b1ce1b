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
    """Measure how well a conditional run classifies examples and detects other data.

    Each example is scored under every label; p(y|x) follows from Bayes' rule. Writes a record and
    the per-example values to RUN/evaluations: accuracy, log p(y|x), log p(x|y), log p(x), and the
    confusion matrix.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run trained with --conditional."""
    split: Literal["train", "validation", "test"] = "test"
    """Split to classify."""
    weights: Literal["final", "best"] = "final"
    """The final weights, or those with the best validation bound."""
    k: int = 100
    """Importance samples per example and label."""
    against: str | None = None
    """Other data (name or file): how often an example is likelier than one of theirs (AUROC)."""
    examples: int | None = None
    """Use a seeded random subset of this size, of the other data too (default: all)."""
    seed: int = 0
    """Random seed of the importance samples and the subsets."""
    batch_size: int | None = None
    """Examples per batch; affects speed, not results (default: automatic)."""
    data_dir: Path | None = None
    """Folder to search first for data files (default: $IWAE_DATA)."""
    json: bool = False
    """Print exactly one JSON object to standard output."""
    quiet: bool = False
    """Show no progress."""


def classify(arguments: Sequence[str]) -> int:
    """`iwae classify`."""
    options = parsing.parse(Classify, "classify", arguments)
    parsing.set_up_jax()
    from iwae.results.classes import classify_run
    from iwae.runs.progress import tracker

    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    as_json, track = chosen.pop("json"), tracker(quiet=chosen.pop("quiet"))
    return print_measured(partial(classify_run, track=track, **chosen), as_json=as_json)

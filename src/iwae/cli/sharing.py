"""`iwae export` and `push`: a trained model for others."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from iwae.cli import parsing


@dataclasses.dataclass(frozen=True)
class Export:
    """Put a model of a run into a folder for others: weights, card, picture. Nothing of the data.

    The numbers on the card are those that `iwae evaluate` has measured of this model.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    folder: tyro.conf.Positional[Path]
    """The folder to write, which must be new or empty."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    replicate: int = 0
    """Which of the run's models; the first is 0."""
    license: str | None = None
    """Of the model, as the Hugging Face hub names it: mit, cc-by-4.0, ..."""
    overwrite: bool = False
    """Replace an earlier export."""


def export(arguments: Sequence[str]) -> int:
    """`iwae export`."""
    options = parsing.parse(Export, "export", arguments)
    parsing.set_up_jax()
    from iwae.reports.export import export_run

    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    print(export_run(**chosen))
    return 0


@dataclasses.dataclass(frozen=True)
class Push:
    """Put an exported model on the Hugging Face hub."""

    folder: tyro.conf.Positional[Path]
    """What `iwae export` wrote."""
    repo: tyro.conf.Positional[str]
    """OWNER/NAME; made if it is not there."""
    private: bool = False
    """If the repository is made: for its owner alone."""
    revision: str | None = None
    """A branch; made if it is not there (default: the main one)."""


def push(arguments: Sequence[str]) -> int:
    """`iwae push`."""
    options = parsing.parse(Push, "push", arguments)
    from iwae.reports.hub import push_to_hub

    print(
        push_to_hub(
            options.folder, options.repo, private=options.private, revision=options.revision
        )
    )
    return 0

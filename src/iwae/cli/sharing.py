"""`iwae export` and `push`: share a trained model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from iwae.cli import parsing


@dataclasses.dataclass(frozen=True)
class Export:
    """Export a model of a run to share it: weights, card and picture, but no data.

    The numbers on the card are those that `iwae evaluate` has measured for this model.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    folder: tyro.conf.Positional[Path]
    """Folder to write; must be new or empty."""
    weights: Literal["final", "best"] = "final"
    """The final weights, or those with the best validation bound."""
    replicate: int = 0
    """Index of the model in the run; the first is 0."""
    license: str | None = None
    """Licence of the model by its name on the Hugging Face Hub: mit, cc-by-4.0, ..."""
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
    """Upload an exported model to the Hugging Face Hub."""

    folder: tyro.conf.Positional[Path]
    """Folder that `iwae export` wrote."""
    repo: tyro.conf.Positional[str]
    """Repository OWNER/NAME; created if it does not exist."""
    private: bool = False
    """Make the repository private, if it is created."""
    revision: str | None = None
    """Branch; created if it does not exist (default: the main branch)."""


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

"""`iwae figures`, `report`, `export` and `push`: files made from a run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from iwae.cli import parsing
from iwae.cli.jax_setup import set_up_jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures(parsing.RunOptions):
    """Draw the figures of a run into RUN/figures."""

    data_dir: parsing.DataDir = None


def figures_command(arguments: Sequence[str]) -> int:
    """`iwae figures`."""
    options = parsing.parse(Figures, "figures", arguments)
    set_up_jax()
    from iwae.reports.gallery import draw_gallery

    for path in draw_gallery(**vars(options)):
        print(path)
    return 0


@dataclasses.dataclass(frozen=True)
class ReportPage:
    """Write one HTML page of runs side by side that needs no network and no other file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders of the runs."""
    out: Path = Path("report.html")
    """HTML file to write."""
    weights: parsing.SomeWeights = "final"
    data_dir: parsing.DataDir = None


def report_command(arguments: Sequence[str]) -> int:
    """`iwae report`."""
    options = parsing.parse(ReportPage, "report", arguments)
    set_up_jax()
    from iwae.reports.page.write import write_page

    chosen = dict(vars(options))
    print(write_page(chosen.pop("runs"), chosen.pop("out"), **chosen))
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(parsing.RunOptions):
    """Export a model of a run to share it: weights, card and picture, but no data.

    The numbers on the card are those that `iwae evaluate` has measured for this model.
    """

    folder: tyro.conf.Positional[Path]
    """Folder to write; must be new or empty."""
    replicate: int = 0
    """Index of the model in the run; the first is 0."""
    license: str | None = None
    """Licence of the model by its name on the Hugging Face Hub: mit, cc-by-4.0, ..."""
    overwrite: bool = False
    """Replace an earlier export."""


def export_command(arguments: Sequence[str]) -> int:
    """`iwae export`."""
    options = parsing.parse(Export, "export", arguments)
    set_up_jax()
    from iwae.reports.export import export_run

    print(export_run(**vars(options)))
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


def push_command(arguments: Sequence[str]) -> int:
    """`iwae push`."""
    options = parsing.parse(Push, "push", arguments)
    from iwae.reports.hub import push_to_hub

    chosen = dict(vars(options))
    print(push_to_hub(chosen.pop("folder"), chosen.pop("repo"), **chosen))
    return 0

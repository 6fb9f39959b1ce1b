"""`iwae impute`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from iwae.cli import parsing


@dataclasses.dataclass(frozen=True)
class Impute:
    """Fill the gaps of a table with what a run's model says of them.

    The run was trained with --missing. Each missing value becomes its expectation given what is
    observed in its row (of categories, the likeliest), or, with --draws, a draw.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    file: tyro.conf.Positional[Path]
    """The table: .csv or .npy, with the columns that the run was trained on."""
    out: Path
    """The completed table."""
    draws: int | None = None
    """Multiple imputations: so many tables, numbered from 1."""
    k: int = 1000
    """Samples of the posterior per row."""
    weights: Literal["final", "best"] = "final"
    """The last weights, or those of the best validation bound."""
    seed: int = 0
    """Seed of all random numbers."""
    batch_size: int | None = None
    """Rows at a time; changes the speed, not the numbers."""
    overwrite: bool = False
    """Replace completed tables that are there already."""


def impute(arguments: Sequence[str]) -> int:
    """`iwae impute`."""
    options = parsing.parse(Impute, "impute", arguments)
    parsing.set_up_jax()
    from iwae.runs.completion import impute_file

    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    for path in impute_file(chosen.pop("run"), chosen.pop("file"), chosen.pop("out"), **chosen):
        print(path)
    return 0

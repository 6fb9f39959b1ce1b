"""`iwae impute`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from iwae.cli import parsing


@dataclasses.dataclass(frozen=True)
class Impute:
    """Fill in the missing values of a table with a run's model.

    The run must have been trained with --missing. Each missing value becomes its expectation given
    the observed values of its row (a category: the most likely one) or, with --draws, a draw.
    """

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    file: tyro.conf.Positional[Path]
    """Table to complete: .csv or .npy, with the columns that the run was trained on."""
    out: Path
    """File for the completed table."""
    draws: int | None = None
    """Write this many multiple imputations instead, numbered from 1."""
    k: int = 1000
    """Importance samples per row."""
    weights: Literal["final", "best"] = "final"
    """The final weights, or those with the best validation bound."""
    seed: int = 0
    """Random seed."""
    batch_size: int | None = None
    """Rows per batch; affects speed, not results (default: automatic)."""
    overwrite: bool = False
    """Replace existing output files."""


def impute(arguments: Sequence[str]) -> int:
    """`iwae impute`."""
    options = parsing.parse(Impute, "impute", arguments)
    parsing.set_up_jax()
    from iwae.runs.completion import impute_file

    chosen = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    for path in impute_file(chosen.pop("run"), chosen.pop("file"), chosen.pop("out"), **chosen):
        print(path)
    return 0

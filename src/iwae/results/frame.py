"""All records of a folder as one long table, a row for each number."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.results.extrapolation import read_extrapolated_records
from iwae.results.reading import Estimate, read_estimates
from iwae.results.schema import Number, Part

if TYPE_CHECKING:
    from pandas import DataFrame


class Result(NamedTuple):
    """One number of a record.

    Attributes:
        run: the folder of the run.
        record: the name of the record.
        dataset, split, weights, pruned, method, seed: what was measured, and how.
        replicate: number of the model; None for the mean over all of them.
        quantity: such as "L_5000", "AIS_500", "accuracy" or "rate".
        budget: samples or temperatures, where the quantity has a budget.
        mean, stderr: over examples; nats, unless the quantity is a share. None if not finite.
        between_replicates_sd: standard deviation between replicates, of a mean over them.
        n: number of examples.
        subset: whether they are a random subset of the split.
        model_sha256: of the model's weights.
        monte_carlo_error: of the mean, from particles or chains.
        one_draw_error: of the mean, from the draw of the pixels, where several were measured.
        whole_mean, whole_stderr: over all examples of the split, extrapolated from a subset.
        subset_error: of `whole_mean`, from the choice of the subset.
    """

    run: str
    record: str
    dataset: str
    split: str
    weights: str
    pruned: bool
    method: str
    seed: int
    replicate: int | None
    quantity: str
    budget: int | None
    mean: Number
    stderr: Number
    between_replicates_sd: Number
    n: int
    subset: bool
    model_sha256: str | None
    monte_carlo_error: Number = None
    one_draw_error: Number = None
    whole_mean: Number = None
    whole_stderr: Number = None
    subset_error: Number = None


def results(folders: Sequence[Path]) -> Iterator[Result]:
    """The numbers in the records of all runs in or below some folders.

    Raises:
        UserError: if a folder does not exist.
    """
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: name a run, or a folder of runs")
        for run in sorted(path.parent for path in folder.rglob("evaluations")):
            if not any(part.startswith(".") for part in run.relative_to(folder).parts):
                yield from _results(run)


def _results(run: Path) -> Iterator[Result]:
    for path, record in read_extrapolated_records(run):
        for part in (record, *record.replicates):
            for one in read_estimates(record, part):
                yield _result(run, path.stem, one, part)


_OF_RECORD = ("dataset", "split", "weights", "pruned", "seed", "n")
"""Columns that are fields of the record."""


def _result(run: Path, name: str, one: Estimate, part: Part) -> Result:
    record, whole = one.record, getattr(one.row, "whole", None)
    is_mean = part is record and len(record.models) > 1
    drawn = getattr(one.row, "binarizations", None)
    return Result(
        run=str(run),
        record=name,
        method=record.method.value,
        replicate=None if is_mean else part.replicate,
        quantity=one.name,
        budget=one.rank[1] or None,
        mean=one.mean,
        stderr=one.stderr,
        between_replicates_sd=one.spread,
        subset=record.subset is not None,
        model_sha256=part.model_sha256,
        monte_carlo_error=getattr(one.row, "monte_carlo_error", None) if one.is_bound else None,
        one_draw_error=drawn and drawn.one_draw_error,
        whole_mean=whole and whole.log_likelihood,
        whole_stderr=whole and whole.stderr,
        subset_error=whole and whole.subset_error,
        **{column: getattr(record, column) for column in _OF_RECORD},
    )


def results_frame(*folders: Path) -> "DataFrame":
    """All numbers in the records of runs as a data frame: a row for each, columns as in `Result`.

    Args:
        folders: of runs, or of folders with runs below them.

    Raises:
        UserError: if a folder does not exist, or pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise UserError("a data frame needs pandas: pip install pandas") from error
    frame = pd.DataFrame(results(folders), columns=list(Result._fields))
    return frame.astype({"replicate": "Int64", "budget": "Int64"})


def write_results_csv(folders: Sequence[Path], path: Path) -> None:
    """Write all numbers in the records of runs as a CSV file: a row for each.

    Raises:
        UserError: if a folder does not exist, or the path is a folder.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; name a file for the table, such as results.csv")
    rows = list(results(folders))
    with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(Result._fields)
        table.writerows(rows)

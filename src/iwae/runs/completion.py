"""Imputation from file to file: what was observed keeps its text, and gaps are filled."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.data.columns import Column, to_cells, with_fractions
from iwae.data.delimited import is_number, read_cells
from iwae.data.tables import SUFFIXES, Cells, names_in, written_by_piece
from iwae.errors import UserError
from iwae.evaluation.imputation import Imputed, joined
from iwae.files import atomic_write
from iwae.runs.answers import Fitted, Rows, fitted, impute_pieces


class Completion(NamedTuple):
    """Completed tables.

    Attributes:
        paths: the files written.
        pareto_k: `[n]`, k-hat of each row's weights; nan without gaps.
        threshold: `[n]`, k-hat above which imputed values are unreliable.
    """

    paths: list[Path]
    pareto_k: np.ndarray
    threshold: np.ndarray


def impute_file(
    run: Path,
    file: Path,
    out: Path,
    *,
    draws: int | None = None,
    overwrite: bool = False,
    khat: bool = False,
    weights: str | None = None,
    **options: Any,
) -> Completion:
    """Write a copy of a table with missing values imputed by the first model of a run.

    Args:
        file: .csv, .tsv, .parquet or .npy, with the columns that the model was trained on. Observed
            cells of a text file, its header and its separator stay as they are.
        out: path of the same suffix. With `draws`, the files are numbered from 1: `out-1.csv` ...
        draws: number of multiple imputations; None for the expectations.
        overwrite: replace existing files, but never the input table itself.
        khat: add columns with k-hat of each row that had gaps, `pareto_k`, and the threshold above
            which imputed values are unreliable, `pareto_k_threshold`.
        weights, options: as for `iwae.runs.answers.impute_rows`.

    Raises:
        UserError: if the run's model does not support missing values, the table does not fit it, or
            it has no place for k-hat.
    """
    suffixes = (*SUFFIXES, ".npy")
    if file.suffix.lower() not in suffixes or out.suffix.lower() != file.suffix.lower():
        raise UserError(f"{file} and {out} must have the same suffix, {' or '.join(suffixes)}")
    paths = [out] if draws is None else [numbered(out, i) for i in range(1, draws + 1)]
    for path in paths:
        refuse_existing(path, file, overwrite=overwrite)
    if khat and file.suffix.lower() == ".npy":
        raise UserError(f"{out} has no columns to add k-hat to: give a table, or leave out khat")
    if khat and (taken := [name for name in KHAT if name in names_in(file)]):
        raise UserError(f"{file} has a column {taken[0]!r}, the name of one to add: rename it")
    fit = fitted(run, weights)
    rows, pieces = impute_pieces(run, file, draws=draws, weights=weights, **options)
    if rows.array is None and file.suffix.lower() != ".parquet":
        found = joined(pieces, axis=1)
        for path, values in zip(paths, found.values, strict=True):
            _write_text(path, file, fit, rows, values, _added(found, khat=khat))
        return Completion(paths, found.pareto_k, found.threshold)
    return Completion(paths, *_write_pieces(paths, file, rows, pieces, khat=khat))


KHAT = ("pareto_k", "pareto_k_threshold")
"""The columns of k-hat."""


def _added(found: Imputed, *, khat: bool) -> Cells:
    """The columns to add, without cells for rows that had no gaps."""
    if not khat:
        return {}
    threshold = np.where(np.isnan(found.pareto_k), np.nan, found.threshold)
    each = found.pareto_k, threshold
    return {name: one.astype(np.float32) for name, one in zip(KHAT, each, strict=True)}


def refuse_existing(path: Path, file: Path, *, overwrite: bool) -> None:
    """Raise UserError if an output exists and may not be replaced, or is the input."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists: choose another, or give --overwrite")
    if path.resolve() == file.resolve():
        raise UserError(f"{path} is the input table: choose another name")


def numbered(out: Path, i: int) -> Path:
    """The path of the i-th of several tables."""
    return out.with_stem(f"{out.stem}-{i}")


def _write_pieces(
    paths: list[Path],
    file: Path,
    rows: Rows,
    pieces: Iterator[Imputed],
    *,
    khat: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Write the completed tables in the format of the file, all piece by piece.

    Returns:
        k-hat and its threshold, `[n]` each.
    """
    n, found = len(rows.values), []
    columns = with_fractions(rows.columns, rows.values) if rows.array is None else ()

    def cells(values: np.ndarray, first: int, added: Cells) -> Cells:
        last = first + len(values)
        if rows.array is not None:
            return {"data": _like(file, rows.array[first:last], values)}
        return {**rows.carried(first, last), **to_cells(values, columns), **added}

    with ExitStack() as stack:
        outputs = [stack.enter_context(written_by_piece(path, n)) for path in paths]
        done = 0
        for piece in pieces:
            added = _added(piece, khat=khat)
            for write, values in zip(outputs, piece.values, strict=True):
                write(cells(values, done, added))
            done += len(piece.pareto_k)
            found.append((piece.pareto_k, piece.threshold))
    khats, thresholds = zip(*found, strict=True)
    return np.concatenate(khats), np.concatenate(thresholds)


def _like(file: Path, array: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The array in its own dtype and shape, with values in place of missing ones."""
    if array.dtype.kind != "f":
        return array  # no NaN in such a dtype
    with np.errstate(over="ignore"):
        whole = np.where(np.isnan(array), values.reshape(array.shape), array).astype(array.dtype)
    if np.isinf(whole).any():
        raise UserError(
            f"{file} has dtype {array.dtype}, too narrow for the imputed values: use float32"
        )
    return whole


def _write_text(
    path: Path, file: Path, fit: Fitted, rows: Rows, values: np.ndarray, added: Cells
) -> None:
    separator, header, lines = read_cells(file)
    names = names_in(file)
    found = to_cells(values, rows.columns)
    by_name = bool(header) or not fit.columns
    places = [names.index(name) for name in found] if by_name else list(range(len(found)))
    commas = _commas(lines, places, rows.columns) if separator != "," else [False] * len(places)
    new = [_text(one, comma=comma) for one, comma in zip(found.values(), commas, strict=True)]
    more = [_text(one, comma=any(commas)) for one in added.values()]
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as text:
        # A writer quotes a line feed in a cell, but no carriage return, which ends lines too.
        plain, quoted = (
            csv.writer(text, delimiter=separator, lineterminator="\n", quoting=one)
            for one in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        )
        plain.writerows([[*header, *added]] if header else [])
        old_rows = np.asarray(rows.values)
        for number, (line, old, *row) in enumerate(zip(lines, old_rows, *new, strict=True)):
            for i, value, cell in zip(places, old, row, strict=True):
                if np.isnan(value):
                    line[i] = cell
            line += [column[number] for column in more]
            (quoted if any("\r" in cell for cell in line) else plain).writerow(line)


def _commas(
    lines: Sequence[Sequence[str]], places: Sequence[int], columns: Sequence[Column]
) -> list[bool]:
    """Whether each column has decimal commas: as the others, if it has numbers without marks."""
    words = [any(not is_number(level) for level in one.levels) for one in columns]
    marks = [
        set() if is_words else {mark for line in lines for mark in ",." if mark in line[i]}
        for i, is_words in zip(places, words, strict=True)
    ]
    every = set().union(*marks)
    both = zip(marks, words, strict=True)
    return [not is_words and "," in (own or every) for own, is_words in both]


def _text(cells: np.ndarray, *, comma: bool) -> list[str]:
    """Cells as text: words, whole numbers, or the shortest digits of float32; gaps are empty."""
    if cells.dtype.kind in "bO":
        text = list(map(str, cells))
    else:
        text = ["" if one != one else np.format_float_positional(one, trim="-") for one in cells]  # noqa: PLR0124 - NaN
    return [one.replace(".", ",") for one in text] if comma else text

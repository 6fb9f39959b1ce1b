"""Imputation from file to file: gaps are filled, and observed cells keep their text."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iwae.data.cells import is_number_cell
from iwae.data.coding import code_fractions, decode_cells
from iwae.data.rows import Examples
from iwae.data.tables import SUFFIXES, Text, table_column_names
from iwae.data.writers import Cells, table_writer
from iwae.errors import UserError
from iwae.evaluation.imputation import Imputed, join_imputed
from iwae.files import atomic_write, check_writable_file
from iwae.runs.parquet_filling import Piece, filled_parquet, parquet_rows_to_fill
from iwae.runs.row_answers import impute_row_pieces
from iwae.runs.row_reading import Rows
from iwae.runs.text_filling import Changes, filled_text


class Completion(NamedTuple):
    """Completed tables.

    Attributes:
        paths: the files written.
        pareto_k: `[n]`, k-hat of each row's weights; nan without gaps.
        threshold: `[n]`, k-hat above which imputed values are unreliable.
        widened: a line for each column of a .parquet file whose type cannot hold imputed values.
    """

    paths: list[Path]
    pareto_k: np.ndarray
    threshold: np.ndarray
    widened: Sequence[str] = ()


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
        file: .csv, .tsv, .parquet or .npy, with the columns that the model was trained on. A text
            file keeps its text but for the gaps. A .parquet file keeps its columns, their order
            and, where these can hold the imputed values, their types.
        out: path of the same suffix; with `draws`, of files numbered from 1, such as `out-1.csv`.
        draws: number of multiple imputations; None for the expectations.
        overwrite: replace existing files, but never the input table itself.
        khat: add the columns `pareto_k`, k-hat of each row with gaps, and `pareto_k_threshold`,
            above which imputed values are unreliable.
        weights, options: as for `iwae.runs.row_answers.impute_rows`.

    Raises:
        UserError: if the model does not support missing values, the table does not fit it, or has
            no place for k-hat.
    """
    suffixes = (*SUFFIXES, ".npy")
    if file.suffix.lower() not in suffixes or out.suffix.lower() != file.suffix.lower():
        raise UserError(f"{file} and {out} must have the same suffix, {' or '.join(suffixes)}")
    paths = [out] if draws is None else [_numbered(out, i) for i in range(1, draws + 1)]
    for path in paths:
        check_writable_file(path, file, overwrite=overwrite)
    if khat and file.suffix.lower() == ".npy":
        raise UserError(f"{out} has no columns to add k-hat to: give a table, or leave out khat")
    if khat and (taken := [name for name in KHAT if name in table_column_names(file)]):
        raise UserError(f"{file} has a column {taken[0]!r}, the name of one to add: rename it")
    rows, pieces = impute_row_pieces(run, file, draws=draws, weights=weights, **options)
    reliability: list[tuple[np.ndarray, np.ndarray]] = []

    def noted() -> Iterator[Imputed]:
        for piece in pieces:
            reliability.append((piece.pareto_k, piece.threshold))
            yield piece

    widened: Sequence[str] = ()
    if file.suffix.lower() == ".parquet":
        widened = _fill_parquet(paths, file, rows, noted(), khat=khat)
    elif rows.array is not None:
        _write_array(paths, file, rows.array, noted())
    else:
        assert rows.text is not None  # noqa: S101 - it is a table of text
        found = join_imputed(noted(), axis=1)
        _write_text(paths, file, rows, rows.text, found, _added(found, khat=khat))
    khats, thresholds = (np.concatenate(each) for each in zip(*reliability, strict=True))
    return Completion(paths, khats, thresholds, widened)


KHAT = ("pareto_k", "pareto_k_threshold")
"""The columns of k-hat."""


def _added(found: Imputed, *, khat: bool) -> Cells:
    """The columns to add, without cells for rows that had no gaps."""
    if not khat:
        return {}
    threshold = np.where(np.isnan(found.pareto_k), np.nan, found.threshold)
    each = found.pareto_k, threshold
    return {name: one.astype(np.float32) for name, one in zip(KHAT, each, strict=True)}


def _numbered(out: Path, i: int) -> Path:
    """The path of the i-th of several tables."""
    return out.with_stem(f"{out.stem}-{i}")


def _fill_parquet(
    paths: list[Path],
    file: Path,
    rows: Rows,
    pieces: Iterator[Imputed],
    *,
    khat: bool,
) -> list[str]:
    """Write filled copies of a .parquet file piece by piece; lines about columns widened for it."""
    columns, done = code_fractions(rows.columns, rows.values), 0
    with ExitStack() as stack:
        outputs = [stack.enter_context(filled_parquet(path)) for path in paths]
        take = parquet_rows_to_fill(file)
        for piece in pieces:
            count = len(piece.pareto_k)
            table, missing = take(count), np.isnan(rows.values[done : done + count])
            gaps = {one.name: missing[:, j] for j, one in enumerate(columns)}
            added = _added(piece, khat=khat)
            for (write, _), values in zip(outputs, piece.values, strict=True):
                write(table, Piece(decode_cells(values, columns), gaps, added))
            done += count
    return list(dict.fromkeys(line for _, lines in outputs for line in lines))


def _write_array(paths: list[Path], file: Path, array: Examples, pieces: Iterator[Imputed]) -> None:
    """Write completed arrays, piece by piece."""
    done = 0
    with ExitStack() as stack:
        outputs = [stack.enter_context(table_writer(path, len(array))) for path in paths]
        for piece in pieces:
            old = array[done : done + len(piece.pareto_k)]
            for write, values in zip(outputs, piece.values, strict=True):
                write({"data": _like(file, old, values)})
            done += len(old)


def _like(file: Path, array: np.ndarray, values: np.ndarray) -> np.ndarray:
    """An array in its own dtype and shape, with imputed values in its gaps."""
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
    paths: Sequence[Path], file: Path, rows: Rows, text: Text, found: Imputed, added: Cells
) -> None:
    """Write copies of a text file with its gaps filled, in one pass over its lines."""
    lines = filled_text(
        file,
        text.separator,
        len(text.names),
        _changes(rows, text, found, added),
        names=[*added] if text.header else None,
        copies=len(paths),
    )
    with ExitStack() as stack:
        temporary = [stack.enter_context(atomic_write(path)) for path in paths]
        files = [
            stack.enter_context(path.open("w", encoding="utf-8", newline="")) for path in temporary
        ]
        for copies in lines:
            for copy, line in zip(files, copies, strict=True):
                copy.write(line)


def _changes(rows: Rows, text: Text, found: Imputed, added: Cells) -> Iterator[list[Changes]]:
    """The changes of each row of a text file in each of its copies."""
    names = list(text.names)
    columns = [decode_cells(values, rows.columns) for values in found.values]
    by_name = {*columns[0]} <= {*names}  # or the file has no header, and columns in order
    places = [names.index(name) if by_name else i for i, name in enumerate(columns[0])]
    commas = [
        text.commas.get(names[place], False) and all(map(is_number_cell, column.levels))
        for place, column in zip(places, rows.columns, strict=True)
    ]
    new = [
        [_as_text(one, comma=comma) for one, comma in zip(cells.values(), commas, strict=True)]
        for cells in columns
    ]
    more = [_as_text(one, comma=any(text.commas.values())) for one in added.values()]
    for number, old in enumerate(np.asarray(rows.values)):
        gaps = np.flatnonzero(np.isnan(old))
        last = [column[number] for column in more]
        yield [Changes({places[j]: one[j][number] for j in gaps}, last) for one in new]


def _as_text(cells: np.ndarray, *, comma: bool) -> list[str]:
    """Cells as text: words, whole numbers, or the shortest digits of float32; empty for nan."""
    if cells.dtype.kind in "bO":
        text = list(map(str, cells))
    else:
        text = ["" if np.isnan(one) else np.format_float_positional(one, trim="-") for one in cells]
    return [one.replace(".", ",") for one in text] if comma else text

"""Imputation from file to file: a run's model completes a table with missing values."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from iwae.data.arrays import check_array, read_arrays
from iwae.data.columns import Column, from_json, given_columns, to_cells, to_values
from iwae.data.delimited import read_cells, read_header
from iwae.data.kinds import as_kind, check_values
from iwae.data.tables import read_table
from iwae.errors import UserError
from iwae.evaluation.imputation import impute, multiple_imputations
from iwae.files import atomic_write
from iwae.models.conditional import ConditionalVAE
from iwae.models.vae import VAE
from iwae.runs.models import read_about
from iwae.runs.setup import model_folder, trained_model

SUFFIXES = (".csv", ".npy")


def impute_file(
    run: Path,
    file: Path,
    out: Path,
    *,
    draws: int | None = None,
    k: int = 1000,
    weights: str = "final",
    seed: int = 0,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a copy of a table with missing values imputed by the first model of a run.

    Args:
        file: .csv or .npy, with the columns that the model was trained on. Observed values and a
            header line keep their text.
        out: path of the same suffix. With `draws`, the files are numbered from 1: `out-1.csv` ...
        draws: number of multiple imputations; None for the expectations.
        k, batch_size: as for `iwae.impute`.
        weights: "final" or "best".
        seed: random seed.
        overwrite: replace existing files, but never the input table itself.

    Returns:
        The files written.

    Raises:
        UserError: if the run's model does not support missing values, or the table does not fit it.
    """
    if file.suffix.lower() not in SUFFIXES or out.suffix.lower() != file.suffix.lower():
        raise UserError(f"{file} and {out} must have the same suffix, {' or '.join(SUFFIXES)}")
    paths = [out] if draws is None else [numbered(out, i) for i in range(1, draws + 1)]
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError(f"{path} already exists: choose another, or give --overwrite")
        if path.resolve() == file.resolve():
            raise UserError(f"{path} is the input table: choose another name")
    model = trained_model(run, weights, 0)
    if isinstance(model, ConditionalVAE):
        raise UserError(
            f"{run} is conditional, and such models cannot impute: train without --conditional"
        )
    table = _read(file, read_about(model_folder(run, weights, 0)).get("dataset") or {}, model)
    rows = _checked(model, run, file, table)
    key = jax.random.key(seed)
    if draws is None:
        filled = impute(model, rows, key, k=k, batch_size=batch_size)[None]
    else:
        filled = multiple_imputations(model, rows, key, draws=draws, k=k, batch_size=batch_size)
    whole = [_completed(file, table.values, one) for one in filled]
    for path, one in zip(paths, whole, strict=True):
        _write(path, table, one)
    return paths


def numbered(out: Path, i: int) -> Path:
    """The path of the i-th of several tables."""
    return out.with_stem(f"{out.stem}-{i}")


class Cells(NamedTuple):
    """A table to complete.

    Attributes:
        values: `[n, ...]`, NaN where missing.
        columns: of the model's data, if these are known.
        path: of the text file; None for an array.
        places: the place of each column in the file.
    """

    values: np.ndarray
    columns: tuple[Column, ...] = ()
    path: Path | None = None
    places: tuple[int, ...] = ()


def _read(file: Path, identity: Mapping[str, Any], model: VAE) -> Cells:
    """The table; columns are found by name if the data of the run and the table have names."""
    if file.suffix.lower() != ".csv":
        arrays = read_arrays(file)
        if list(arrays) != ["data"]:
            raise UserError(f"{file} is an .npz file by its content: save the table with np.save")
        return Cells(arrays["data"])
    left = identity.get("drop", []), identity.get("ids", [])
    _, header = read_header(file)
    drop, ids = ([name for name in names if name in header] for names in left)
    table = read_table(file, drop=drop, ids=ids)
    known = _known(identity)
    names = [column.name for column in known] if known and table.named else table.names
    columns = known or given_columns(table.names, model.kind, len(table.names))
    values = to_values(table, columns)
    return Cells(values, columns, file, tuple(map(header.index, names)))


def _known(identity: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of a run's data; of older runs only the names are known."""
    found = identity.get("columns", ())
    if found and isinstance(found[0], str):
        return given_columns(found, as_kind(identity["observation"]), len(found))
    return from_json(found)


def _checked(model: VAE, run: Path, file: Path, table: Cells) -> np.ndarray:
    """The rows `[n, d]` of a table, checked to fit the model."""
    first_row = int(table.path is not None)
    check_array(str(file), "data", table.values, first_row=first_row, missing=True)
    rows = table.values.reshape(len(table.values), -1)
    if rows.shape[1] != model.n_data:
        raise UserError(
            f"{file} has {rows.shape[1]} columns, but {run} was trained on data with {model.n_data}"
        )
    check_values(rows, model.kind, f"{file}: array 'data'", missing=True)
    return rows.astype(np.float32)


def _completed(file: Path, values: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """The table in its own dtype and shape, with `filled` `[n, d]` in place of missing values."""
    if values.dtype.kind != "f":
        return values  # no NaN in such a dtype
    with np.errstate(over="ignore"):
        whole = np.where(np.isnan(values), filled.reshape(values.shape), values)
        whole = whole.astype(values.dtype)
    if np.isinf(whole).any():
        raise UserError(
            f"{file} has dtype {values.dtype}, too narrow for the imputed values: use float32"
        )
    return whole


def _write(path: Path, table: Cells, filled: np.ndarray) -> None:
    """Write the completed table."""
    with atomic_write(path) as temporary:
        if table.path is None:
            with temporary.open("wb") as file:  # NumPy would add .npy to a path in capitals
                np.save(file, filled, allow_pickle=False)
            return
        separator, names, rows = read_cells(table.path)
        new = [_text(one) for one in to_cells(filled, table.columns).values()]
        comma = separator != "," and any("," in row[i] for row in rows for i in table.places)
        with temporary.open("w", encoding="utf-8", newline="") as text:
            lines = csv.writer(text, delimiter=separator, lineterminator="\n")
            lines.writerows([names] if names else [])
            for row, old, *cells in zip(rows, table.values, *new, strict=True):
                for i, value, cell in zip(table.places, old, cells, strict=True):
                    if np.isnan(value):
                        row[i] = cell.replace(".", ",") if comma else cell
                lines.writerow(row)


def _text(cells: np.ndarray) -> list[str]:
    """Cells as text: words, whole numbers, or the shortest digits of float32."""
    if cells.dtype == object:
        return list(cells)
    return [np.format_float_positional(one, trim="-") for one in cells.astype(np.float32)]

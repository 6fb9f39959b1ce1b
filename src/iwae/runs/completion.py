"""Imputation from file to file: a run's model completes a table with missing values."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from iwae.data.kinds import check_values
from iwae.data.own import check_array, read_arrays, read_bytes
from iwae.data.tables import Cells, csv_cells
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
    model, table = trained_model(run, weights, 0), _read(file)
    if isinstance(model, ConditionalVAE):
        raise UserError(
            f"{run} is conditional, and such models cannot impute: train without --conditional"
        )
    rows = _checked(model, run, file, table)
    _check_names(table.names, read_about(model_folder(run, weights, 0)), file, run)
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


def _read(file: Path) -> Cells:
    """The table; no names and no text of cells if the file is not .csv."""
    content = read_bytes(file)
    if file.suffix.lower() == ".csv":
        return csv_cells(file, content)
    arrays = read_arrays(file, content)
    if list(arrays) != ["data"]:
        raise UserError(f"{file} is an .npz file by its content: save the table with np.save")
    return Cells((), [], arrays["data"])


def _checked(model: VAE, run: Path, file: Path, table: Cells) -> np.ndarray:
    """The rows `[n, d]` of a table, checked to fit the model."""
    check_array(file, "data", table.values, first_row=int(bool(table.cells)), missing=True)
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


def _check_names(names: Sequence[str], about: Mapping[str, Any], file: Path, run: Path) -> None:
    """Raise UserError for columns in another order, if both tables name them."""
    known = (about.get("dataset") or {}).get("columns", ())
    for place, (found, wanted) in enumerate(zip(names, known, strict=False), start=1):
        if found != wanted:
            raise UserError(
                f"column {place} of {file} is {found!r}, but that of the data that {run} was "
                f"trained on is {wanted!r}: use the same names in the same order"
            )


def _write(path: Path, table: Cells, filled: np.ndarray) -> None:
    """Write the completed table."""
    with atomic_write(path) as temporary:
        if table.cells:
            with temporary.open("w", encoding="utf-8", newline="") as text:
                lines = csv.writer(text, lineterminator="\n")
                lines.writerows([table.names] if table.names else [])
                lines.writerows(map(_line, table.cells, table.values, filled))
        else:
            with temporary.open("wb") as file:  # NumPy would add .npy to a path in capitals
                np.save(file, filled, allow_pickle=False)


def _line(cells: list[str], values: np.ndarray, filled: np.ndarray) -> list[str]:
    """The cells of a line, with missing values filled in the shortest digits of float32."""
    digits = [np.format_float_positional(one, trim="-") for one in filled.astype(np.float32)]
    every = zip(cells, values, digits, strict=True)
    return [new if np.isnan(value) else cell for cell, value, new in every]

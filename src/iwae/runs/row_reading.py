"""Rows for a trained model: from a file, a folder of images or a data frame.

They have the columns of the training data, in any order.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from iwae.data.arrays import check_array, read_arrays
from iwae.data.binarisation import binarise_at_random
from iwae.data.coding import to_values
from iwae.data.columns import Column, columns_from_json, named_columns
from iwae.data.grey_levels import grey_to_colour
from iwae.data.images import read_images
from iwae.data.kinds import check_kind_values
from iwae.data.labels import as_labels
from iwae.data.own import is_large_own_file
from iwae.data.rows import Examples, convert_rows, flat_rows, row_blocks, rows_in_memory, stored
from iwae.data.sampling import TEST_DRAW
from iwae.data.scaling import Scaling, scaling_from
from iwae.data.streamed_tables import (
    stream_tables,
    streamed_cells,
    streamed_places,
    streamed_values,
)
from iwae.data.tables import SUFFIXES, Table, Text, read_table, table_column_names, table_from_frame
from iwae.errors import UserError
from iwae.models.conditional import ConditionalVAE, Model, conditional_examples, unconditional_model
from iwae.models.vae import VAE
from iwae.runs.folder import folder_config
from iwae.runs.model_files import DESCRIPTION, load_model, read_model_facts
from iwae.runs.trained import trained_model, trained_model_folder, warn_untrained

Source = Any
"""The path of a file or of a folder of images, or a data frame."""


class Fitted(NamedTuple):
    """A trained model, and the facts about its training data that reading rows needs.

    Attributes:
        model: the model.
        columns: of the training data; empty for an array.
        scaling: of the values; None if they are not standardised.
        identity: of the training data.
        where: the folder, for messages.
    """

    model: Model
    columns: tuple[Column, ...]
    scaling: Scaling | None
    identity: Mapping[str, Any]
    where: Path

    @property
    def vae(self) -> VAE:
        """The model of the values, without labels."""
        return unconditional_model(self.model)

    @property
    def units(self) -> Scaling:
        """The scaling of the values; the identity if they are not standardised."""
        d = self.vae.n_data
        return self.scaling or Scaling(np.zeros(d), np.ones(d))

    def inwards(self, values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Values in the units of the model, float32."""
        return self.units.inwards(values)

    def outwards(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Values in the units of the data, float64, rounded to the precision of float32."""
        wide = self.units.outwards(np.asarray(rows, np.float64))
        each = zip(wide.T, *self.units, strict=True)
        return np.stack([_rounded(*one) for one in each], axis=1)


def _rounded(column: Float[np.ndarray, " n"], shift: float, scale: float) -> np.ndarray:
    """A column, rounded to the precision of float32 in the units of the model."""
    if (shift, scale) == (0.0, 1.0):
        return column.astype(np.float32).astype(str).astype(np.float64)
    return np.round(column, 6 - math.floor(math.log10(scale)))


class Rows(NamedTuple):
    """Rows for a model; those of an .npy file or of a large .parquet file are read on demand.

    Attributes:
        values: `[n, d]`, float64, in the units of the data; NaN where missing.
        examples: the same in the units of the model, float32, and with its labels.
        ids: columns to carry through, by name.
        array: the rows as given; None for a table.
        columns: of a table, in the order of the values; empty for an array.
        text: the format of a text file.
    """

    values: Examples
    examples: Examples
    ids: Mapping[str, Examples]
    array: Examples | None = None
    columns: tuple[Column, ...] = ()
    text: Text | None = None


def row_reading_model(folder: Path, weights: str | None = None) -> Fitted:
    """The first model of a run, or the model in an exported folder.

    Args:
        weights: "final" or "best" of a run; by default the best, if it was validated.

    Raises:
        UserError: if there is no such model.
    """
    if (folder / DESCRIPTION).is_file():
        if weights is not None:
            raise UserError(f"{folder} holds a single model: leave out weights")
        model, about = load_model(folder), read_model_facts(folder)
    else:
        chosen = weights or (
            "best" if trained_model_folder(folder, "best", 0).is_dir() else "final"
        )
        model = trained_model(folder, chosen, 0)
        if (folder / "config.toml").is_file():
            warn_untrained(folder)
        about = read_model_facts(trained_model_folder(folder, chosen, 0))
    identity = about.get("dataset") or {}
    vae = unconditional_model(model)
    scaling = identity.get("scaling")
    return Fitted(
        model,
        _training_columns(identity, vae),
        None if scaling is None else scaling_from(scaling, vae.n_data),
        identity,
        folder,
    )


def _training_columns(identity: Mapping[str, Any], vae: VAE) -> tuple[Column, ...]:
    """The columns of a run's data; older runs stored the names alone."""
    found = identity.get("columns", ())
    if found and isinstance(found[0], str):
        return named_columns(found, vae.kind, len(found))
    return columns_from_json(found)


def read_rows(fit: Fitted, source: Source, *, unknown: str = "error", seed: int = 0) -> Rows:
    """Read rows for a model.

    Args:
        unknown: treatment of a word that the training data lack: "error" or "missing".
        seed: added to the seed of the run's binarisation, if that is random.

    Raises:
        UserError: names the source, the place and the remedy.
    """
    path = Path(source).expanduser() if isinstance(source, str | Path) else None
    if path is not None and path.suffix.lower() not in SUFFIXES:
        return _array_rows(fit, path, seed)
    if path is not None and is_large_own_file(path):
        return _stored_rows(fit, path, unknown)
    label, present = fit.identity.get("label"), table_column_names(source if path is None else path)
    ids = [name for name in (*fit.identity.get("ids", ()), label) if name in present]
    drop = [name for name in fit.identity.get("drop", ()) if name in present]
    if path is None:
        table = table_from_frame(source, drop=drop, ids=ids)
    else:
        table = read_table(path, drop=drop, ids=ids)
    columns = _wanted(fit, table.names, table.where)
    values = to_values(table, columns, unknown=unknown)
    carried = {name: cells for name, cells in table.ids.items() if name != label}
    examples = _model_rows(fit, values, table.where, _label_indices(fit, table))
    return Rows(values, examples, carried, columns=columns, text=table.text)


def _wanted(fit: Fitted, names: Sequence[str], where: str) -> tuple[Column, ...]:
    """The columns of a table that the model reads."""
    columns = fit.columns or named_columns(names, fit.vae.kind, len(names))
    if len(columns) != fit.vae.n_data:
        raise UserError(
            f"{where} has {len(columns)} columns, but {fit.where} was trained on data with "
            f"{fit.vae.n_data}"
        )
    return columns


def _stored_rows(fit: Fitted, path: Path, unknown: str) -> Rows:
    """The rows of a large .parquet file, read on demand."""
    if isinstance(fit.model, ConditionalVAE):
        raise UserError(
            f"{path} is too large to be read at once, which a conditional model needs: split it"
        )
    label, present = fit.identity.get("label"), table_column_names(path)
    ids = [name for name in fit.identity.get("ids", ()) if name in present]
    drop = [name for name in (*fit.identity.get("drop", ()), label) if name in present]
    names = [name for name in present if name not in {*ids, *drop}]
    columns = _wanted(fit, names, str(path))
    values = streamed_values(
        path, stream_tables(path, drop=drop, ids=ids), columns, unknown=unknown
    )
    check_array(str(path), "data", values, place=streamed_places(columns), missing=True)
    examples = _model_rows(fit, values, str(path), None)
    return Rows(values, examples, streamed_cells(path, ids), columns=columns)


def _array_rows(fit: Fitted, path: Path, seed: int) -> Rows:
    """The rows of an .npy file or a folder of images."""
    if path.is_dir():
        has_run = (fit.where / "config.toml").is_file()
        images = read_images(path, folder_config(fit.where).resize if has_run else None)
        pixels = images.pixels
        is_colour = fit.identity.get("shape") == [*pixels.shape[1:], 3]
        array: Examples = grey_to_colour(pixels) if is_colour else pixels
        ids, words = {"file": images.ids}, images.labels
    else:
        arrays, ids = read_arrays(path), {}
        words = arrays.pop("labels", None)
        if list(arrays) != ["data"]:
            raise UserError(
                f"{path} is an .npz file by its content, whose arrays are not data and perhaps "
                "labels: rename them, or save the table of rows with np.save"
            )
        array = stored(arrays["data"])
    check_array(str(path), "data", array, missing=True)
    _refuse_shape(fit, path, array.shape[1:])
    rows = flat_rows(array)
    if rows.shape[1] != fit.vae.n_data:
        unit = "columns" if array.ndim == 2 else "values an example"
        raise UserError(
            f"{path} has {rows.shape[1]} {unit}, but {fit.where} was trained on data with "
            f"{fit.vae.n_data}"
        )
    white = 255 if fit.identity.get("values") == "grey" and array.dtype == np.uint8 else 1
    values: Examples = convert_rows(
        rows, lambda block, _: block.astype(np.float64) / white, np.float64
    )
    labels = None
    if isinstance(fit.model, ConditionalVAE) and words is not None:
        if words.shape != rows.shape[:1]:
            raise UserError(f"{path} has {len(rows)} examples, but labels of shape {words.shape}")
        labels = _class_indices(fit, str(path), words)
    if reads_binarized_rows(fit):
        values = _binarized(fit, values, str(path), seed)
    return Rows(values, _model_rows(fit, values, str(path), labels), ids, array)


def reads_binarized_rows(fit: Fitted) -> bool:
    """Whether grey levels are binarised at random for a model."""
    return fit.identity.get("binarization", "none") in ("dynamic", "static")


def _binarized(fit: Fitted, values: Examples, where: str, seed: int) -> Examples:
    """Pixels that are 1 with the probability of their grey level.

    For a test set, seed i gives its draw i (`iwae.data.binarisation`).
    """
    for _, block in row_blocks(values):
        if not (np.nanmin(block) >= 0 and np.nanmax(block) <= 1):
            raise UserError(f"{where} has values beyond 0 and 1, which are no grey levels")
    seed += fit.identity.get("binarization_seed") or 0
    if seed < 0:
        raise UserError(f"the seed of the binarisation is {seed}: give one of at least 0")
    draw = partial(binarise_at_random, seed=seed, stream=TEST_DRAW)
    return convert_rows(values, lambda *some: draw(*some).astype(np.float64), np.float64)


def _refuse_shape(fit: Fitted, path: Path, shape: Sequence[int]) -> None:
    """Raise UserError for images of another shape, even with as many values (turned images)."""
    found, known = ([n for n in one if n > 1] for one in (shape, fit.identity.get("shape", ())))
    if len(shape) > 1 and len(known) > 1 and found != known:
        given, trained = (" x ".join(map(str, one)) for one in (shape, fit.identity["shape"]))
        raise UserError(
            f"{path} has examples of {given}, but {fit.where} was trained on examples of "
            f"{trained}: turn or resize them"
        )


def _model_rows(fit: Fitted, values: Examples, where: str, labels: np.ndarray | None) -> Examples:
    """The rows in the units of the model, with their labels if it is conditional."""
    if isinstance(fit.model, ConditionalVAE) and labels is None:
        name = fit.identity.get("label")
        source = (
            f"a table with the column {name!r}, which holds them"
            if name
            else "a folder of images in sub-folders of their labels, or an .npz file of data and "
            "labels"
        )
        raise UserError(f"{fit.where} is conditional, and {where} has no labels: give {source}")
    missing = fit.vae.missing is not None
    for start, block in row_blocks(values) if not missing else ():
        _refuse_gaps(fit, block, start, where)
    if fit.identity.get("binarization") == "threshold":
        values = convert_rows(values, lambda block, _: (block > 0.5).astype(np.float64), np.float64)
    check_kind_values(values, fit.vae.kind, where, missing=missing)
    inner = convert_rows(values, lambda block, _: fit.inwards(block), np.float32)
    if isinstance(values, np.ndarray) or labels is not None:
        rows = rows_in_memory(inner)
        if labels is None:
            return rows
        return conditional_examples(rows, labels, len(fit.identity["classes"]))
    return inner


def _refuse_gaps(fit: Fitted, values: np.ndarray, first: int, where: str) -> None:
    """Raise UserError for a missing value in a block of rows that begins at row `first`."""
    gaps = np.argwhere(np.isnan(values))
    if len(gaps):
        row, column = (int(i) for i in gaps[0])
        name = repr(fit.columns[column].name) if fit.columns else column + 1
        raise UserError(
            f"{where} has no value in row {first + row + 1}, column {name}, and {fit.where} was "
            "not made for missing values: train with --missing at-random"
        )


def _label_indices(fit: Fitted, table: Table) -> np.ndarray | None:
    """The label of each row as an index into the classes; None for an unconditional model."""
    name = fit.identity.get("label")
    if not isinstance(fit.model, ConditionalVAE) or name is None:
        return None
    if name not in table.ids:
        raise UserError(f"{table.where} lacks the column {name!r}, which holds the labels")
    return _class_indices(fit, table.where, as_labels(table, name))


def _class_indices(fit: Fitted, where: str, labels: np.ndarray) -> np.ndarray:
    """Labels as indices into the classes of a model."""
    classes = {word: place for place, word in enumerate(fit.identity["classes"])}
    words = list(map(str, labels))
    unknown = next((word for word in words if word not in classes), None)
    if unknown is not None:
        known = ", ".join(list(classes)[:10])
        raise UserError(f"{where} has the label {unknown!r}; {fit.where} knows {known}")
    return np.array([classes[word] for word in words])

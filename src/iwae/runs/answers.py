"""Answers of a trained model about a person's rows: latents, scores, samples, completed tables.

Rows come from a file, a folder of images or a data frame with the columns of the training data, in
any order; answers have the order of the rows, and the columns that were carried through.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from iwae.data.arrays import check_array, read_arrays
from iwae.data.columns import Column, codes_of, from_json, given_columns, to_cells, to_values
from iwae.data.delimited import is_number
from iwae.data.images import in_colour, read_images
from iwae.data.kinds import check_values
from iwae.data.own import is_large
from iwae.data.parquet import cells_of, pieces, places, stored_values
from iwae.data.rows import Examples, blocks, converted, flat, kept, stored
from iwae.data.sampling import TEST_DRAW
from iwae.data.scaling import Scaling, scaling_from
from iwae.data.splits import bernoulli
from iwae.data.tables import SUFFIXES, Table, Text, as_labels, frame_table, names_in, read_table
from iwae.errors import UserError
from iwae.evaluation.conditioning import Given, sample_given
from iwae.evaluation.imputation import Imputed, imputed_slabs, joined
from iwae.evaluation.scores import cross_p_values, encode_slabs, score, score_slabs
from iwae.models.conditional import ConditionalVAE, Model, with_labels, without_labels
from iwae.models.likelihoods import complete
from iwae.models.vae import VAE
from iwae.runs.folder import run_config
from iwae.runs.folds import has_folds, load_folds
from iwae.runs.models import DESCRIPTION, load_model, read_about
from iwae.runs.setup import (
    load_config_dataset,
    model_folder,
    split_examples,
    trained_model,
    warn_unfinished,
)

Source = Any
"""The path of a file or of a folder of images, or a data frame."""

Cells = dict[str, np.ndarray]
"""The columns of an answer, `[n]` each, by name."""


class Fitted(NamedTuple):
    """A trained model with all that it takes to read rows for it.

    Attributes:
        model: the model.
        columns: those of the training data; empty if these were an array.
        scaling: of its values; None if they are not standardised.
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
        return without_labels(self.model)

    @property
    def units(self) -> Scaling:
        """The scaling of the values, which may be that of the units of the data themselves."""
        d = self.vae.n_data
        return self.scaling or Scaling(np.zeros(d), np.ones(d))

    def inwards(self, values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Values in the units of the model, float32."""
        return self.units.inwards(values)

    def outwards(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Values in the units of the data, float64, without digits that float32 did not have."""
        wide = self.units.outwards(np.asarray(rows, np.float64))
        each = zip(wide.T, *self.units, strict=True)
        return np.stack([_rounded(*one) for one in each], axis=1)


def _rounded(column: Float[np.ndarray, " n"], shift: float, scale: float) -> np.ndarray:
    """A column, to the digits that float32 had of the values in the model."""
    if (shift, scale) == (0.0, 1.0):
        return column.astype(np.float32).astype(str).astype(np.float64)
    return np.round(column, 6 - math.floor(math.log10(scale)))


class Rows(NamedTuple):
    """Rows to answer about.

    Those of an .npy file, and of a table of `own.LARGE` or more, are read when they are needed.

    Attributes:
        values: `[n, d]`, float64, in the units of the data; NaN where missing.
        examples: the same as the model takes them, float32.
        ids: columns to carry through, by name.
        array: the rows as they were, if they are an array; None for a table.
        columns: of a table, in the order of the values; empty for an array.
        text: the form of its file, if that is text.
    """

    values: Examples
    examples: Examples
    ids: Mapping[str, Examples]
    array: Examples | None = None
    columns: tuple[Column, ...] = ()
    text: Text | None = None

    def carried(self, first: int, last: int) -> Cells:
        """The columns to carry through, of some of the rows."""
        return {name: cells[first:last] for name, cells in self.ids.items()}


def fitted(folder: Path, weights: str | None = None) -> Fitted:
    """The first model of a run, or the model in an exported folder.

    Args:
        weights: "final" or "best" of a run; by default the best, if anything was held out.

    Raises:
        UserError: if there is no such model.
    """
    if (folder / DESCRIPTION).is_file():
        if weights is not None:
            raise UserError(f"{folder} holds a single model: leave out weights")
        model, about = load_model(folder), read_about(folder)
    else:
        chosen = weights or ("best" if model_folder(folder, "best", 0).is_dir() else "final")
        model = trained_model(folder, chosen, 0)
        if (folder / "config.toml").is_file():
            warn_unfinished(folder)
        about = read_about(model_folder(folder, chosen, 0))
    identity = about.get("dataset") or {}
    vae = without_labels(model)
    scaling = identity.get("scaling")
    return Fitted(
        model,
        _columns(identity, vae),
        None if scaling is None else scaling_from(scaling, vae.n_data),
        identity,
        folder,
    )


def _columns(identity: Mapping[str, Any], vae: VAE) -> tuple[Column, ...]:
    """The columns of a run's data; of older runs only the names are known."""
    found = identity.get("columns", ())
    if found and isinstance(found[0], str):
        return given_columns(found, vae.kind, len(found))
    return from_json(found)


# --- rows in ---------------------------------------------------------------------------------


def read_rows(fit: Fitted, source: Source, *, unknown: str = "error", seed: int = 0) -> Rows:
    """Read rows for a model.

    Args:
        unknown: treatment of a word that the training data do not have: "error" or "missing".
        seed: added to that of the run's binarisation, if its grey levels are binarised at random.

    Raises:
        UserError: names the source, the place and the remedy.
    """
    path = Path(source).expanduser() if isinstance(source, str | Path) else None
    if path is not None and path.suffix.lower() not in SUFFIXES:
        return _array_rows(fit, path, seed)
    if path is not None and is_large(path):
        return _stored_rows(fit, path, unknown)
    drop, ids = (list(fit.identity.get(name, ())) for name in ("drop", "ids"))
    label = fit.identity.get("label")
    present = names_in(source if path is None else path)
    ids = [name for name in (*ids, *([label] if label else [])) if name in present]
    drop = [name for name in drop if name in present]
    if path is None:
        table = frame_table(source, drop=drop, ids=ids)
    else:
        table = read_table(path, drop=drop, ids=ids)
    columns = _wanted(fit, table.names, table.where)
    values = to_values(table, columns, unknown=unknown)
    carried = {name: cells for name, cells in table.ids.items() if name != label}
    examples = _examples(fit, values, table.where, _labels(fit, table))
    return Rows(values, examples, carried, columns=columns, text=table.text)


def _wanted(fit: Fitted, names: Sequence[str], where: str) -> tuple[Column, ...]:
    """The columns of a table that the model takes."""
    columns = fit.columns or given_columns(names, fit.vae.kind, len(names))
    if len(columns) != fit.vae.n_data:
        raise UserError(
            f"{where} has {len(columns)} columns, but {fit.where} was trained on data with "
            f"{fit.vae.n_data}"
        )
    return columns


def _stored_rows(fit: Fitted, path: Path, unknown: str) -> Rows:
    """The rows of a .parquet file as numbers on disk, and its carried columns as it stores them."""
    if isinstance(fit.model, ConditionalVAE):
        raise UserError(
            f"{path} is too large to be read at once, which a conditional model needs: split it"
        )
    label = fit.identity.get("label")
    present = names_in(path)
    ids = [one for one in fit.identity.get("ids", ()) if one in present]
    drop = [one for one in (*fit.identity.get("drop", ()), label) if one in present]
    names = [name for name in present if name not in {*ids, *drop}]
    columns = _wanted(fit, names, str(path))
    values = stored_values(path, pieces(path, drop=drop, ids=ids), columns, unknown=unknown)
    check_array(str(path), "data", values, place=places(columns), missing=True)
    examples = _examples(fit, values, str(path), None)
    return Rows(values, examples, cells_of(path, ids), columns=columns)


def _array_rows(fit: Fitted, path: Path, seed: int) -> Rows:
    """The rows of an .npy file or a folder of images."""
    if path.is_dir():
        has_run = (fit.where / "config.toml").is_file()
        images = read_images(path, run_config(fit.where).resize if has_run else None)
        pixels = images.pixels
        is_colour = fit.identity.get("shape") == [*pixels.shape[1:], 3]
        array: Examples = in_colour(pixels) if is_colour else pixels
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
    rows = flat(array)
    if rows.shape[1] != fit.vae.n_data:
        what = "columns" if array.ndim == 2 else "values an example"
        raise UserError(
            f"{path} has {rows.shape[1]} {what}, but {fit.where} was trained on data with "
            f"{fit.vae.n_data}"
        )
    white = 255 if fit.identity.get("values") == "grey" and array.dtype == np.uint8 else 1
    values: Examples = converted(
        rows, lambda block, _: block.astype(np.float64) / white, np.float64
    )
    labels = None
    if isinstance(fit.model, ConditionalVAE) and words is not None:
        if words.shape != rows.shape[:1]:
            raise UserError(f"{path} has {len(rows)} examples, but labels of shape {words.shape}")
        labels = _classes(fit, str(path), words)
    if binarized_at_random(fit):
        values = _binarized(fit, values, str(path), seed)
    return Rows(values, _examples(fit, values, str(path), labels), ids, array)


def binarized_at_random(fit: Fitted) -> bool:
    """Whether grey levels are binarised by chance for a model."""
    return fit.identity.get("binarization", "none") in ("dynamic", "static")


def _binarized(fit: Fitted, values: Examples, where: str, seed: int) -> Examples:
    """A draw of pixels, which are 1 with the probability of their grey level.

    Seed i gives the pixels of a test set those of its draw i (`iwae.data.draws`).
    """
    for _, block in blocks(values):
        if not (np.nanmin(block) >= 0 and np.nanmax(block) <= 1):
            raise UserError(f"{where} has values beyond 0 and 1, which are no grey levels")
    seed += fit.identity.get("binarization_seed") or 0
    if seed < 0:
        raise UserError(f"the seed of the binarisation is {seed}: give one of at least 0")
    draw = partial(bernoulli, seed=seed, stream=TEST_DRAW)
    return converted(values, lambda *some: draw(*some).astype(np.float64), np.float64)


def _refuse_shape(fit: Fitted, path: Path, shape: Sequence[int]) -> None:
    """Raise UserError for images of another shape, even one of as many values, such as turned."""
    found, known = ([n for n in one if n > 1] for one in (shape, fit.identity.get("shape", ())))
    if len(shape) > 1 and len(known) > 1 and found != known:
        its, trained = (" x ".join(map(str, one)) for one in (shape, fit.identity["shape"]))
        raise UserError(
            f"{path} has examples of {its}, but {fit.where} was trained on examples of {trained}: "
            "turn or resize them"
        )


def _examples(fit: Fitted, values: Examples, where: str, labels: np.ndarray | None) -> Examples:
    """The rows in the units of the model, followed by their labels if it is conditional."""
    if isinstance(fit.model, ConditionalVAE) and labels is None:
        name = fit.identity.get("label")
        named = f"a table with the column {name!r}, which holds them"
        arrays = "an .npz file of data and labels"
        source = (
            named if name else f"a folder of images in sub-folders of their labels, or {arrays}"
        )
        raise UserError(f"{fit.where} is conditional, and {where} has no labels: give {source}")
    missing = fit.vae.missing is not None
    for start, block in blocks(values) if not missing else ():
        _refuse_gaps(fit, block, start, where)
    if fit.identity.get("binarization") == "threshold":
        values = converted(values, lambda block, _: (block > 0.5).astype(np.float64), np.float64)
    check_values(values, fit.vae.kind, where, missing=missing)
    inner = converted(values, lambda block, _: fit.inwards(block), np.float32)
    if isinstance(values, np.ndarray) or labels is not None:
        rows = kept(inner)
        return rows if labels is None else with_labels(rows, labels, len(fit.identity["classes"]))
    return inner


def _refuse_gaps(fit: Fitted, values: np.ndarray, first: int, where: str) -> None:
    """Raise UserError for a missing value among the rows from the first on."""
    gaps = np.argwhere(np.isnan(values))
    if len(gaps):
        row, column = (int(i) for i in gaps[0])
        name = repr(fit.columns[column].name) if fit.columns else column + 1
        raise UserError(
            f"{where} has no value in row {first + row + 1}, column {name}, and {fit.where} was "
            "not made for missing values: train with --missing at-random"
        )


def _labels(fit: Fitted, table: Table) -> np.ndarray | None:
    """The label of each row as an index into the classes; None if the model takes none."""
    name = fit.identity.get("label")
    if not isinstance(fit.model, ConditionalVAE) or name is None:
        return None
    if name not in table.ids:
        raise UserError(f"{table.where} lacks the column {name!r}, which holds the labels")
    return _classes(fit, table.where, as_labels(table, name))


def _classes(fit: Fitted, where: str, labels: np.ndarray) -> np.ndarray:
    """The index of each label into the classes of a model."""
    classes = {word: place for place, word in enumerate(fit.identity["classes"])}
    words = list(map(str, labels))
    odd = next((word for word in words if word not in classes), None)
    if odd is not None:
        known = ", ".join(list(classes)[:10])
        raise UserError(f"{where} has the label {odd!r}; {fit.where} knows {known}")
    return np.array([classes[word] for word in words])


# --- answers out -----------------------------------------------------------------------------


def encode_rows(
    run: Path,
    source: Source,
    *,
    k: int | None = None,
    weights: str | None = None,
    unknown: str = "error",
    seed: int = 0,
) -> Cells:
    """Mean and standard deviation of the latents of each row: columns `z1`, ..., `z1_sd`, ...

    Args:
        k: importance samples per row, for the true posterior; None for the encoder.
        weights: as for `fitted`.
        unknown: as for `read_rows`.

    Raises:
        UserError: if the model or the rows cannot be read, or do not fit.
    """
    return _whole(encode_pieces(run, source, k=k, weights=weights, unknown=unknown, seed=seed)[1])


def encode_pieces(
    run: Path,
    source: Source,
    *,
    k: int | None = None,
    weights: str | None = None,
    unknown: str = "error",
    seed: int = 0,
) -> tuple[int, Iterator[Cells]]:
    """The number of rows, and `encode_rows` piece by piece."""
    fit = fitted(run, weights)
    rows = read_rows(fit, source, unknown=unknown, seed=seed)

    def pieces() -> Iterator[Cells]:
        done = 0
        for found in encode_slabs(fit.model, rows.examples, jax.random.key(seed), k=k):
            mean, scale = (one.astype(np.float32).T for one in found)  # the digits that they have
            means = {f"z{i}": one for i, one in enumerate(mean, start=1)}
            scales = {f"z{i}_sd": one for i, one in enumerate(scale, start=1)}
            last = done + len(found.mean)
            yield _joined(rows.carried(done, last), {**means, **scales})
            done = last

    return len(rows.values), pieces()


def score_rows(
    run: Path,
    source: Source,
    *,
    k: int = 1000,
    weights: str | None = None,
    unknown: str = "error",
    data_dir: Path | None = None,
    p_values: bool = True,
    seed: int = 0,
) -> Cells:
    """Log-likelihood of each row, nats, with its error, k-hat and a p-value for being an outlier.

    Args:
        k: importance samples per row.
        data_dir: folder to search first for the training data.
        p_values: compare with the rows that the run held out from training. This needs its data.

    Raises:
        UserError: if the model or the rows cannot be read or do not fit; or if nothing was held
            out.
    """
    _, pieces = score_pieces(
        run,
        source,
        k=k,
        weights=weights,
        unknown=unknown,
        data_dir=data_dir,
        p_values=p_values,
        seed=seed,
    )
    return _whole(pieces)


def score_pieces(
    run: Path,
    source: Source,
    *,
    k: int = 1000,
    weights: str | None = None,
    unknown: str = "error",
    data_dir: Path | None = None,
    p_values: bool = True,
    seed: int = 0,
) -> tuple[int, Iterator[Cells]]:
    """The number of rows, and `score_rows` piece by piece."""
    fit, (key, held_out_key) = fitted(run, weights), jax.random.split(jax.random.key(seed))
    rows = read_rows(fit, source, unknown=unknown, seed=seed)
    judges = _judges(fit, data_dir) if p_values else []
    references = [
        score(model, held_out, jax.random.fold_in(held_out_key, i) if i else held_out_key, k=k)
        for i, (model, held_out) in enumerate(judges)
    ]
    # The model itself, if rows were held out from it, needs no second score.
    others = [model for model, _ in judges if model is not fit.model]

    def pieces() -> Iterator[Cells]:
        done = 0
        slabs = (score_slabs(model, rows.examples, key, k=k) for model in (fit.model, *others))
        for found, *judged in zip(*slabs, strict=True):
            cells = {
                "log_likelihood": found.log_likelihood.astype(np.float32),
                "monte_carlo_error": found.error.astype(np.float32),
                "pareto_k": found.pareto_k.astype(np.float32),
            }
            if references:
                cells["p_value"] = cross_p_values(
                    [one.log_likelihood for one in judged or [found]],
                    [one.log_likelihood for one in references],
                )
            last = done + len(found.error)
            yield _joined(rows.carried(done, last), cells)
            done = last

    return len(rows.values), pieces()


def _whole(pieces: Iterator[Cells]) -> Cells:
    """All pieces of an answer."""
    found = [*pieces]
    return {name: np.concatenate([cells[name] for cells in found]) for name in found[0]}


def _judges(fit: Fitted, data_dir: Path | None) -> list[tuple[Model, Examples]]:
    """Models, and examples that each has not seen: those held out from a run, or from its folds."""
    remedy = "leave out the p-values (--no-p-values)"
    if not (fit.where / "config.toml").is_file():
        raise UserError(f"{fit.where} is a model without its data: {remedy}")
    data = load_config_dataset(run_config(fit.where), data_dir)
    if not (len(data.validation) or has_folds(fit.where)):
        raise UserError(
            f"{fit.where} held no rows out from training, so outliers cannot be judged: {remedy}, "
            "or train with --validation 0.1"
        )
    if any(data.identity.get(name) != fit.identity.get(name) for name in _DIGESTS):
        raise UserError(f"the data of {fit.where} have changed since it was trained: {remedy}")
    if len(data.validation):
        return [(fit.model, split_examples(data, "validation"))]
    rows, folds = np.asarray(data.examples("train")), load_folds(fit.where, data)
    return [(model, rows[folds.fold_of == i]) for i, model in enumerate(folds.models)]


_DIGESTS = ("test_sha256", "validation_sha256")
"""The parts of a data set's identity that say which rows were held out."""


def sample_rows(
    run: Path,
    n: int,
    *,
    given: Mapping[str, str] | None = None,
    k: int = 100_000,
    method: str = "is",
    weights: str | None = None,
    seed: int = 0,
) -> tuple[Cells, Given | None]:
    """Rows drawn from the model, and how well they are if some values are given: ESS and k-hat.

    Rows of a conditional model have a first column of their labels, drawn as often as in training.

    Args:
        n: number of rows.
        given: values of some columns, as words: rows are then draws of the others given these.
        k, method: as for `iwae.evaluation.conditioning.sample_given`.

    Raises:
        UserError: if there is no such column, a value is invalid, or too few particles are
            effective.
    """
    fit, key = fitted(run, weights), jax.random.key(seed)
    if n < 1:
        raise UserError(f"n is {n}; it must be at least 1")
    if not given:
        rows, labels = _drawn(fit.model, key, n)
        named = {} if labels is None else {label_of(fit): as_classes(fit, labels)}
        return _joined(named, as_cells(fit, rows)), None
    if isinstance(fit.model, ConditionalVAE):
        raise UserError(
            f"{fit.where} is conditional, and cannot be given values of columns too: train without "
            "--conditional"
        )
    known = fit.inwards(_known(fit, given))[0]
    found = sample_given(fit.model, known, key, n, k=k, method=method)
    return as_cells(fit, found.rows), found


def _known(fit: Fitted, given: Mapping[str, str]) -> Float[np.ndarray, "1 d"]:
    """A row of the given values, NaN elsewhere, in the units of the data."""
    columns = fit.columns or tuple(Column(str(i + 1), "") for i in range(fit.vae.n_data))
    names = [column.name for column in columns]
    for name in given:
        if name not in names:
            raise UserError(f"given: {fit.where} has no column {name!r}; it has {', '.join(names)}")
    row = np.full((1, len(columns)), np.nan)
    for j, column in enumerate(columns):
        if column.name in given:
            row[0, j] = _value(column, given[column.name])
    check_values(row, fit.vae.kind, "given", missing=True)
    return row


def _value(column: Column, word: str) -> float:
    codes = codes_of(column)
    if codes:
        if word not in codes:
            raise UserError(
                f"given: {column.name} has no level {word!r}; known: {', '.join(column.levels)}"
            )
        return codes[word]
    if not is_number(word) or not math.isfinite(float(word)):  # which takes 1_0 and nan too
        raise UserError(f"given: {column.name} is a number, not {word!r}")
    return float(word)


def _drawn(model: Model, key: Any, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows without missing values, and the index of the label of each from a conditional model."""

    def one(key: Any) -> Any:
        z_key, x_key = jax.random.split(key)
        z, x = model.sample(z_key)
        given, values = model.condition(x)
        row = jnp.asarray(complete(given.decode(z)).sample(x_key), jnp.float32)
        return row, jnp.argmax(x[len(values) :]) if isinstance(model, ConditionalVAE) else None

    keys = jax.random.split(key, n)
    rows, labels = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=1000))(keys)
    return np.asarray(rows), None if labels is None else np.asarray(labels)


def label_of(fit: Fitted) -> str:
    """The name of the labels of a conditional model: that of their column in a table, or label."""
    return fit.identity.get("label") or "label"


def as_classes(fit: Fitted, labels: np.ndarray) -> np.ndarray:
    """Labels by their indices, as words, or as whole numbers if all of them are."""
    words = list(fit.identity["classes"])
    return np.array(words, int if all(map(is_number, words)) else object)[labels]


def impute_rows(
    run: Path,
    source: Source,
    *,
    draws: int | None = None,
    k: int = 1000,
    anneal: bool = True,
    weights: str | None = None,
    unknown: str = "error",
    seed: int = 0,
    batch_size: int | None = None,
) -> tuple[Rows, Imputed]:
    """Rows with values in place of missing ones: expectations, or several draws.

    Args:
        anneal: impute rows whose k-hat is above its threshold again, by annealed importance
            sampling.

    Returns:
        The rows, and `iwae.evaluation.imputation.Imputed`: the completed values `[draws, n, d]` in
        the units of the data, `[1, n, d]` of expectations, and k-hat of the weights behind them.

    Raises:
        UserError: if the model was not made for missing values, or the rows do not fit.
    """
    rows, pieces = impute_pieces(
        run,
        source,
        draws=draws,
        k=k,
        anneal=anneal,
        weights=weights,
        unknown=unknown,
        seed=seed,
        batch_size=batch_size,
    )
    return rows, joined(pieces, axis=1)


def impute_pieces(
    run: Path,
    source: Source,
    *,
    draws: int | None = None,
    k: int = 1000,
    anneal: bool = True,
    weights: str | None = None,
    unknown: str = "error",
    seed: int = 0,
    batch_size: int | None = None,
) -> tuple[Rows, Iterator[Imputed]]:
    """The rows, and piece by piece the completed values `[draws, m, d]` of `impute_rows`."""
    fit, key = fitted(run, weights), jax.random.key(seed)
    if isinstance(fit.model, ConditionalVAE):
        raise UserError(
            f"{run} is conditional, and such models cannot impute: train without --conditional"
        )
    rows = read_rows(fit, source, unknown=unknown)

    def pieces() -> Iterator[Imputed]:
        done = 0
        slabs = imputed_slabs(
            fit.model, rows.examples, key, draws=draws, k=k, batch_size=batch_size, anneal=anneal
        )
        for slab in slabs:
            values = rows.values[done : done + len(slab.pareto_k)]
            done += len(values)
            filled = slab.values[None] if draws is None else slab.values
            whole = np.stack([np.where(np.isnan(values), fit.outwards(x), values) for x in filled])
            yield slab._replace(values=whole)

    return rows, pieces()


def as_cells(fit: Fitted, rows: Float[np.ndarray, "n d"]) -> Cells:
    """Rows of the model as columns in the units and words of the data."""
    values = fit.outwards(rows)
    if fit.columns:
        return to_cells(values, fit.columns)
    return {str(i + 1): one for i, one in enumerate(values.T)}


def _joined(ids: Cells, found: Cells) -> Cells:
    """Carried columns and results, or UserError if two have the same name."""
    same = ids.keys() & found.keys()
    if same:
        raise UserError(f"the carried column {min(same)!r} has the name of a result: rename it")
    return {**ids, **found}

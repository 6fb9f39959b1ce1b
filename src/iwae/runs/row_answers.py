"""Answers of a trained model about a user's rows: latents, scores, samples, imputed values.

Answers have the order of the rows, after the columns that are carried through.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from iwae.data.cells import is_number_cell
from iwae.data.coding import codes_of, decode_cells
from iwae.data.columns import Column
from iwae.data.kinds import check_kind_values
from iwae.data.rows import Examples
from iwae.errors import UserError
from iwae.evaluation.conditional_sampling import Given, sample_given
from iwae.evaluation.encoding import encode_slabs
from iwae.evaluation.imputation import Imputed, imputed_slabs, join_imputed
from iwae.evaluation.scores import cross_outlier_p_values, score, score_slabs
from iwae.models.conditional import ConditionalVAE, Model
from iwae.models.likelihoods.masking import without_masking
from iwae.runs.folder import folder_config
from iwae.runs.folds import has_folds, load_folds
from iwae.runs.jobs import load_job_dataset
from iwae.runs.row_reading import Fitted, Rows, Source, read_rows, row_reading_model
from iwae.runs.split_examples import split_examples

Cells = dict[str, np.ndarray]
"""The columns of an answer, `[n]` each, by name."""


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
        weights: as for `row_reading_model`.
        unknown: as for `read_rows`.

    Raises:
        UserError: if the model or the rows cannot be read, or do not fit.
    """
    return _all_of(
        encode_row_pieces(run, source, k=k, weights=weights, unknown=unknown, seed=seed)[1]
    )


def encode_row_pieces(
    run: Path,
    source: Source,
    *,
    k: int | None = None,
    weights: str | None = None,
    unknown: str = "error",
    seed: int = 0,
) -> tuple[int, Iterator[Cells]]:
    """The number of rows, and `encode_rows` piece by piece."""
    fit = row_reading_model(run, weights)
    rows = read_rows(fit, source, unknown=unknown, seed=seed)

    def pieces() -> Iterator[Cells]:
        for found in encode_slabs(fit.model, rows.examples, jax.random.key(seed), k=k):
            mean, scale = (one.astype(np.float32).T for one in found)  # the digits that they have
            means = {f"z{i}": one for i, one in enumerate(mean, start=1)}
            yield {**means, **{f"z{i}_sd": one for i, one in enumerate(scale, start=1)}}

    return len(rows.values), _after_ids(rows, pieces())


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
    """Log-likelihood of each row, nats, with its Monte Carlo error, k-hat and an outlier p-value.

    Args:
        k: importance samples per row.
        data_dir: folder to search first for the training data.
        p_values: compare with the rows that the run held out from training, which needs its data.

    Raises:
        UserError: if the model or the rows cannot be read or do not fit; or if nothing was held
            out.
    """
    _, pieces = score_row_pieces(
        run,
        source,
        k=k,
        weights=weights,
        unknown=unknown,
        data_dir=data_dir,
        p_values=p_values,
        seed=seed,
    )
    return _all_of(pieces)


def score_row_pieces(
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
    fit = row_reading_model(run, weights)
    key, held_out_key = jax.random.split(jax.random.key(seed))
    rows = read_rows(fit, source, unknown=unknown, seed=seed)
    judges = _judges(fit, data_dir) if p_values else []
    references = [
        score(model, held_out, jax.random.fold_in(held_out_key, i) if i else held_out_key, k=k)
        for i, (model, held_out) in enumerate(judges)
    ]
    # The model itself, if rows were held out from it, is not scored twice.
    others = [model for model, _ in judges if model is not fit.model]

    def pieces() -> Iterator[Cells]:
        slabs = (score_slabs(model, rows.examples, key, k=k) for model in (fit.model, *others))
        for found, *judged in zip(*slabs, strict=True):
            cells = {
                "log_likelihood": found.log_likelihood.astype(np.float32),
                "monte_carlo_error": found.error.astype(np.float32),
                "pareto_k": found.pareto_k.astype(np.float32),
            }
            if references:
                cells["p_value"] = cross_outlier_p_values(
                    [one.log_likelihood for one in judged or [found]],
                    [one.log_likelihood for one in references],
                )
            yield cells

    return len(rows.values), _after_ids(rows, pieces())


def _after_ids(rows: Rows, pieces: Iterator[Cells]) -> Iterator[Cells]:
    """Pieces of an answer after the columns that are carried through."""
    done = 0
    for cells in pieces:
        last = done + len(next(iter(cells.values())))
        yield _beside({name: ids[done:last] for name, ids in rows.ids.items()}, cells)
        done = last


def _all_of(pieces: Iterator[Cells]) -> Cells:
    found = [*pieces]
    return {name: np.concatenate([cells[name] for cells in found]) for name in found[0]}


def _judges(fit: Fitted, data_dir: Path | None) -> list[tuple[Model, Examples]]:
    """Models with the examples held out from each: from the run, or from each of its folds."""
    remedy = "leave out the p-values (--no-p-values)"
    if not (fit.where / "config.toml").is_file():
        raise UserError(f"{fit.where} is a model without its data: {remedy}")
    data = load_job_dataset(folder_config(fit.where), data_dir)
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
"""Parts of a data set's identity that tell which rows were held out."""


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
    """Rows drawn from the model and, if some values are given, the ESS and k-hat of the draws.

    The first column of a conditional model holds labels, drawn with their training frequencies.

    Args:
        n: number of rows.
        given: values of some columns, as text; rows are then draws of the others given these.
        k, method: as for `iwae.evaluation.conditional_sampling.sample_given`.

    Raises:
        UserError: if there is no such column, a value is invalid, or too few particles are
            effective.
    """
    fit, key = row_reading_model(run, weights), jax.random.key(seed)
    if n < 1:
        raise UserError(f"n is {n}; it must be at least 1")
    if not given:
        rows, labels = _drawn(fit.model, key, n)
        named = {} if labels is None else {label_of(fit): _row_answer_classes(fit, labels)}
        return _beside(named, _as_cells(fit, rows)), None
    if isinstance(fit.model, ConditionalVAE):
        raise UserError(
            f"{fit.where} is conditional, and cannot be given values of columns too: train without "
            "--conditional"
        )
    known = fit.inwards(_known(fit, given))[0]
    found = sample_given(fit.model, known, key, n, k=k, method=method)
    return _as_cells(fit, found.rows), found


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
    check_kind_values(row, fit.vae.kind, "given", missing=True)
    return row


def _value(column: Column, word: str) -> float:
    codes = codes_of(column)
    if codes:
        if word not in codes:
            raise UserError(
                f"given: {column.name} has no level {word!r}; known: {', '.join(column.levels)}"
            )
        return codes[word]
    if not is_number_cell(word) or not math.isfinite(float(word)):  # which takes 1_0 and nan too
        raise UserError(f"given: {column.name} is a number, not {word!r}")
    return float(word)


def _drawn(model: Model, key: Any, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows without missing values and, from a conditional model, the index of each one's label."""

    def one(key: Any) -> Any:
        z_key, x_key = jax.random.split(key)
        z, x = model.sample(z_key)
        given, values = model.condition(x)
        row = jnp.asarray(without_masking(given.decode(z)).sample(x_key), jnp.float32)
        return row, jnp.argmax(x[len(values) :]) if isinstance(model, ConditionalVAE) else None

    keys = jax.random.split(key, n)
    rows, labels = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=1000))(keys)
    return np.asarray(rows), None if labels is None else np.asarray(labels)


def label_of(fit: Fitted) -> str:
    """The name of the label column of a conditional model; `label` where it has none."""
    return fit.identity.get("label") or "label"


def _row_answer_classes(fit: Fitted, labels: np.ndarray) -> np.ndarray:
    """Labels of indices, as text, or as whole numbers if all of them are."""
    words = list(fit.identity["classes"])
    return np.array(words, int if all(map(is_number_cell, words)) else object)[labels]


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
    """Rows with imputed values: expectations, or several draws.

    Args:
        anneal: impute rows whose k-hat is above its threshold again, by annealed importance
            sampling.

    Returns:
        The rows, and `iwae.evaluation.imputation.Imputed`: the completed values `[draws, n, d]` in
        the units of the data, `[1, n, d]` of expectations, and k-hat of the weights behind them.

    Raises:
        UserError: if the model was not made for missing values, or the rows do not fit.
    """
    rows, pieces = impute_row_pieces(
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
    return rows, join_imputed(pieces, axis=1)


def impute_row_pieces(
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
    """The rows, and the completed values `[draws, m, d]` of `impute_rows` piece by piece."""
    fit, key = row_reading_model(run, weights), jax.random.key(seed)
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


def _as_cells(fit: Fitted, rows: Float[np.ndarray, "n d"]) -> Cells:
    """Rows of the model as columns, in the units and words of the data."""
    values = fit.outwards(rows)
    if fit.columns:
        return decode_cells(values, fit.columns)
    return {str(i + 1): one for i, one in enumerate(values.T)}


def _beside(ids: Cells, found: Cells) -> Cells:
    """Carried columns and results; UserError if two have the same name."""
    same = ids.keys() & found.keys()
    if same:
        raise UserError(f"the carried column {min(same)!r} has the name of a result: rename it")
    return {**ids, **found}

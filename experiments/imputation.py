"""Imputation of real tables: `iwae` against scikit-learn, with seeds and error bars.

    python experiments/imputation.py                   # all; a quarter of an hour on a core
    python experiments/imputation.py wine diabetes     # these tables only

Values of each table are hidden at several rates: completely at random, or larger values more often
(by a logistic function of the value). A fifth of the rows, a different one for each seed, is held
out. All methods learn from the incomplete training rows and impute the incomplete held-out rows,
which choose nothing. Each seed is a record in `results/imputation`, with the errors of single
values beside it; existing records are kept. Then `python docs/tools/tables.py` makes the table.
"""

import os
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Literal

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")

import jax
import numpy as np
import tyro
from scipy.special import expit
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - IterativeImputer needs it
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from iwae import VAE, bound, impute, iwae, train
from iwae.data import test_sha256
from iwae.models.likelihoods import observation
from iwae.results.provenance import record_provenance
from iwae.results.record_files import has_record_files, write_record_files

RESULTS = Path(__file__).resolve().parents[1] / "results" / "imputation"

TABLES = {
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
}

SEEDS = 5
HELD_OUT = 0.2

RANDOM, LARGER = "at random", "larger values"
CASES = ((RANDOM, 0.1), (RANDOM, 0.3), (RANDOM, 0.5), (LARGER, 0.3))
"""Mechanisms that hide values, and shares of hidden values."""

STEEPNESS = 3.0
"""Slope of the logistic function that hides larger values, per standard deviation."""

OURS = {
    "iwae, at-random": "at-random",
    "iwae, not-at-random": "not-at-random",
    "iwae, not-at-random-high": "not-at-random-high",
}
"""The last two are used only if larger values are hidden."""

THEIRS = {
    "mean": SimpleImputer,
    "KNNImputer": KNNImputer,
    "IterativeImputer": IterativeImputer,
}
"""Imputers of scikit-learn, by name."""

MODEL = {
    "latent_sizes": (10,),
    "hidden_sizes": ((64, 64),),
    "observation": "gaussian-shared",
}
IMPUTE_K = 1000
STEPS, VALIDATIONS, PATIENCE, BATCH, RATE, K = 2500, 60, 10, 32, 2e-3, 20
"""Settings of each training, the same for all tables and chosen before any was imputed."""

OBJECTIVE = bound(iwae, k=K)


def main(*names: tyro.conf.Positional[Literal[tuple(TABLES)]]) -> None:
    """Write the missing records."""
    for seed, name, (mechanism, share) in product(range(SEEDS), names or TABLES, CASES):
        path = RESULTS / f"{name}-{mechanism}-{share:g}-{seed}.json".replace(" ", "-")
        if not has_record_files(path):
            record, errors = compared(name, mechanism, share, seed)
            write_record_files(path, record, errors)
            print(path.stem, {k: round(v, 3) for k, v in record["rmse"].items()}, flush=True)


def compared(
    name: str, mechanism: str, share: float, seed: int
) -> tuple[dict, dict[str, np.ndarray]]:
    """The record of one seed, and the errors of each method on the hidden values `[n]`."""
    rng = np.random.default_rng(seed)
    rows = TABLES[name]().data
    rows = rows[rng.permutation(len(rows))]
    hidden = hide(rows, mechanism, share, rng)
    gapped = np.where(hidden, np.nan, rows)
    n_test = round(HELD_OUT * len(rows))
    mean, scale = (f(gapped[n_test:], axis=0) for f in (np.nanmean, np.nanstd))
    rows, gapped = (rows - mean) / scale, np.float32((gapped - mean) / scale)
    test, truth = gapped[:n_test], rows[:n_test][hidden[:n_test]]
    unfinished: list[str] = []
    filled = imputed(gapped[n_test:], test, mechanism, seed, unfinished)
    errors = {method: values[hidden[:n_test]] - truth for method, values in filled}
    record = {
        "table": name,
        "mechanism": mechanism,
        "share": share,
        "seed": seed,
        "rmse": {method: float(np.sqrt(np.mean(each**2))) for method, each in errors.items()},
        "not_converged": unfinished,
        "unit": "standard deviations of the observed training values",
        "hidden_share": float(hidden.mean()),
        "sizes": {"train": len(rows) - n_test, "test": n_test, "hidden": len(truth)},
        "model": MODEL,
        "training": {"steps": STEPS, "batch_size": BATCH, "learning_rate": RATE, "k": K},
        "imputation": {"k": IMPUTE_K},
        "test_sha256": test_sha256(np.ascontiguousarray(test)),
        **record_provenance("scikit-learn"),
    }
    return record, errors


def hide(rows: np.ndarray, mechanism: str, share: float, rng: np.random.Generator) -> np.ndarray:
    """The mask of hidden values, `[n, d]`; at least one value of each row remains."""
    probability = np.full(rows.shape, share)
    if mechanism == LARGER:
        standard = (rows - rows.mean(axis=0)) / rows.std(axis=0)
        probability = expit(STEEPNESS * standard - offset(standard, share))
    hidden = rng.random(rows.shape) < probability
    hidden[np.arange(len(rows)), rng.integers(0, rows.shape[1], len(rows))] = False
    return hidden


def offset(standard: np.ndarray, share: float) -> float:
    """The offset at which the logistic function hides this share of all values, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        too_many = expit(STEEPNESS * standard - middle).mean() > share
        low, high = (middle, high) if too_many else (low, middle)
    return middle


def imputed(
    rows: np.ndarray, test: np.ndarray, mechanism: str, seed: int, unfinished: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The imputed test rows of each method; those that did not converge join `unfinished`."""
    for method, make in THEIRS.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            filled = make(keep_empty_features=True).fit(rows).transform(test)
        if any(issubclass(one.category, ConvergenceWarning) for one in caught):
            unfinished.append(method)
        yield method, filled
    for method, missing in OURS.items():
        if mechanism == LARGER or missing == "at-random":
            yield method, ours(rows, test, missing, seed)


def ours(rows: np.ndarray, test: np.ndarray, missing: str, seed: int) -> np.ndarray:
    """Impute the test rows with the weights of the best bound on a fifth of the training rows."""
    init_key, train_key, test_key = jax.random.split(jax.random.key(seed), 3)
    n_validation, d = round(HELD_OUT * len(rows)), rows.shape[1]
    epochs = round(STEPS / ((len(rows) - n_validation) // BATCH))
    data = observation(MODEL["observation"], d, missing)
    model = VAE(
        d,
        **MODEL,
        missing=missing,
        output_bias=data.initial_output(rows[n_validation:]),
        statistics=data.encoding.statistics(rows[n_validation:]),
        key=init_key,
    )
    trained = train(
        model,
        rows[n_validation:],
        OBJECTIVE,
        key=train_key,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=RATE,
        validation=rows[:n_validation],
        validate_every=-(-epochs // VALIDATIONS),
        patience=PATIENCE,
    )
    return impute(trained.best, test, test_key, k=IMPUTE_K)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

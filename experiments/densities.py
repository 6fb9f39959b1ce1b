"""Held-out densities of the estimator at its defaults and of Gaussian mixtures chosen by BIC.

    python experiments/densities.py [NAME ...]

Each split of each data set is one record in `results/densities/`, with the densities of its test
rows beside it, and existing records are kept. The mixture is chosen on the training rows, among all
forms of covariance, with more components until the criterion has risen twice. Nothing is chosen on
the test rows.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from iwae import ImportanceWeightedAutoencoder
from iwae.results.provenance import record_provenance
from iwae.results.record_files import has_record_files, write_record_files
from iwae.results.summaries import summarise_mean
from iwae.sklearn.parameters import plain_parameters

RESULTS = Path(__file__).parents[1] / "results" / "densities"
SPLITS = {"digits": 5, "breast-cancer": 20, "curved": 5}
"""Number of splits; the fewer the rows, the more splits a mean needs."""
COMPONENTS = (1, 2, 3, 5, 8, 12, 20, 30, 45, 65, 100, 150)
COVARIANCES = ("full", "tied", "diag", "spherical")
STARTS = 2
"""Fits of each mixture from different centres; the likeliest counts."""


def digits() -> np.ndarray:
    """8x8 images of 17 levels, with uniform noise of one level, as a density needs."""
    noise = np.random.default_rng(0).uniform(size=(1797, 64))
    return (load_digits().data + noise) / 17


def breast_cancer() -> np.ndarray:
    """Thirty measurements of 569 cell nuclei."""
    return load_breast_cancer().data


def curved() -> np.ndarray:
    """12,500 rows in 50 columns near a curved five-dimensional surface."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(12_500, 5))
    hidden = np.sin(1.5 * z @ rng.normal(size=(5, 30)) + rng.uniform(0, 2 * np.pi, 30))
    return hidden @ rng.normal(size=(30, 50)) / np.sqrt(30) + 0.2 * rng.normal(size=(12_500, 50))


SETS: dict[str, Callable[[], np.ndarray]] = {
    "digits": digits,
    "breast-cancer": breast_cancer,
    "curved": curved,
}


def mixture(train: np.ndarray, seed: int) -> tuple[GaussianMixture, dict[str, float]]:
    """The Gaussian mixture with the lowest BIC, and the BIC of all mixtures tried.

    For each form of covariance, more components are tried until the criterion has risen twice.
    """
    tried: dict[str, float] = {}
    fits = []
    for covariance in COVARIANCES:
        rising, lowest = 0, np.inf
        for n in COMPONENTS:
            if n * 5 > len(train) or rising == 2:
                break
            one = GaussianMixture(n, covariance_type=covariance, n_init=STARTS, random_state=seed)
            fits.append(one.fit(train))
            tried[f"{n} {covariance}"] = bic = float(one.bic(train))
            rising, lowest = (0, bic) if bic < lowest else (rising + 1, lowest)
    return fits[np.argmin(list(tried.values()))], tried


def measure(rows: np.ndarray, seed: int) -> tuple[dict, dict[str, np.ndarray]]:
    """The record of one split, and the log densities of its test rows by both models, nats."""
    train, test = train_test_split(rows, test_size=0.2, random_state=seed)
    started = time.perf_counter()
    ours = ImportanceWeightedAutoencoder(random_state=seed).fit(train)
    seconds = time.perf_counter() - started
    scaler = StandardScaler().fit(train)
    best, tried = mixture(scaler.transform(train), seed)
    theirs = best.score_samples(scaler.transform(test)) - np.log(scaler.scale_).sum()
    values = ours.score_samples(test)
    record = {
        "seed": seed,
        "train_rows": len(train),
        "test_rows": len(test),
        "columns": rows.shape[1],
        "test_sha256": hashlib.sha256(np.ascontiguousarray(test).tobytes()).hexdigest(),
        "ours": {
            **_summary(values),
            "k": ours.score_k,
            "epochs": ours.n_iter_,
            "fit_seconds": seconds,
        },
        "mixture": {
            **_summary(theirs),
            "components": best.n_components,
            "covariance": best.covariance_type,
            "bic": tried,
        },
        "difference": _summary(values - theirs),
        "parameters": plain_parameters(ours.get_params()),
        **record_provenance("scikit-learn"),
    }
    return record, {"ours": values, "mixture": theirs}


def _summary(values: np.ndarray) -> dict[str, float | None]:
    """The mean and its standard error, for a record."""
    return dict(zip(("mean", "stderr"), summarise_mean(values), strict=True))


def main(*names: tyro.conf.Positional[Literal[tuple(SETS)]]) -> None:
    """Measure all splits of the data sets named, or of all."""
    for name in names or SETS:
        for seed in range(SPLITS[name]):
            path = RESULTS / name / f"split-{seed}.json"
            if has_record_files(path):
                continue
            found, values = measure(SETS[name](), seed)
            record = {"dataset": name, **found}
            write_record_files(path, record, values)
            print(name, seed, record["ours"], record["mixture"], record["difference"], flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

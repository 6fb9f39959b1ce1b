"""A user's own tables: `iwae train`, then `iwae score` or `iwae impute`, against simple methods.

    python benchmarks/own_data.py [--tables wine mixed] [--seed 0] [--json FILE]

Models of tables from scikit-learn, and of one with mixed columns (`mixed`), are trained with the
defaults for a user's own data, in process, by the functions behind the commands. All methods are
tested on a fifth of the rows and learn from the others, of which the estimator and, for tables with
more than 200 rows, `iwae train` hold some out for early stopping. A table of few rows is split five
times, so that each row is tested once, by models that have not seen it.

- Densities, nats per row in the units of the table: against the estimator and a Gaussian of full
  covariance or, for the mixed table, independent columns.
- Imputation: a fifth of all values is hidden. Root mean squared error of the numbers, in standard
  deviations of the complete training rows: against the estimator, column means, scikit-learn's
  IterativeImputer, and the same with random forests, as in missForest (Stekhoven & Bühlmann 2012).
  The last three are given standardised columns, and an indicator for each word.

Errors of differences are over rows, on all of which all methods are tested.
"""

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn import datasets
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 - scikit-learn's switch
from sklearn.impute import IterativeImputer, SimpleImputer

from iwae import ImportanceWeightedAutoencoder, TrainConfig, impute_rows, score_rows, start_run
from iwae.data.held_out import hold_out_fifth
from iwae.files import atomic_write

HIDDEN, K = 0.2, 1000

FEW, SPLITS = 200, 5
"""Maximum number of rows of a table with several splits, and the number of splits."""


def numbers(load: Callable[..., Any], **options: Any) -> pd.DataFrame:
    """The columns of a table from scikit-learn, as real numbers."""
    return load(as_frame=True, **options).data.astype(float)


def mixed(n: int = 3000, seed: int = 0) -> pd.DataFrame:
    """A table like the census's "adult": dependent words, a bit, a count and real numbers.

    A person has an ability a ~ N(0, 1) and an age. Schooling follows a; the occupation follows
    schooling; being married follows age; hours follow occupation; log income is linear in a, the
    logarithm of the hours and a parabola of the age; savings are a random share of the income.
    """
    rng = np.random.default_rng(seed)
    ability, age = rng.normal(size=n), 18 + 50 * rng.beta(1.6, 2.4, n)
    level = np.digitize(ability + 0.6 * rng.normal(size=n), [-1.2, 0.2, 1.1])
    trade = np.clip(level + rng.integers(-1, 2, n), 0, 3)
    married = rng.random(n) < 1 / (1 + np.exp(-(age - 33) / 6))
    hours = rng.poisson(np.array([30, 40, 38, 46])[trade])
    parabola = 1 - ((age - 48) / 30) ** 2
    log_income = 7 + 0.4 * ability + 0.6 * np.log1p(hours) + 0.5 * parabola
    income = np.exp(log_income + 0.25 * rng.normal(size=n))
    return pd.DataFrame(
        {
            "age": age.round(2),
            "education": np.array(["school", "college", "bachelor", "master"])[level],
            "occupation": np.array(["service", "craft", "office", "management"])[trade],
            "married": married,
            "hours": hours,
            "income": income.round(2),
            "savings": (income * rng.gamma(2.0, 0.1, n)).round(2),
        }
    )


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    # A column of two numbers has no density.
    "diabetes": lambda: numbers(datasets.load_diabetes, scaled=False).drop(columns="sex"),
    "wine": lambda: numbers(datasets.load_wine),
    "breast cancer": lambda: numbers(datasets.load_breast_cancer),
    "iris": lambda: numbers(datasets.load_iris),
    "mixed": mixed,
}


def trained(frame: pd.DataFrame, folder: Path, **options: Any) -> Path:
    """The run of `iwae train` on a table."""
    folder.mkdir(parents=True)
    frame.to_csv(folder / "table.csv", index=False)
    config = TrainConfig(dataset=str(folder / "table.csv"), **options)
    for _ in start_run(config, folder / "run"):
        pass
    return folder / "run"


def real(frame: pd.DataFrame) -> bool:
    """Whether all columns are real numbers."""
    return all(dtype.kind == "f" for dtype in frame.dtypes)


def kinds(frame: pd.DataFrame) -> dict[str, Any]:
    """The options for a table of real numbers, some of which may be whole."""
    return {"observation": "gaussian"} if real(frame) else {}


def splits(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The table and, if it has few rows, other orders of it: one for each further split.

    The positions of test rows are fixed, so another order is another split. If five test sets
    exceed the table, the last contains some rows of the first.
    """
    train, test, _ = hold_out_fifth(len(frame))
    rows = np.concatenate([test, np.random.default_rng(0).permutation(train)])
    orders = []
    for number in range(SPLITS if len(frame) <= FEW else 1):
        tested, others = np.split(np.roll(rows, -number * len(test)), [len(test)])
        order = np.empty_like(rows)
        order[test], order[train] = np.sort(tested), np.sort(others)
        orders.append(frame.iloc[order])
    return orders


def over_splits(
    measure: Callable[[pd.DataFrame, Path, int], pd.DataFrame],
    frame: pd.DataFrame,
    folder: Path,
    seed: int,
) -> pd.DataFrame:
    """Measure the test rows of all splits; returns a row for each row of the table."""
    found = pd.concat(
        measure(one, folder / str(number), seed + number)
        for number, one in enumerate(splits(frame))
    )
    return found[~found.index.duplicated()]


# --- densities -------------------------------------------------------------------------------


def densities(frame: pd.DataFrame, folder: Path, seed: int) -> pd.DataFrame:
    """The log-likelihood of each test row by each method, nats."""
    train, test, _ = hold_out_fifth(len(frame))
    known, new = frame.iloc[train], frame.iloc[test]
    run = trained(frame, folder, seed=seed, **kinds(frame))
    new.to_csv(folder / "new.csv", index=False)
    ours = score_rows(run, folder / "new.csv", k=K, p_values=False)["log_likelihood"]
    return pd.DataFrame({"iwae": ours, **rivals(known, new, seed)}, index=new.index)


def rivals(known: pd.DataFrame, new: pd.DataFrame, seed: int) -> dict[str, np.ndarray]:
    """The log-likelihood of each new row by other methods, nats."""
    found = {"estimator": estimator(known, seed).fit(known).score_samples(new)}
    if not real(known):
        independent = np.sum([alone(known[name], new[name]) for name in known], axis=0)
        return {**found, "independent": independent}
    scale = known.std()  # with very different scales, the covariance is singular
    gaussian = stats.multivariate_normal(known.mean() / scale, np.cov((known / scale).T, bias=True))
    return {**found, "Gaussian": gaussian.logpdf(new / scale) - np.log(scale).sum()}


def estimator(frame: pd.DataFrame, seed: int, **options: Any) -> ImportanceWeightedAutoencoder:
    """The estimator for a table, with default options."""
    kind = "gaussian" if real(frame) else "auto"
    return ImportanceWeightedAutoencoder(observation=kind, random_state=seed, score_k=K, **options)


def alone(known: pd.Series, new: pd.Series) -> np.ndarray:
    """The log-density of one column: Gaussian, negative binomial or smoothed frequencies."""
    if known.dtype.kind == "f":
        return stats.norm(known.mean(), known.std(ddof=0)).logpdf(new)
    if known.dtype.kind == "i":
        mean, variance = known.mean(), max(known.var(), 1.001 * known.mean())
        return stats.nbinom(mean**2 / (variance - mean), mean / variance).logpmf(new)
    counts = known.value_counts() + 1
    return np.log(new.map(counts / counts.sum()).to_numpy(float))


def paired(ours: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """A mean, and the lead of ours over it with its standard error."""
    lead = np.asarray(ours, np.float64) - values
    stderr = lead.std(ddof=1) / len(lead) ** 0.5
    return {
        "nats": float(np.mean(values, dtype=np.float64)),
        "lead": float(lead.mean()),
        "lead_stderr": float(stderr),
    }


# --- imputation ------------------------------------------------------------------------------


def imputations(frame: pd.DataFrame, folder: Path, seed: int) -> pd.DataFrame:
    """The count of hidden numbers in each test row, and the sum of squared errors by method.

    Errors are in standard deviations of the complete training rows.
    """
    train, test, _ = hold_out_fifth(len(frame))
    hidden = np.random.default_rng(seed).random(frame.shape) < HIDDEN
    holes = frame.astype(object).mask(hidden)
    run = trained(holes, folder, seed=seed, missing="at-random", **kinds(frame))
    holes.iloc[test].to_csv(folder / "new.csv", index=False)
    numeric = [i for i, dtype in enumerate(frame.dtypes) if dtype.kind in "fi"]
    truth = frame.iloc[:, numeric].to_numpy(float)
    mean, scale = truth[train].mean(axis=0), truth[train].std(axis=0)
    ours = impute_rows(run, folder / "new.csv", k=K)[1].values[0][:, numeric]
    rows = standardised(holes, numeric, train)
    found = {"iwae": (ours - mean) / scale}
    typed = holes.astype(float) if real(frame) else holes.convert_dtypes()
    fitted = estimator(frame, seed, missing="at-random").fit(typed.iloc[train])
    theirs = np.asarray(fitted.impute(typed.iloc[test]))[:, numeric].astype(float)
    found["estimator"] = (theirs - mean) / scale
    for name, imputer in imputers(seed).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            filled = imputer.fit(rows[train]).transform(rows[test])[:, : len(numeric)]
        known = holes.iloc[train, numeric].astype(float)
        units = known.std().to_numpy() / scale, (known.mean().to_numpy() - mean) / scale
        found[name] = filled * units[0] + units[1]
    right, gaps = ((truth - mean) / scale)[test], hidden[test][:, numeric]
    squares = {name: np.sum((each - right) ** 2 * gaps, axis=1) for name, each in found.items()}
    return pd.DataFrame({"gaps": gaps.sum(axis=1), **squares}, index=frame.index[test])


def compared(found: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The root mean squared error of each method, and that of `iwae` minus it.

    The standard error of the difference is by the delta method, over rows.
    """
    gaps = found.pop("gaps").to_numpy()
    errors = np.sqrt(found.sum() / gaps.sum())
    # The influence of a row on the error, whose mean over rows is zero.
    rows = (found - np.outer(gaps, errors**2)) / (2 * errors * gaps.sum())
    against = rows.rsub(rows["iwae"], axis=0)
    stderr = np.sqrt((against**2).sum() * len(rows) / (len(rows) - 1))
    return {
        name: {"error": error, "change": errors["iwae"] - error, "change_stderr": stderr[name]}
        for name, error in errors.items()
    }


def standardised(holes: pd.DataFrame, numeric: list[int], train: np.ndarray) -> np.ndarray:
    """The numbers, then an indicator for each word but the last, by observed training rows."""
    columns = [holes.iloc[:, i].astype(float) for i in numeric]
    for i in sorted(set(range(holes.shape[1])) - set(numeric)):
        words = holes.iloc[:, i]
        levels = sorted(words.dropna().unique())[:-1]
        columns += [(words == level).astype(float).mask(words.isna()) for level in levels]
    wide = pd.concat(columns, axis=1)
    return ((wide - wide.iloc[train].mean()) / wide.iloc[train].std()).to_numpy()


def imputers(seed: int) -> dict[str, Any]:
    """The other methods of imputation."""
    forest = RandomForestRegressor(100, max_features="sqrt", n_jobs=-1, random_state=seed)
    return {
        "column means": SimpleImputer(),
        "IterativeImputer": IterativeImputer(max_iter=30, random_state=seed),
        "random forests": IterativeImputer(forest, max_iter=5, tol=0.01, random_state=seed),
    }


def main() -> None:
    """Print the results of each method on each table."""
    parser = table_parser(TABLES, __doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = known_results(options.json)
    for name in options.tables:
        frame, start = TABLES[name](), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            nats, errors = (
                over_splits(measure, frame, Path(folder) / measure.__name__, options.seed)
                for measure in (densities, imputations)
            )
            found = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "seed": options.seed,
                "rows": len(frame),
                "columns": frame.shape[1],
                "splits": len(splits(frame)),
                "densities": {
                    name: paired(nats["iwae"].to_numpy(), nats[name].to_numpy()) for name in nats
                },
                "imputations": compared(errors),
            }
        results[name] = found
        print(f"{name}, {time.perf_counter() - start:.0f} s: {json.dumps(found)}", flush=True)
        if options.json:
            write(options.json, {one: results[one] for one in TABLES if one in results})


def over_seeds(
    compare: Callable[[str, int], dict[str, Any]], names: Sequence[str], about: str
) -> None:
    """The main function of a benchmark: print `compare(table, seed)`, and write the record."""
    parser = table_parser(names, about)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    results = known_results(options.json)
    for name, seed in product(options.tables, range(options.seeds)):
        start = time.perf_counter()
        found = compare(name, seed)
        results.setdefault(name, {})[str(seed)] = found
        print(f"{name}, {time.perf_counter() - start:.0f} s: {json.dumps(found)}", flush=True)
        if options.json:
            write(options.json, results)


def table_parser(names: Iterable[str], about: str) -> argparse.ArgumentParser:
    """A parser of the options that the benchmarks of tables share."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=names, default=list(names))
    parser.add_argument("--json", type=Path, help="also write the numbers to this file, or into it")
    return parser


def known_results(file: Path | None) -> dict[str, Any]:
    """The results in an earlier record; empty without one."""
    return json.loads(file.read_text())["results"] if file is not None and file.is_file() else {}


def write(file: Path, results: dict[str, Any]) -> None:
    """Write the record of all results so far."""
    record = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "version": version("iwae"),
        "results": results,
    }
    with atomic_write(file) as path:
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Hiding values in training: its gain for imputation, and its cost in likelihood.

    python benchmarks/hide.py [--tables wine] [--seeds 3] [--json FILE]

Models of missing values are trained on rows without gaps, by the defaults of `iwae train`, with
several shares of values hidden (`--hide`). For each share, on a fifth of the rows:

- the root mean squared error, in standard deviations, of the imputed values when a fifth of the
  values is hidden;
- log-likelihoods of the complete rows, nats per row, as a difference from the share 0.

The rows that `benchmarks/own_data.py` tests on are left out, since a default follows from these
numbers. Each seed has its own split, holes and initial weights.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from iwae import TrainConfig, impute, score
from iwae.data.held_out import own_split
from iwae.runs.setup import initial_state, make_job
from iwae.training.stages import train_stages
from iwae.training.steps import replicate_model
from own_data import HIDDEN, TABLES, K, kinds, paired, write

SHARES = (0.0, 0.1, 0.2, 0.5)
NAMES = ("wine", "diabetes", "breast cancer")


def trained(frame: pd.DataFrame, folder: Path, seed: int, share: float) -> tuple[Any, np.ndarray]:
    """The model of `iwae train` with its best weights, and its held-out rows, standardised."""
    frame.to_csv(folder / "table.csv", index=False)
    given = {"missing": "at-random", "hide": share, "seed": seed, **kinds(frame)}
    job = make_job(TrainConfig(dataset=str(folder / "table.csv"), **given))
    train, validation = (job.dataset.examples(one) for one in ("train", "validation"))
    steps = *initial_state(job), train, job.models[0], job.stages, job.plan, validation
    for state in train_stages(*steps):
        best = state[1]
    return replicate_model(job.models[0], best.params, 0), job.dataset.test


def measured(frame: pd.DataFrame, folder: Path, seed: int, share: float) -> dict[str, Any]:
    """Error of imputed values, and log-likelihoods of the rows that they are from."""
    model, x = trained(frame, folder, seed, share)
    hidden = np.random.default_rng(seed).random(x.shape) < HIDDEN
    key, score_key = jax.random.split(jax.random.key(seed))
    filled = impute(model, np.where(hidden, np.nan, x).astype(np.float32), key, k=K)
    log_p = score(model, x, score_key, k=K).log_likelihood
    return {"error": float(np.sqrt(np.mean((filled - x)[hidden] ** 2))), "log_p": log_p}


def compared(frame: pd.DataFrame, folder: Path, seed: int) -> dict[str, Any]:
    """Each share's error, and its gain in nats per row over no hidden values."""
    train, _, _ = own_split(len(frame))
    frame = frame.iloc[train].sample(frac=1.0, random_state=seed)
    found = {share: measured(frame, folder, seed, share) for share in SHARES}
    return {
        str(share): {"error": one["error"], **paired(one["log_p"], found[0.0]["log_p"])}
        for share, one in found.items()
    }


def main() -> None:
    """Print what each share reaches on each table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file, or into it")
    options = parser.parse_args()
    known = options.json is not None and options.json.is_file()
    results: dict[str, Any] = json.loads(options.json.read_text())["results"] if known else {}
    for name in options.tables:
        for seed in range(options.seeds):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                found = compared(TABLES[name](), Path(folder), seed)
            results.setdefault(name, {})[str(seed)] = found
            print(f"{name}, {time.perf_counter() - start:.0f} s: {json.dumps(found)}", flush=True)
            if options.json:
                write(options.json, results)


if __name__ == "__main__":
    main()

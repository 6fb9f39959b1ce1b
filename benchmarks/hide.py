"""Hiding values during training: its gain for imputation and its cost in likelihood.

    python benchmarks/hide.py [--tables wine] [--seeds 3] [--json FILE]

Models of missing values are trained on rows without gaps, by the defaults of `iwae train`, with
several shares of values hidden (`--hide`). For each share, on a fifth of the rows:

- the root mean squared error, in standard deviations, of the imputed values when a fifth of the
  values is hidden;
- log-likelihoods of the complete rows, nats per row, as a difference from the share 0.

The test rows of `benchmarks/own_data.py` are left out, since a default follows from these numbers.
Each seed has its own split, hidden values and initial weights.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from iwae import TrainConfig, impute, score
from iwae.data.held_out import hold_out_fifth
from iwae.runs.jobs import initial_job_state, make_job
from iwae.training.replicates import replicate_model
from iwae.training.stages import train_stages
from own_data import HIDDEN, TABLES, K, kinds, over_seeds, paired

SHARES = (0.0, 0.1, 0.2, 0.5)
NAMES = ("wine", "diabetes", "breast cancer")


def trained(frame: pd.DataFrame, folder: Path, seed: int, share: float) -> tuple[Any, np.ndarray]:
    """The best model of `iwae train`, and the standardised test rows."""
    frame.to_csv(folder / "table.csv", index=False)
    given = {"missing": "at-random", "hide": share, "seed": seed, **kinds(frame)}
    job = make_job(TrainConfig(dataset=str(folder / "table.csv"), **given))
    train, validation = (job.dataset.examples(one) for one in ("train", "validation"))
    steps = *initial_job_state(job), train, job.models[0], job.stages, job.plan, validation
    for state in train_stages(*steps):
        best = state[1]
    return replicate_model(job.models[0], best.params, 0), job.dataset.test


def measured(frame: pd.DataFrame, folder: Path, seed: int, share: float) -> dict[str, Any]:
    """The error of imputed values, and the log-likelihoods of the complete rows."""
    model, x = trained(frame, folder, seed, share)
    hidden = np.random.default_rng(seed).random(x.shape) < HIDDEN
    key, score_key = jax.random.split(jax.random.key(seed))
    filled = impute(model, np.where(hidden, np.nan, x).astype(np.float32), key, k=K)
    log_p = score(model, x, score_key, k=K).log_likelihood
    return {"error": float(np.sqrt(np.mean((filled - x)[hidden] ** 2))), "log_p": log_p}


def compared(name: str, seed: int) -> dict[str, Any]:
    """The error with each share, and its gain over no hidden values, nats per row."""
    frame = TABLES[name]()
    train, _, _ = hold_out_fifth(len(frame))
    frame = frame.iloc[train].sample(frac=1.0, random_state=seed)
    with tempfile.TemporaryDirectory() as folder:
        found = {share: measured(frame, Path(folder), seed, share) for share in SHARES}
    return {
        str(share): {"error": one["error"], **paired(one["log_p"], found[0.0]["log_p"])}
        for share, one in found.items()
    }


if __name__ == "__main__":
    over_seeds(compared, NAMES, __doc__)

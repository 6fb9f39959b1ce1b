"""Trials of optimisers, learning rates, batches and stages, measured on held-out training images.

    python experiments/recipes.py [PATTERN ...]

Each trial is one record in `results/recipes/`, with the bound L_500 on 2,000 MNIST images held out
of the training data and the training time; existing records are kept. Test data are not used. The
fast recipes in `iwae.config.recipes` were chosen by these records.
"""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from iwae.cli.jax_setup import cores_for_jax, set_up_jax

set_up_jax()  # before anything else makes an array

from iwae import log_likelihoods  # noqa: E402
from iwae.config.experiment import make_config  # noqa: E402
from iwae.config.toml import config_toml_values  # noqa: E402
from iwae.results.provenance import record_provenance  # noqa: E402
from iwae.results.record_files import has_record_files, write_record_files  # noqa: E402
from iwae.runs.jobs import Job, initial_job_state, make_job  # noqa: E402
from iwae.training.replicates import replicate_model, weights_of_replicates  # noqa: E402
from iwae.training.stages import train_stages  # noqa: E402

RESULTS = Path(__file__).parents[1] / "results" / "recipes"
HELD_OUT, K = 2000, 500
POINTS = (0.25, 0.5, 0.75)
"""Shares of a trial's epochs after which it is also measured."""

BASE: dict[str, Any] = {
    "dataset": "mnist",
    "validation": HELD_OUT,
    "layers": 1,
    "objective": "iwae",
    "batch_size": 100,
    "learning_rate": 3e-3,
    "schedule": "linear",
}

K5 = {"k": 5, "epochs": 20}
VAE = {"objective": "vae", "k": 1, "epochs": 40}
SOAP = {"optimizer": "soap"}
STL, DREG = {**SOAP, "gradient": "stl"}, {**SOAP, "gradient": "dreg"}

LONG = {**VAE, **STL, "epochs": 200, "learning_rate": 5e-3}
DEEP = {**K5, **DREG, "layers": 2, "learning_rate": 5e-3}
DEEPER = {**DEEP, "epochs": 60, "kl_warmup": 6}

LEARNED = {**VAE, **SOAP, "epochs": 10, "learning_rate": 5e-3}
VAMP = {**LEARNED, "prior": "vamp:500"}
MIXTURE = {**LEARNED, **STL, "prior": "mixture:500"}

TRIALS: dict[str, dict[str, Any]] = {
    "k5/adam-1e-3-batch20-paper": {
        **K5,
        "batch_size": 20,
        "learning_rate": 1e-3,
        "schedule": "paper",
    },
    "k5/adam-1e-3": {**K5, "learning_rate": 1e-3},
    "k5/adam-3e-3": K5,
    "k5/adam-6e-3": {**K5, "learning_rate": 6e-3},
    "k5/adam-3e-3-cosine": {**K5, "schedule": "cosine"},
    "k5/adam-3e-3-ema": {**K5, "schedule": "constant", "ema": 0.999},
    "k5/soap-1e-3": {**K5, **SOAP, "learning_rate": 1e-3},
    "k5/soap-2e-3": {**K5, **SOAP, "learning_rate": 2e-3},
    "k5/soap-3e-3": {**K5, **SOAP},
    "k5/soap-5e-3": {**K5, **SOAP, "learning_rate": 5e-3},
    "k5/soap-3e-3-10-epochs": {**K5, **SOAP, "epochs": 10},
    "k5/adam-3e-3-75-epochs": {**K5, "epochs": 75},
    "k5/soap-3e-3-60-epochs": {**K5, **SOAP, "epochs": 60},
    "k5/soap-dreg-3e-3-10-epochs": {**K5, **DREG, "epochs": 10},
    "k5/soap-dreg-5e-3-10-epochs": {**K5, **DREG, "epochs": 10, "learning_rate": 5e-3},
    "k5/soap-dreg-5e-3-60-epochs": {**K5, **DREG, "epochs": 60, "learning_rate": 5e-3},
    "k5/soap-dreg-5e-3-warmup-60-epochs": {
        **K5,
        **DREG,
        "epochs": 60,
        "learning_rate": 5e-3,
        "kl_warmup": 6,
    },
    "k1/soap-3e-3-20-epochs": {**VAE, **SOAP, "epochs": 20},
    "k1/soap-stl-3e-3-20-epochs": {**VAE, **STL, "epochs": 20},
    "k1/soap-stl-3e-3-ema-20-epochs": {**VAE, **STL, "epochs": 20, "ema": 0.999},
    "k1/soap-stl-3e-3-60-epochs": {**VAE, **STL, "epochs": 60},
    "k1/soap-stl-5e-3-20-epochs": {**VAE, **STL, "epochs": 20, "learning_rate": 5e-3},
    "k1/soap-stl-5e-3-warmup-20-epochs": {
        **VAE,
        **STL,
        "epochs": 20,
        "learning_rate": 5e-3,
        "kl_warmup": 4,
    },
    "k1/soap-stl-5e-3-60-epochs": {**VAE, **STL, "epochs": 60, "learning_rate": 5e-3},
    "k1/soap-stl-5e-3-warmup-60-epochs": {
        **VAE,
        **STL,
        "epochs": 60,
        "learning_rate": 5e-3,
        "kl_warmup": 6,
    },
    "k1/soap-stl-1e-3-200-epochs": {**LONG, "learning_rate": 1e-3},
    "k1/soap-stl-2e-3-200-epochs": {**LONG, "learning_rate": 2e-3},
    "k1/soap-stl-5e-3-200-epochs": LONG,
    "k1/soap-stl-3e-3-batch200-200-epochs": {**LONG, "batch_size": 200, "learning_rate": 3e-3},
    "k1/soap-stl-4e-3-batch400-200-epochs": {**LONG, "batch_size": 400, "learning_rate": 4e-3},
    "k1/soap-stl-8e-3-20-epochs": {**VAE, **STL, "epochs": 20, "learning_rate": 8e-3},
    "k1/adam-stl-3e-3-60-epochs": {**VAE, "gradient": "stl", "epochs": 60},
    "k1/adam-3e-3": VAE,
    "k1/soap-3e-3": {**VAE, **SOAP},
    "k1/soap-5e-3": {**VAE, **SOAP, "learning_rate": 5e-3},
    "prior/vamp-soap-5e-3-10-epochs": VAMP,
    "prior/vamp-soap-2e-3-10-epochs": {**VAMP, "learning_rate": 2e-3},
    "prior/vamp-adam-2e-3-10-epochs": {**VAMP, "optimizer": "adam", "learning_rate": 2e-3},
    "prior/vamp-soap-stl-1e-3-10-epochs": {**VAMP, **STL, "learning_rate": 1e-3},
    "prior/vamp-soap-stl-2e-3-10-epochs": {**VAMP, **STL, "learning_rate": 2e-3},
    "prior/vamp-soap-stl-5e-3-10-epochs": {**VAMP, **STL},
    "prior/vamp-soap-stl-2e-3-warmup-10-epochs": {
        **VAMP,
        **STL,
        "learning_rate": 2e-3,
        "kl_warmup": 4,
    },
    "prior/vamp-soap-stl-2e-3-20-epochs": {**VAMP, **STL, "learning_rate": 2e-3, "epochs": 20},
    "prior/vamp-soap-stl-3e-3-20-epochs": {**VAMP, **STL, "learning_rate": 3e-3, "epochs": 20},
    "prior/vamp-soap-stl-3e-3-warmup-20-epochs": {
        **VAMP,
        **STL,
        "learning_rate": 3e-3,
        "epochs": 20,
        "kl_warmup": 4,
    },
    "prior/vamp-soap-stl-5e-3-warmup-20-epochs": {**VAMP, **STL, "epochs": 20, "kl_warmup": 4},
    "prior/mixture-soap-stl-5e-3-10-epochs": MIXTURE,
    "prior/mixture-soap-stl-5e-3-20-epochs": {**MIXTURE, "epochs": 20},
    "prior/mixture-soap-stl-5e-3-warmup-20-epochs": {**MIXTURE, "epochs": 20, "kl_warmup": 4},
    "2l/soap-dreg-3e-3": {**DEEP, "learning_rate": 3e-3},
    "2l/soap-dreg-3e-3-warmup": {**DEEP, "learning_rate": 3e-3, "kl_warmup": 4},
    "2l/soap-dreg-5e-3": DEEP,
    "2l/soap-dreg-5e-3-warmup": {**DEEP, "kl_warmup": 4},
    "2l/soap-dreg-1e-3-warmup-60-epochs": {**DEEPER, "learning_rate": 1e-3},
    "2l/soap-dreg-2e-3-warmup-60-epochs": {**DEEPER, "learning_rate": 2e-3},
    "2l/soap-dreg-5e-3-warmup-60-epochs": DEEPER,
    "2l/soap-dreg-4e-3-batch400-warmup-60-epochs": {
        **DEEPER,
        "batch_size": 400,
        "learning_rate": 4e-3,
    },
    "k50/soap-k5-then-50-backward-4": {
        **SOAP,
        "k": 50,
        "stages": "k=5 epochs=12 schedule=constant, epochs=6 backward=4",
    },
    "k50/soap-k5-then-50-backward-8": {
        **SOAP,
        "k": 50,
        "stages": "k=5 epochs=12 schedule=constant, epochs=6 backward=8",
    },
    "k50/soap-k5-then-50": {
        **SOAP,
        "k": 50,
        "stages": "k=5 epochs=12 schedule=constant, epochs=6",
    },
}
"""Name -> changes to `BASE`."""


def bound(job: Job, params: Any) -> np.ndarray:
    """L_500 of each held-out image, nats, with the same draws for every trial."""
    model = replicate_model(job.models[0], params, 0)
    return np.asarray(log_likelihoods(model, job.dataset.validation, jax.random.key(0), k=K))


def trial(name: str) -> dict[str, Any]:
    """Train one model, and measure it at several epochs."""
    job = make_job(make_config({**BASE, **TRIALS[name]}, name))
    epochs, seconds, points = job.config.epochs, 0.0, []
    measured = {max(1, round(share * epochs)) for share in POINTS}
    start, data = initial_job_state(job), job.dataset.train
    for state, _, report in train_stages(*start, data, job.models[0], job.stages, job.plan):
        seconds += report.seconds
        if report.epoch_done and report.epoch in measured:
            value = float(bound(job, weights_of_replicates(state)).mean())
            points.append({"epoch": report.epoch, "seconds": seconds, "bound": value})
    values = bound(job, weights_of_replicates(state)).astype(np.float64)
    return {
        "trial": name,
        "config": config_toml_values(job.config),
        "k": K,
        "n": len(values),
        "bound": values.mean(),
        "stderr": values.std(ddof=1) / np.sqrt(len(values)),
        "train_bound": float(report.bound[0]),
        "seconds": seconds,
        "cores": len(cores_for_jax()),
        "points": points,
        **record_provenance(),
    }


def main(*patterns: tyro.conf.Positional[str]) -> None:
    """Run the matching trials that have no record yet."""
    for name in TRIALS:
        path = RESULTS / f"{name}.json"
        wanted = any(fnmatch(name, pattern) for pattern in patterns or ("*",))
        if has_record_files(path) or not wanted:
            continue
        record = trial(name)
        write_record_files(path, record, {})
        print(f"{name:32} {record['bound']:.3f} in {record['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

"""Objectives and gradients on the same data under the same budget, with seeds and error bars.

    python experiments/objectives.py digits            # minutes; ten seeds of each
    python experiments/objectives.py networks          # the same objective, other networks
    python experiments/objectives.py kinds             # the same objective, other kinds of data
    python experiments/objectives.py mnist             # hours; needs IWAE_DATA or a network
    python experiments/objectives.py protocols         # an hour; other training protocols

Each row of a table is a run in `runs/objectives/TABLE/NAME`, whose records are kept in
`results/objectives`. Existing records are kept, and interrupted runs resume. Then
`python docs/tools/tables.py` makes the tables from the records.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0))))

import numpy as np
import tyro
from sklearn.datasets import load_digits

from iwae.config.experiment import config_without_folders, make_config
from iwae.config.presets import AS_PUBLISHED_CODE, preset
from iwae.config.toml import read_config, write_config
from iwae.experiments.local import work
from iwae.experiments.tasks import Measure, Status, Task
from iwae.files import atomic_write
from iwae.runs.measurement_progress import measurement_progress
from iwae.runs.stopping import Stopped
from iwae.training.progress import show_training

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "objectives", ROOT / "results" / "objectives"

SIXTEEN = {
    "elbo": {"objective": "elbo", "k": 16},
    "elbo-stl": {"objective": "elbo", "k": 16, "gradient": "stl"},
    "elbo-analytic": {"objective": "elbo-analytic", "k": 16},
    "elbo-warm-up": {"objective": "elbo", "k": 16, "kl_warmup": 20},
    "elbo-free-bits": {"objective": "elbo", "k": 16, "free_bits": 0.1},
    "iwae": {"objective": "iwae", "k": 16},
    "iwae-stl": {"objective": "iwae", "k": 16, "gradient": "stl"},
    "iwae-dreg": {"objective": "iwae", "k": 16, "gradient": "dreg"},
    "iwae-dreg-alpha": {"objective": "iwae", "k": 16, "gradient": "dreg-alpha", "alpha": 0.5},
    "miwae": {"objective": "miwae", "m": 4, "k": 4},
    "miwae-dreg": {"objective": "miwae", "m": 4, "k": 4, "gradient": "dreg"},
    "piwae": {"objective": "piwae", "m": 4, "k": 4},
    "ciwae": {"objective": "ciwae", "k": 16, "beta": 0.5},
    "ciwae-learned": {"objective": "ciwae", "k": 16, "beta": "learned"},
    "vr-iwae": {"objective": "vr-iwae", "k": 16, "alpha": 0.5},
    "vr-max": {"objective": "vr-max", "k": 16},
    "tvo": {"objective": "tvo", "k": 16},
    "tvo-score": {"objective": "tvo", "k": 16, "gradient": "score"},
    "rws": {"objective": "rws", "k": 16},
    "rws-dreg": {"objective": "rws", "k": 16, "gradient": "rws-dreg"},
    "rws-both": {"objective": "rws", "k": 16, "phase": "both"},
}
"""Sixteen particles per example and step."""

FIVE = {
    "iwae-k5": {"objective": "iwae", "k": 5},
    "iwae-k5-dreg": {"objective": "iwae", "k": 5, "gradient": "dreg"},
    "aiwae-s5-t5": {"objective": "aiwae", "k": 5, "temperatures": 5, "leapfrog": 5},
    "dais-k5-t5": {"objective": "dais", "k": 5, "temperatures": 5},
}
"""Five particles or chains: AIWAE against IWAE at equal S."""

ALL_FIVE = {
    "elbo-k5": {"objective": "elbo", "k": 5},
    "elbo-analytic-k5": {"objective": "elbo-analytic", "k": 5},
    "iwae-k5-stl": {"objective": "iwae", "k": 5, "gradient": "stl"},
    "piwae-m5-k1": {"objective": "piwae", "m": 5, "k": 1},
    "ciwae-k5": {"objective": "ciwae", "k": 5, "beta": 0.5},
    "vr-iwae-k5": {"objective": "vr-iwae", "k": 5, "alpha": 0.5},
    "vr-max-k5": {"objective": "vr-max", "k": 5},
    "tvo-k5": {"objective": "tvo", "k": 5},
    "rws-k5": {"objective": "rws", "k": 5},
    **FIVE,
}
"""Five particles per example and step; MIWAE(5, 1) is the ELBO."""

DIGITS = {
    "dataset": "digits",
    "latent_sizes": (20,),
    "hidden_sizes": ((100, 100),),
    "epochs": 100,
    "learning_rate": 5e-3,
    "replicates": 10,
}

MNIST = {
    "dataset": "mnist",
    "schedule": "constant",
    "batch_size": 128,
    "epochs": 10,
}

NETWORKS = {
    "mlp": {},
    "mlp-residual": {"blocks": 1},
    "conv": {"network": "conv", "hidden_sizes": ((100,),)},
    "conv-residual": {"network": "conv", "hidden_sizes": ((100,),), "blocks": 1},
}
"""Networks under the same objective."""

KINDS = {
    "categorical": {"observation": "categorical", "categories": 17},
    "poisson": {"observation": "poisson"},
    "negative-binomial": {"observation": "negative-binomial"},
    "logistic-mixture": {"observation": "logistic-mixture"},
    "discretised-gaussian": {"observation": "discretised-gaussian"},
}
"""Distributions of whole numbers, on the same data."""

LEVELS = RUNS / "kinds" / "digit-levels.npy"
"""The digits as they are stored: whole numbers from 0 to 16."""

PROTOCOLS = {
    "paper": {},
    "published-code": AS_PUBLISHED_CODE,
    **{name: {name: value} for name, value in AS_PUBLISHED_CODE.items()},
    "output-bias": {"output_bias": False},
    "seed": {"seed": 1},
}
"""The paper's schedule, shortened, and the choices of other code, together and separately."""

TABLES = {
    "protocols": (
        {**preset("table1/mnist/1l/vae-k1").values, "epochs": 121},
        PROTOCOLS,
        (Measure((1, 5000)),),
    ),
    "kinds": (
        {**DIGITS, "dataset": str(LEVELS), "learning_rate": 1e-3, "k": 5, "replicates": 4},
        KINDS,
        (Measure((1, 5000)),),
    ),
    "networks": (
        {**DIGITS, "k": 5, "replicates": 4},
        NETWORKS,
        (Measure((1, 5000)),),
    ),
    "digits": (
        DIGITS,
        {**SIXTEEN, **FIVE},
        (Measure((1, 5000)), Measure(temperatures=100, chains=8, leapfrog=5)),
    ),
    "mnist": (
        MNIST,
        ALL_FIVE,
        (Measure((1, 5000), examples=1000), Measure(temperatures=200, chains=8, examples=1000)),
    ),
}
"""Table -> shared settings, settings of each run, and measurements."""


def main(
    table: tyro.conf.Positional[Literal[tuple(TABLES)]], *names: tyro.conf.Positional[str]
) -> None:
    """Train and measure the runs of a table, or those named; exit status 1 if one fails."""
    shared, runs, measures = TABLES[table]
    if table == "kinds":
        with atomic_write(LEVELS) as temporary:
            np.save(temporary, load_digits().data.astype(np.uint8))
    tasks = [
        Task(name, make_config({**shared, **runs[name]}, name), measures)
        for name in names or runs
        if not (RESULTS / table / name).exists()
    ]
    sys.exit(train_and_keep(tasks, RUNS / table, RESULTS / table))


def train_and_keep(
    tasks: Sequence[Task], runs: Path, results: Path, extra: Callable[[Path], object] | None = None
) -> int:
    """Train and measure runs, and keep the records of finished ones; returns the exit status.

    Args:
        extra: a further measurement of a run before its records are kept.
    """
    statuses = []
    try:
        track = measurement_progress(quiet=False)
        for outcome in work(runs, tasks, show=show_training, track=track):
            statuses.append(outcome.status)
            print(f"{outcome.task.name}: {outcome.status} {outcome.reason}", flush=True)
            if outcome.status == Status.DONE:
                if extra is not None:
                    extra(runs / outcome.task.name)
                keep(runs / outcome.task.name, results / outcome.task.name)
    except Stopped as stopped:
        print(f"{stopped}; repeat the command to resume", file=sys.stderr)
        return stopped.status
    return int(Status.FAILED in statuses)


def keep(run: Path, folder: Path) -> None:
    """Keep the configuration, training metrics and records of a run, but not its models."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(run / "evaluations", unfinished / "evaluations")
    shutil.copy(run / "metrics.jsonl", unfinished / "metrics.jsonl")
    config = read_config(run / "config.toml")
    write_config(config_without_folders(config), unfinished / "config.toml")
    unfinished.rename(folder)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

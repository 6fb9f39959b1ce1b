"""Conditional models as classifiers, and as detectors of other data.

    python experiments/labels.py digits      # minutes; four seeds
    python experiments/labels.py mnist       # an hour; needs IWAE_DATA or a network

The run of each row is in `runs/labels/TABLE/NAME`, its records in `results/labels`; existing
records are kept. Then `python docs/tools/tables.py` makes the table from the records.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Literal

os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0))))

import tyro

from iwae.config.experiment import make_config
from iwae.config.toml import read_config
from iwae.experiments.tasks import Measure, Task
from iwae.results.classification import classify_run
from iwae.runs.jobs import load_job_dataset
from iwae.runs.measurement_progress import measurement_progress
from objectives import DIGITS, MNIST, train_and_keep

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "labels", ROOT / "results" / "labels"

SHARED = {"conditional": True, "objective": "iwae", "k": 5}

LINES = {"labels": {}, "labels-prior": {"label_prior": True}}

TABLES = {
    "digits": ({**DIGITS, "replicates": 4}, Measure((5000,)), None),
    "mnist": (MNIST, Measure((5000,), examples=1000), "omniglot"),
}
"""Table -> shared settings of its runs, measurements, and other data to detect."""

EXAMPLES = 1000
"""Maximum number of test examples to classify, as a random subset."""


def main(table: tyro.conf.Positional[Literal[tuple(TABLES)]]) -> None:
    """Train, measure and classify with the runs of a table; exit status 1 if one fails."""
    shared, measure, others = TABLES[table]
    tasks = [
        Task(name, make_config({**SHARED, **shared, **line}, name), (measure,))
        for name, line in LINES.items()
        if not (RESULTS / table / name).exists()
    ]
    extra = partial(classify, others=others)
    sys.exit(train_and_keep(tasks, RUNS / table, RESULTS / table, extra))


def classify(run: Path, others: str | None) -> None:
    """`iwae classify` on all test examples or a random subset of them.

    Args:
        others: name of other data to distinguish from the run's, or None.
    """
    total = len(load_job_dataset(read_config(run / "config.toml")).test)
    count = EXAMPLES if total > EXAMPLES else None
    classify_run(run, against=others, examples=count, track=measurement_progress(quiet=False))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)

"""Conditional models as classifiers, and as judges of what is no example of their data.

    python experiments/labels.py digits      # minutes; four seeds
    python experiments/labels.py mnist       # an hour; needs IWAE_DATA or a network

A run of each line is kept in `runs/labels/TABLE/NAME`, its records in `results/labels`: what is
there already is not done again. Then `python -m iwae.report results docs/labels.md` makes the
table from the records.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0))))

import jax
import numpy as np

from iwae.config import make_config, read_config
from iwae.data import choose, load_dataset
from iwae.diagnostics import test_sample_error
from iwae.evaluate import (
    class_log_likelihoods,
    label_log_probabilities,
    marginal_log_likelihoods,
)
from iwae.jobs import load_config_dataset
from iwae.measure.records import make_subject, shared_record, write_record
from iwae.progress import show_training, tracker
from iwae.queue import Measure, Task, work
from objectives import DIGITS, MNIST, keep

ROOT = Path(__file__).resolve().parents[1]
RUNS, RESULTS = ROOT / "runs" / "labels", ROOT / "results" / "labels"

SHARED = {"conditional": True, "objective": "iwae", "k": 5}

LINES = {"labels": {}, "labels-prior": {"label_prior": True}}

TABLES = {
    "digits": ({**DIGITS, "replicates": 4}, Measure((5000,)), None),
    "mnist": (MNIST, Measure((5000,), examples=1000), "omniglot"),
}
"""Table -> what its runs share and are measured by, and the data that are none of theirs."""

EXAMPLES, SAMPLES = 1000, 100
"""Test examples at most (a random subset), and importance samples for each of them and label."""


def main(table: str) -> None:
    """Train, measure and judge the runs of a table; exit status 1 if one fails."""
    shared, measure, others = TABLES[table]
    tasks = [
        Task(name, make_config({**SHARED, **shared, **line}, name), (measure,))
        for name, line in LINES.items()
        if not (RESULTS / table / name).exists()
    ]
    words = []
    for outcome in work(RUNS / table, tasks, show=show_training, track=tracker(quiet=False)):
        words.append(outcome.word)
        print(f"{outcome.task.name}: {outcome.word} {outcome.reason}", flush=True)
        if outcome.word == "done":
            run = RUNS / table / outcome.task.name
            judge(run, others)
            keep(run, RESULTS / table / outcome.task.name)
    sys.exit("failed" in words)


def judge(run: Path, others: str | None) -> None:
    """Write `RUN/evaluations/labels.json`, and the scores behind it.

    Args:
        others: the name of data that are none of the run's.
    """
    total = len(load_config_dataset(read_config(run / "config.toml")).test)
    subject = make_subject(run, examples=EXAMPLES if total > EXAMPLES else None, labels=True)
    rows = subject.data[:, : subject.dataset.n_values]
    labels = subject.dataset.labels("test")[subject.places]
    foreign = None if others is None else load_dataset(others).test
    if foreign is not None:
        foreign = foreign[choose(len(foreign), EXAMPLES)]
    scores: dict[str, np.ndarray] = {"index": subject.places, "label": labels}
    each = []
    for replicate, model in subject.models():
        shares = np.asarray(model.frequencies)
        own = class_log_likelihoods(model, rows, jax.random.key(0), k=SAMPLES)
        right = label_log_probabilities(own, shares).argmax(axis=1) == labels
        one = {"accuracy": right.mean(), "accuracy_stderr": test_sample_error(right)}
        scores[f"log_likelihood_{replicate}"] = own.astype(np.float32)
        if foreign is not None:
            strange = class_log_likelihoods(model, foreign, jax.random.key(1), k=SAMPLES)
            scores[f"others_{replicate}"] = strange.astype(np.float32)
            both = (marginal_log_likelihoods(values, shares) for values in (own, strange))
            one |= dict(zip(("auroc", "auroc_stderr"), auroc(*both), strict=True))
        each.append({name: float(value) for name, value in one.items()})
    about = {"others": others, "k": SAMPLES, "replicates": each}
    write_record(run, "labels", {**shared_record(subject, "labels"), **about}, scores)


def auroc(own: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """How often an example scores above one of other data, and its standard error.

    Source: DeLong et al. (1988), "Comparing the areas under two or more correlated receiver
    operating characteristic curves".
    """

    def below(values: np.ndarray, of: np.ndarray) -> np.ndarray:
        """The share of `of` below each value; ties are a half."""
        of = np.sort(of)
        left, right = (np.searchsorted(of, values, side) for side in ("left", "right"))
        return (left + right) / 2 / len(of)

    wins, losses = below(own, others), below(others, own)
    variance = wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses)
    return float(wins.mean()), float(np.sqrt(variance))


if __name__ == "__main__":
    main(*sys.argv[1:])

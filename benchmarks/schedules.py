"""Schedules of annealing against each other: the gap of bidirectional Monte Carlo at equal cost.

    python benchmarks/schedules.py --json results/benchmarks/schedules.json

At each length T, all schedules anneal the same simulated examples of a stored model with the same
keys. Their step sizes, and the temperatures of the adaptive one, come from a pilot on other
simulated examples with other keys, and are frozen. The gap falls like 1/T, so the gap times the
leapfrog steps of a chain characterises the schedule: smaller is better. Differences to the default
schedule are paired. Existing cells of the record are kept.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np

from iwae.evaluation.bdmc import bdmc
from iwae.evaluation.differences import paired_difference
from iwae.files import atomic_write
from iwae.inference.adaptive import adaptive_schedule
from iwae.inference.tuning import tune_step_size
from iwae.models.conditional import Model
from iwae.results.ais import ADAPTIVE, PILOT_CHAINS, PILOT_EXAMPLES, SCHEDULES
from iwae.results.provenance import record_provenance
from iwae.results.subjects import make_subject, subject_model_facts
from iwae.results.summaries import summarise_mean

RESULTS = Path(__file__).resolve().parents[1] / "results"
RUN = "digits/iwae-k20/seeds-0-3"
STARTS = ("posterior", "prior")
LENGTHS = (10, 40)
LEAPFROG, CHAINS, EXAMPLES = 10, 4, 200
DEFAULT = "sigmoid"


def pilot_data(model: Model, key: jax.Array) -> np.ndarray:
    """Simulated examples for the pilot, which are not measured."""
    draw = jax.jit(jax.vmap(lambda key: model.sample(key)[1]))
    return np.asarray(draw(jax.random.split(key, PILOT_EXAMPLES)), np.float32)


def gaps(model: Model, schedule: str, length: int, start: str) -> np.ndarray:
    """The gap of each example, nats, after a pilot for the schedule."""
    data_key, betas_key, sizes_key, key = jax.random.split(jax.random.key(length), 4)
    examples, moves = pilot_data(model, data_key), {"n_leapfrog": LEAPFROG, "start": start}
    pilot = {"chains": PILOT_CHAINS, **moves}
    if schedule == ADAPTIVE:
        betas = adaptive_schedule(model, examples, betas_key, length, **pilot)
    else:
        betas = SCHEDULES[schedule](length)
    sizes = tune_step_size(model, examples, sizes_key, betas=betas, **pilot)
    path = {"betas": betas, "step_size": sizes, **moves}
    return bdmc(model, key, n_examples=EXAMPLES, chains=CHAINS, **path).gap


def cells(model: Model, start: str, length: int) -> list[dict[str, Any]]:
    """All schedules at one length."""
    found = {name: gaps(model, name, length, start) for name in (*SCHEDULES, ADAPTIVE)}
    steps, rows = LEAPFROG * (length - 1), []
    for name, values in found.items():
        gap, stderr = summarise_mean(values)
        difference = paired_difference(values, found[DEFAULT])
        row = {"start": start, "schedule": name, "temperatures": length, "leapfrogs": steps}
        row |= {"gap": gap, "gap_stderr": stderr}
        row |= {"difference": difference.mean, "difference_stderr": difference.stderr}
        rows.append(row)
        print(f"{start}, T = {length}, {name}: gap {gap:.3f} +- {stderr:.3f} nats", flush=True)
    return rows


def main() -> None:
    """Measure the cells that the record lacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="the record")
    args = parser.parse_args()
    subject = make_subject(RESULTS / RUN)
    replicate, model = next(subject.models())
    rows = json.loads(args.json.read_text())["cells"] if args.json.exists() else []
    done = {(row["start"], row["temperatures"]) for row in rows}
    record = {"run": RUN, "chains": CHAINS, "examples": EXAMPLES, "leapfrog": LEAPFROG}
    record |= {**subject_model_facts(subject, replicate), **record_provenance()}
    for start, length in product(STARTS, LENGTHS):
        if (start, length) not in done:
            rows += cells(model, start, length)
            with atomic_write(args.json) as path:
                path.write_text(json.dumps({**record, "cells": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

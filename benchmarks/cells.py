"""What a step of every cell of the published tables costs: one model alone, and one on each core.

    python benchmarks/cells.py --json src/iwae/reproduce/costs.json [--cells 'table1/*']

Needs the data sets of the cells (IWAE_DATA or a network). `iwae reproduce list` turns the record
into hours. What was measured before is kept, unless it is measured again.
"""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0))))

import argparse
import json
import statistics
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import jax

from iwae.config import TrainConfig
from iwae.jobs import initial_state, make_job
from iwae.presets import PRESETS
from iwae.reproduce.costs import shape_of
from iwae.training import training
from timing import cores

WARM_UP = 3  # dispatches: the first compiles, and the next ones are shorter than the loop wants


def ms_per_step(config: TrainConfig, seconds: float) -> float:
    """Median over the dispatches of the training loop, of all replicates together."""
    job = make_job(config)
    state, best = initial_state(job)
    run = training(
        state, best, job.dataset.train, job.schedule, job.models[0], job.settings, job.plan, None
    )
    found, lasted = [], 0.0
    for number, (_, _, report) in enumerate(run):
        if number >= WARM_UP:
            found.append(1e3 * report.seconds / report.steps)
            lasted += report.seconds
        if lasted > seconds:
            break
    jax.clear_caches()
    return statistics.median(found)


def configs(pattern: str) -> Iterable[tuple[str, TrainConfig]]:
    """One configuration of each shape among the cells that match."""
    shapes = {}
    for name, entry in PRESETS.items():
        if fnmatch(name, pattern):
            shapes.setdefault(shape_of(entry.config()), entry.config())
    return shapes.items()


def main() -> None:
    """Measure, print, and write the record after every shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default="*", help="only cells whose names match")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path, required=True, help="the record")
    args = parser.parse_args()
    record = json.loads(args.json.read_text()) if args.json.exists() else {"ms_per_step": {}}
    record["cores"] = cores()
    for shape, config in configs(args.cells):
        together = config.model_copy(update={"replicates": cores()})
        found = {
            "alone": ms_per_step(config, args.seconds),
            "together": ms_per_step(together, args.seconds),
        }
        record["ms_per_step"][shape] = found
        print(f"{shape:60} {found['alone']:9.2f} ms {found['together']:9.2f} ms together")
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

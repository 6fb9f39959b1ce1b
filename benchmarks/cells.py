"""Time of a step for every cell of the published tables: one model alone, and one per core.

    python benchmarks/cells.py --json src/iwae/experiments/costs.json [--cells 'table1/*']

Needs the data sets of the cells (IWAE_DATA or a network). `iwae reproduce list` converts the record
to hours; those of a run in stages are the sum over its stages, each of which is timed by itself.
Earlier measurements are kept unless they are repeated. Medians are over the blocks in which no
other program was busy, if there are any; the record has their number. Shapes without that number
were timed by an earlier version, which did not check.
"""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(len(os.sched_getaffinity(0))))

import argparse
import json
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import jax

from iwae.config.experiment import TrainConfig
from iwae.config.presets import PRESETS
from iwae.experiments.costs import costed_stages, step_cost_key
from iwae.runs.jobs import initial_job_state, make_job
from iwae.training.stages import train_stages
from timing import Timing, cores, summary, time_dispatches


def time_steps(config: TrainConfig, seconds: float) -> Timing:
    """Milliseconds per step of all replicates together, one block for each dispatch of the loop."""
    job = make_job(config)
    state, best = initial_job_state(job)
    run = train_stages(state, best, job.dataset.train, job.models[0], job.stages, job.plan)
    blocks = time_dispatches(run, seconds)
    jax.clear_caches()
    return summary(blocks)


def configs(pattern: str) -> Iterable[tuple[str, TrainConfig]]:
    """One configuration, of a run or a stage, for each shape among the matching cells."""
    shapes = {}
    for name, entry in PRESETS.items():
        if fnmatch(name, pattern):
            for stage in costed_stages(entry.config()):
                shapes.setdefault(step_cost_key(stage), stage)
    return shapes.items()


def main() -> None:
    """Measure each shape, print it, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default="*", help="only cells whose names match")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path, required=True, help="the record")
    args = parser.parse_args()
    record = json.loads(args.json.read_text()) if args.json.exists() else {"ms_per_step": {}}
    record["cores"] = cores()
    for shape, config in configs(args.cells):
        together = config.model_copy(update={"replicates": cores()})
        timed = {
            "alone": time_steps(config, args.seconds),
            "together": time_steps(together, args.seconds),
        }
        record["ms_per_step"][shape] = {
            **{name: timing.median for name, timing in timed.items()},
            "quiet_blocks": {name: timing.quiet for name, timing in timed.items()},
            "machine": platform.machine(),
            "version": version("iwae"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        words = [f"{one.median:9.2f} ms ({one.quiet} quiet blocks)" for one in timed.values()]
        print(f"{shape:60} {words[0]} {words[1]} together", flush=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

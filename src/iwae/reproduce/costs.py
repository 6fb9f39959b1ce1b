"""How long a cell takes, from times of its steps that `benchmarks/cells.py` measured."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from iwae.config import TrainConfig
from iwae.data import DATASETS


def shape_of(config: TrainConfig) -> str:
    """What the time of a step depends on, in words."""
    found = config.declaration()
    shape = [
        "x".join(map(str, DATASETS[config.dataset].shape)),
        f"{len(config.sizes()[0])}l",
        "+".join(map(str, config.sizes()[0])),
        found.objective,
        *(
            f"{name}{value}"
            for name in ("m", "k", "temperatures", "leapfrog")
            if (value := getattr(found, name)) is not None
        ),
        *([found.gradient] if found.gradient not in (None, "reparam") else []),
        f"batch{config.batch_size}",
    ]
    return " ".join(shape)


@cache
def measured_costs() -> dict[str, Any]:
    """The record of `benchmarks/cells.py`."""
    return json.loads(files("iwae.reproduce").joinpath("costs.json").read_text())


def hours(config: TrainConfig) -> float | None:
    """Hours of training on the machine of the record; None for what was not measured there.

    Its replicates are trained at once, several to each of the machine's devices.
    """
    if config.dataset not in DATASETS:  # a file of the user's own
        return None
    record = measured_costs()
    found = record["ms_per_step"].get(shape_of(config))
    if found is None:
        return None
    steps = config.epochs * (DATASETS[config.dataset].sizes[0] // config.batch_size)
    rounds = -(-config.replicates // record["cores"])
    ms = found["alone"] if config.replicates == 1 else rounds * found["together"]
    return steps * ms / 3.6e6

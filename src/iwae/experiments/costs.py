"""Training time of a cell, from times of its steps that `benchmarks/cells.py` measured."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from iwae.config.experiment import TrainConfig
from iwae.data import DATASETS
from iwae.objectives.declaration import particles


def stage_configs(config: TrainConfig) -> list[TrainConfig]:
    """The configuration of each stage that has epochs; the run's own if it has no stages."""
    epochs = config.stage_epochs()
    return [config.stage(i, length) for i, length in enumerate(epochs) if length]


def shape_of(config: TrainConfig) -> str:
    """The settings that the time of a step depends on, in words; for stages, of each of them."""
    found = config.declaration()
    few = found.backward
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
        *([f"backward{few}"] if few is not None and few < particles(found) else []),
        # A step of the authors' Adam takes as long as one of the paper's.
        *([config.optimizer] if config.optimizer not in ("adam", "authors") else []),
        *(["ema"] if config.ema is not None else []),
        *(
            f"{name}-{value}"
            for name in ("prior", "posterior")
            if (value := getattr(config, name)) != "normal"
        ),
        f"batch{config.batch_size}",
    ]
    return " ".join(shape)


@cache
def measured_costs() -> dict[str, Any]:
    """The record of `benchmarks/cells.py`."""
    return json.loads(files("iwae.experiments").joinpath("costs.json").read_text())


def hours(config: TrainConfig) -> float | None:
    """Hours of training on the machine of the record; None for what was not measured there.

    Its replicates are trained at once, several to each of the machine's devices.
    """
    if config.dataset not in DATASETS:  # a file of the user's own
        return None
    total = 0.0
    for stage in stage_configs(config):
        found = measured_costs()["ms_per_step"].get(shape_of(stage))
        if found is None:
            return None
        assert stage.batch_size != "auto"  # noqa: S101 - that is for a user's own data
        steps = stage.epochs * (DATASETS[stage.dataset].sizes[0] // stage.batch_size)
        rounds = -(-stage.replicates // measured_costs()["cores"])
        ms = found["alone"] if stage.replicates == 1 else rounds * found["together"]
        total += steps * ms / 3.6e6
    return total

"""Training time of a cell, from the times of steps that `benchmarks/cells.py` measured."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from iwae.config.experiment import TrainConfig
from iwae.data import DATASETS
from iwae.objectives.declaration import declared_particles


def costed_stages(config: TrainConfig) -> list[TrainConfig]:
    """The configuration of each stage that has epochs; the run's own without stages."""
    epochs = config.stage_epochs()
    return [config.stage(i, length) for i, length in enumerate(epochs) if length]


def step_cost_key(config: TrainConfig) -> str:
    """The settings of a stage that the time of a step depends on, in words."""
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
        *([f"backward{few}"] if few is not None and few < declared_particles(found) else []),
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
    """The record that `benchmarks/cells.py` wrote."""
    return json.loads(files("iwae.experiments").joinpath("costs.json").read_text())


def cost_hours(config: TrainConfig) -> float | None:
    """Hours of training on the machine of the record; None if a step was not measured there.

    Replicates are trained at once, divided among the machine's devices.
    """
    if config.dataset not in DATASETS:  # the user's own data
        return None
    total = 0.0
    for stage in costed_stages(config):
        found = measured_costs()["ms_per_step"].get(step_cost_key(stage))
        if found is None:
            return None
        assert stage.batch_size != "auto"  # noqa: S101 - for the user's own data only
        steps = stage.epochs * (DATASETS[stage.dataset].sizes[0] // stage.batch_size)
        rounds = -(-stage.replicates // measured_costs()["cores"])
        ms = found["alone"] if stage.replicates == 1 else rounds * found["together"]
        total += steps * ms / 3.6e6
    return total


def cost_in_words(hours: float | None) -> str:
    """Hours in words; "-" if they are unknown."""
    if hours is None:
        return "-"
    if 0 < hours < 1 / 60:
        return "< 1 min"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.0f} h"

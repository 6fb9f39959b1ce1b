"""Fast recipes for the published experiments: the same model and objective, trained differently.

A recipe keeps the data, model and objective of a cell, and replaces its optimiser, learning rates
and epochs with stages. `experiments/recipes.py` holds the trials that chose it.
"""

from collections.abc import Mapping
from typing import Any

COMMON: dict[str, Any] = {
    "batch_size": 100,
    "optimizer": "soap",
    "learning_rate": 3e-3,
    "schedule": "linear",
}
"""Settings of all stages that the cell or a stage may override."""

FEW = 8
"""Particles that the gradient goes through, where an objective has more."""

ALONE, START, END = 200, 300, 60
"""Epochs of the only stage for a single particle; of the first and of the last of two stages."""

TURNING_RATE = COMMON["learning_rate"] * END / (START + END)
"""Learning rate between the two stages, so that it decays along one line over both."""

ENDING_RATE = 1e-3
"""Initial learning rate of a stage that continues a finished model; it decays to zero."""

LONGER = {"omniglot": 2}
"""Data sets with fewer training examples -> factor by which epochs are multiplied."""


def fast(values: Mapping[str, Any], way: str | None = None) -> dict[str, Any]:
    """The settings of a cell with the stages of its fast recipe.

    Args:
        way: the stages, if they are not those of the cell's objective.
    """
    particles, times = values.get("k", 1) * values.get("m", 1), LONGER.get(values["dataset"], 1)
    way = way or stages(values["objective"], particles, times=times)
    return {**COMMON, **values, "stages": way}


def stages(objective: str, particles: int, named: str = "", times: int = 1) -> str:
    """The stages towards an objective: few particles for most epochs, all of them at the end.

    Args:
        named: objective and k of the last stage, such as `iwae k=50`, if they are not the run's.
        times: factor by which epochs are multiplied.
    """
    if objective != "aiwae" and particles <= FEW:
        return _words(named, f"epochs={(ALONE if particles == 1 else START + END) * times}")
    first = "elbo k=1" if objective == "vae" else "iwae k=5"
    last = ending(named, particles, times=times, rate=TURNING_RATE)
    return f"{first} epochs={START * times} lr_end={TURNING_RATE:g}, {last}"


def ending(named: str, particles: int, *, times: int = 1, rate: float = ENDING_RATE) -> str:
    """A last stage that trains a model further, with an objective such as `iwae k=50`."""
    few = f"backward={FEW}" if particles > FEW else ""
    return _words(named, f"epochs={END * times}", few, f"learning_rate={rate:g}")


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)

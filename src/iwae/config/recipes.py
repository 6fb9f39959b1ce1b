"""Fast ways to the published experiments: the same model and objective, trained in another way.

A recipe keeps what a cell says of data, model and objective, and replaces its optimiser, rates and
epochs by stages. `experiments/recipes.py` holds the trials by which it was chosen.
"""

from collections.abc import Mapping
from typing import Any

COMMON: dict[str, Any] = {
    "batch_size": 100,
    "optimizer": "soap",
    "learning_rate": 3e-3,
    "schedule": "linear",
}
"""The settings of all stages, unless the cell or a stage says otherwise."""

FEW = 8
"""Particles that the gradient goes through where an objective has more."""

ALONE, START, END = 200, 300, 60
"""Epochs of the only stage of a single particle, of the first of two stages, and of the last."""

TURNING_RATE = COMMON["learning_rate"] * END / (START + END)
"""The learning rate between the two stages, so that it falls as one line over both."""

ENDING_RATE = 1e-3
"""The learning rate from which a stage after a finished model falls to zero."""

LONGER = {"omniglot": 2}
"""Data sets with fewer training examples -> how many times as many epochs."""


def fast(values: Mapping[str, Any], way: str | None = None) -> dict[str, Any]:
    """The settings of a cell, with the stages of its fast recipe.

    Args:
        way: the stages, if not those of the cell's objective.
    """
    particles, times = values.get("k", 1) * values.get("m", 1), LONGER.get(values["dataset"], 1)
    way = way or stages(values["objective"], particles, times=times)
    return {**COMMON, **values, "stages": way}


def stages(objective: str, particles: int, named: str = "", times: int = 1) -> str:
    """The way to an objective: few particles for most of it, all of them for the end.

    Args:
        named: objective and k of the end, such as `iwae k=50`, where they are not the run's.
        times: as many epochs.
    """
    if objective != "aiwae" and particles <= FEW:
        return _words(named, f"epochs={(ALONE if particles == 1 else START + END) * times}")
    first = "elbo k=1" if objective == "vae" else "iwae k=5"
    last = ending(named, particles, times=times, rate=TURNING_RATE)
    return f"{first} epochs={START * times} lr_end={TURNING_RATE:g}, {last}"


def ending(named: str, particles: int, *, times: int = 1, rate: float = ENDING_RATE) -> str:
    """A stage that trains a model further, by an objective such as `iwae k=50`."""
    few = f"backward={FEW}" if particles > FEW else ""
    return _words(named, f"epochs={END * times}", few, f"learning_rate={rate:g}")


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)

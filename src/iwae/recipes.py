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
    "schedule": "constant",
}
"""What all stages share, unless the cell or a stage says otherwise."""

FEW = 8
"""Particles that the gradient goes through where an objective has more."""

ENDING = "schedule=linear"
"""Of the last stage, in which the learning rate falls to zero."""


START, END, TO_GO_ON = 80, 40, 40
"""Epochs at the full learning rate, while it falls to zero, and of a warm start."""

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
    first, few = named, ""
    if objective == "aiwae":
        first = "iwae"
    elif particles > FEW:
        first, few = ("elbo k=1" if objective == "vae" else "iwae k=5"), f"backward={FEW} "
    start = START * (2 if particles == 1 else 1)  # an epoch of a single particle costs little
    ending = f"{named} epochs={END * times} {few}{ENDING}"
    return f"{first} epochs={start * times}, {ending}"


def warm_start(named: str, particles: int) -> str:
    """A stage that goes on from a finished model, to an objective such as `iwae k=50`."""
    few = f"backward={FEW} " if particles > FEW else ""
    return f"{named} epochs={TO_GO_ON} {few}learning_rate=1e-3 {ENDING} fresh=true"

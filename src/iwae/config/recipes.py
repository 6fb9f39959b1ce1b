"""Fast recipes for the published experiments: the same model and objective, trained differently.

A recipe keeps the data, model and objective of a cell, and replaces its optimiser, learning rates
and epochs with stages. `experiments/recipes.py` holds the trials that chose it.
"""

from collections.abc import Mapping
from typing import Any

COMMON: dict[str, Any] = {
    "batch_size": 100,
    "optimizer": "soap",
    "learning_rate": 5e-3,
    "schedule": "linear",
}
"""Settings of all stages that the cell or a stage may override."""

FEW = 8
"""Particles that the gradient goes through, where an objective has more."""

ALONE, START, END = 200, 300, 60
"""Epochs of the only stage for a single particle; of the first and of the last of two stages."""

TURNING_RATE = COMMON["learning_rate"] * END / (START + END)
"""Learning rate between the two stages, so that it decays along one line over both."""

WARMUP = 20
"""Epochs of KL warm-up with a learned prior, which at first has no use for most latent units."""

QUIETER = {"elbo": "stl", "vae": "stl", "iwae": "dreg"}
"""Objective -> an estimator of the same gradient with less noise, which learns faster."""

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
    warmup = WARMUP * times if values.get("prior", "normal") != "normal" else 0
    way = way or stages(values["objective"], particles, times=times, warmup=warmup)
    return {**COMMON, **values, "stages": way}


def stages(
    objective: str,
    particles: int,
    named: str = "",
    times: int = 1,
    *,
    plain: bool = False,
    warmup: int = 0,
) -> str:
    """The stages towards an objective: few particles for most epochs, all of them at the end.

    Args:
        named: objective and k of the last stage, such as `iwae k=50`, if they are not the run's.
        times: factor by which epochs are multiplied.
        plain: whether the last stage has the objective's own gradient estimator.
        warmup: epochs of KL warm-up in the first stage.
    """
    warm = f"kl_warmup={warmup}" if warmup else ""
    own = "" if plain else quiet(objective)
    if objective != "aiwae" and particles == 1:
        return _words(named, own, f"epochs={ALONE * times}", warm)
    first = "elbo k=1" if objective == "vae" else "iwae k=5"
    start = _words(first, quiet(first), f"epochs={START * times} lr_end={TURNING_RATE:g}", warm)
    return f"{start}, {ending(named, particles, own, times=times, rate=TURNING_RATE)}"


def ending(
    named: str, particles: int, gradient: str, *, times: int = 1, rate: float = ENDING_RATE
) -> str:
    """A last stage that trains a model further, with an objective such as `iwae k=50`."""
    few = f"backward={FEW}" if particles > FEW else ""
    return _words(named, gradient, f"epochs={END * times}", few, f"learning_rate={rate:g}")


def quiet(objective: str) -> str:
    """The gradient estimator of a stage with an objective such as `iwae k=5`."""
    name = QUIETER.get(objective.split(maxsplit=1)[0])
    return f"gradient={name}" if name else ""


def _words(*words: str) -> str:
    return " ".join(word for word in words if word)

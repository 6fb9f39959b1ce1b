"""Fast recipes for the published experiments: the same model and objective, trained differently.

A recipe keeps the data, model and objective of a cell, and replaces its optimiser, learning rates
and epochs with stages. `experiments/recipes.py` holds the trials that chose it.
"""

from collections.abc import Mapping
from typing import Any

COMMON: dict[str, Any] = {
    "batch_size": 400,
    "optimizer": "soap",
    "learning_rate": 4e-3,
    "schedule": "linear",
}
"""Settings of all stages. A good initial rate grows with the square root of the batch size."""

FEW = 8
"""Maximum particles that carry the gradient."""

ALONE, START, END = 200, 250, 30
"""Epochs of the only stage of a single particle; of the first and the last of two stages."""

LEARNED: dict[str, Any] = {"batch_size": 100, "learning_rate": 5e-3}
"""Settings with a learned prior and one stochastic layer, by trials of their own."""

WARMUP = 0.1
"""Share of the first stage for KL warm-up, with a learned prior or several stochastic layers. Such
models leave most latent units inactive at first. The trials with two layers are of k = 5."""

QUIETER = {"elbo": "stl", "vae": "stl", "iwae": "dreg"}
"""Objective -> an estimator of the same gradient with less variance, which learns faster."""

ENDING_RATE = COMMON["learning_rate"] / 2
"""Initial learning rate of a stage that continues a finished model; it decays to zero."""

LONGER = {"omniglot": 2}
"""Data sets with fewer training examples -> factor of the epochs."""


def fast_recipe(values: Mapping[str, Any], own: str | None = None) -> dict[str, Any]:
    """The settings of a cell with the stages of its fast recipe.

    Args:
        own: stages of its own, instead of those of its objective.
    """
    particles, times = values.get("k", 1) * values.get("m", 1), LONGER.get(values["dataset"], 1)
    learned, deep = values.get("prior", "normal") != "normal", values.get("layers", 1) > 1
    warm = WARMUP if learned or deep else 0.0
    common = {**COMMON, **(LEARNED if learned and not deep else {})}
    own = own or recipe_stages(
        values["objective"],
        particles,
        times=times,
        warm=warm,
        rate=common["learning_rate"],
    )
    return {**values, **common, "stages": own}


def recipe_stages(
    objective: str,
    particles: int,
    last: str = "",
    times: int = 1,
    *,
    plain: bool = False,
    warm: float = 0.0,
    rate: float = COMMON["learning_rate"],
) -> str:
    """The stages for an objective: few particles for most epochs, all of them at the end.

    Args:
        last: objective and k of the last stage, such as `iwae k=50`; by default the run's.
        times: factor of the epochs.
        plain: whether the last stage keeps the objective's own gradient estimator.
        warm: share of the first stage's epochs for KL warm-up.
        rate: initial learning rate of the run, which decays along one line over both stages.
    """
    own = "" if plain else recipe_gradient(objective)
    if objective != "aiwae" and particles == 1:
        return _line(last, own, *_epochs_and_warmup(ALONE * times, warm))
    first = "elbo k=1" if objective == "vae" else "iwae k=5"
    length = _epochs_and_warmup(START * times, warm)
    between = rate * END / (START + END)
    start = _line(first, recipe_gradient(first), *length, f"lr_end={between:g}")
    return f"{start}, {recipe_last_stage(last, particles, own, times=times, rate=between)}"


def recipe_last_stage(
    last: str, particles: int, gradient: str, *, times: int = 1, rate: float = ENDING_RATE
) -> str:
    """The last stage of a longer training, with an objective such as `iwae k=50`."""
    few = f"backward={FEW}" if particles > FEW else ""
    return _line(last, gradient, f"epochs={END * times}", few, f"learning_rate={rate:g}")


def recipe_gradient(objective: str) -> str:
    """The setting of the less noisy estimator for an objective such as `iwae k=5`."""
    name = QUIETER.get(objective.split(maxsplit=1)[0])
    return f"gradient={name}" if name else ""


def _epochs_and_warmup(epochs: int, warm: float) -> tuple[str, str]:
    return f"epochs={epochs}", f"kl_warmup={round(warm * epochs)}" if warm else ""


def _line(*words: str) -> str:
    return " ".join(word for word in words if word)

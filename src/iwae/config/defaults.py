"""Defaults that depend on the data and the objective."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from iwae.data.own import is_own
from iwae.data.tables import SUFFIXES as TABLES

IWAE_K = 16
"""Default importance samples of an IWAE: with one it would be a VAE."""

UNTIL_CONVERGED: dict[str, Any] = {
    "epochs": 400,
    "validation": 0.1,
    "patience": 100,
    "batch_size": "auto",
    "schedule": "cosine",
    "ema": 0.99,  # few held-out rows choose lucky epochs of weights that are not averaged
    "folds": "auto",
}
"""Defaults for a user's own data if no epochs are given: training stops early."""

BY_FOLDS: dict[str, Any] = {"validation": 0, "schedule": "constant"}
"""Defaults of a run whose epochs are chosen by cross-validation."""

NOT_BY_FOLDS = ("validation", "validate_every", "patience", "schedule", "init_from")
"""Settings that turn off cross-validation by default."""

SMALL: dict[str, Any] = {"latent_sizes": (10,), "hidden_sizes": ((100, 100),)}
"""Default network for a user's own table."""

OWN_DEFAULTS = {
    **{
        name: f"{value} for your own files without --epochs"
        for name, value in UNTIL_CONVERGED.items()
    },
    "epochs": f"{UNTIL_CONVERGED['epochs']} for your own files, with early stopping",
    "folds": "5 for your own files of at most 200 training rows without --epochs or --validation",
    "latent_sizes": "10 for your own tables",
    "hidden_sizes": "100,100 for your own tables",
    "k": f"{IWAE_K} for your own files, and with --objective iwae",
}
"""The values that `defaults_for` gives, in words."""


def defaults_for(
    dataset: Any,
    objective: Any,
    given: Container[str],
    validation: Any = None,
    folds: Any = None,
) -> dict[str, Any]:
    """Defaults of the settings that a user has not given, from the data and the objective.

    Args:
        given: names of the settings that the user has given.
        validation: number or share of the held-out examples, if given; patience needs some.
        folds: number of folds, if given.
    """
    found: dict[str, Any] = {}
    own = isinstance(dataset, str) and is_own(dataset)
    if own and "epochs" not in given and "stages" not in given:
        found |= UNTIL_CONVERGED
        if any(name in given for name in NOT_BY_FOLDS):
            del found["folds"]
    if str(folds) not in ("None", "auto"):
        found |= BY_FOLDS
    elif str(validation) in ("0", "0.0"):
        found.pop("patience", None)
    is_table = own and Path(dataset).suffix.lower() in TABLES
    if is_table and not any(name in given for name in ("layers", "network", *SMALL)):
        found |= SMALL
    if objective == "iwae" or (own and objective is None):
        found["k"] = IWAE_K
    return {name: value for name, value in found.items() if name not in given}

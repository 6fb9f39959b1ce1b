"""Types of settings that are more than a number or a text."""

from typing import Annotated, Literal

import tyro
from pydantic import Field

Size = Annotated[int, Field(ge=1)]
Sizes = Annotated[tuple[Size, ...], Field(strict=False)]  # a TOML file has lists

ObservationName = Literal[
    "bernoulli",
    "gaussian",
    "gaussian-shared",
    "gaussian-fixed",
    "logistic-mixture",
    "discretised-gaussian",
    "categorical",
    "poisson",
    "negative-binomial",
    "table",
]

Missing = Literal["at-random", "not-at-random", "not-at-random-high", "not-at-random-low"]
"""The mechanisms of `iwae.models.likelihoods.MISSING`."""

ActivationName = Literal[
    "tanh",
    "relu",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "sigmoid",
    "softplus",
]

OptimizerName = Literal["adam", "paper", "authors", "soap"]
ScheduleName = Literal["paper", "authors", "constant", "linear", "cosine", "constant-linear"]

Validation = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | Literal["authors"]

DECAYING = {"linear": 0.0, "cosine": 0.0, "constant-linear": 0.5}
"""Schedules that decay to `lr_end` -> the fraction of the epochs before the decay begins."""


def _lists(arguments: list[str]) -> tuple[tuple[int, ...], ...]:
    """Parse 200,200 none as ((200, 200), ())."""
    try:
        return tuple(
            () if one == "none" else tuple(int(size) for size in one.split(","))
            for one in arguments
        )
    except ValueError:
        words = " ".join(arguments)
        raise ValueError(
            f"{words!r} must be lists of whole numbers, such as 200,200 100,100, or none for no "
            "layers"
        ) from None


Lists = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="N,N ...",
    instance_from_str=_lists,
    is_instance=lambda value: value is None or isinstance(value, tuple),
    str_from_instance=lambda lists: [",".join(map(str, sizes)) or "none" for sizes in lists or ()],
)
"""The command line's parser of lists of sizes."""

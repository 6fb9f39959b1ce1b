"""Objectives: a value to maximise, its gradient, and arrays that it learns or tunes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import PyTree

from iwae.inference.particles import Info
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey, Scalar


class Extra(NamedTuple):
    """State of an objective besides the model's parameters.

    Attributes:
        learned: arrays learned by gradient together with the model's.
        tuned: arrays that `Objective.tune` changes after every step.
    """

    learned: PyTree = ()
    tuned: PyTree = ()


def _unchanged(tuned: PyTree, info: Info) -> PyTree:  # noqa: ARG001
    return tuned


@dataclass(frozen=True, eq=False)
class Objective:
    """A bound to maximise and its gradient estimator, for one example at a time.

    A call with (model, x, key) returns the bound, nats, whose gradient is the estimator.

    Attributes:
        terms: (model, x, key, extra) -> the bound, and an info.
        init: () -> the initial `Extra`.
        tune: (tuned, the info averaged over the batch) -> tuned, after every step.
        metrics: the scalar entries of the info that are logged besides the bound.
    """

    terms: Callable[[AbstractLatentModel, Example, PRNGKey, Extra], tuple[Scalar, Info]]
    init: Callable[[], Extra] = Extra
    tune: Callable[[PyTree, Info], PyTree] = _unchanged
    metrics: tuple[str, ...] = ("iwae",)

    def __call__(self, model: AbstractLatentModel, x: Example, key: PRNGKey) -> Scalar:
        """The bound with the initial `Extra`, nats."""
        return self.terms(model, x, key, self.init())[0]


def as_objective(function: Callable[[AbstractLatentModel, Example, PRNGKey], Scalar]) -> Objective:
    """An objective from a function (model, x, key) -> nats, maximised by its own gradient."""
    if isinstance(function, Objective):
        return function
    return Objective(lambda model, x, key, _: (function(model, x, key), {}), metrics=())

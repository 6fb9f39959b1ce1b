"""What is climbed: a number, its gradient, and what it learns and tunes beside the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from iwae.inference.particles import Info
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey, Scalar

Tree = TypeVar("Tree")


class Extra(NamedTuple):
    """What an objective has beside the model's parameters.

    Attributes:
        learned: arrays that climb the objective together with the model's.
        tuned: arrays that `Objective.tune` changes after every step.
    """

    learned: PyTree = ()
    tuned: PyTree = ()


def _same(tuned: PyTree, info: Info) -> PyTree:  # noqa: ARG001
    return tuned


@dataclass(frozen=True, eq=False)
class Objective:
    """A bound and the way to climb it: maximised, of one example at a time, nats.

    Called with (model, x, key) it is a number: the bound, whose gradient is the estimator.

    Attributes:
        terms: (model, x, key, extra) -> that number, and an info.
        init: what it starts with beside the model's parameters.
        tune: (tuned, the info averaged over the batch) -> tuned, after every step.
        shown: the entries of the info, all scalars, that a loss curve shows beside the bound.
    """

    terms: Callable[[AbstractLatentModel, Example, PRNGKey, Extra], tuple[Scalar, Info]]
    init: Callable[[], Extra] = Extra
    tune: Callable[[PyTree, Info], PyTree] = _same
    shown: tuple[str, ...] = ("iwae",)

    def __call__(self, model: AbstractLatentModel, x: Example, key: PRNGKey) -> Scalar:
        """The bound as it is before anything is learned or tuned beside the model, nats."""
        return self.terms(model, x, key, self.init())[0]


def as_objective(function: Callable[[AbstractLatentModel, Example, PRNGKey], Scalar]) -> Objective:
    """An objective from a function (model, x, key) -> nats, climbed by its own gradient."""
    if isinstance(function, Objective):
        return function
    return Objective(lambda model, x, key, _: (function(model, x, key), {}), shown=())


def frozen(tree: Tree) -> Tree:
    """The same, and no gradient reaches its arrays."""
    arrays, static = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), static)

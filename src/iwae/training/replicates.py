"""Replicates in a training state: the weights of all to evaluate, and the model of one."""

from typing import TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from iwae.models.vae import AbstractLatentModel
from iwae.training.steps import TrainState

Model = TypeVar("Model", bound=AbstractLatentModel)


def replicate_model(template: Model, params: PyTree, replicate: int) -> Model:
    """The model of one replicate; `template` provides everything that is not trained."""
    static = eqx.filter(template, eqx.is_inexact_array, inverse=True)
    return eqx.combine(jax.tree.map(lambda leaf: leaf[replicate], params), static)


def weights_of_replicates(state: TrainState) -> PyTree:
    """The parameters to evaluate and to save: their moving average if there is one."""
    return state.ema if jax.tree.leaves(state.ema) else state.params

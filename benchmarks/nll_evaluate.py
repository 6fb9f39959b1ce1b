"""L_k of the weights written by a contestant of `time_to_nll.py`, whatever trained them."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from iwae.evaluation.likelihood import log_likelihoods
from iwae.models.layers import Dense
from iwae.models.vae import VAE


def dense_layers(model: VAE) -> list[Dense]:
    """The dense layers of a model with one stochastic layer, in the order of the data."""
    encoder = model.encoder[0]
    hidden = model.decoder_hidden.layers
    return [*encoder.hidden.layers, encoder.loc, encoder.log_scale, *hidden, model.output]


def load(path: Path) -> VAE:
    """The published one-layer model with the weights of a file."""
    with np.load(path) as arrays:
        given = [jnp.asarray(arrays[name], jnp.float32) for name in arrays.files]
    model = VAE(784, key=jax.random.key(0))

    def places(model: VAE) -> list[jax.Array]:
        return [array for layer in dense_layers(model) for array in (layer.weight, layer.bias)]

    shapes = [array.shape for array in places(model)]
    if [array.shape for array in given] != shapes:
        raise ValueError(f"{path} holds {[array.shape for array in given]}, not {shapes}")
    return eqx.tree_at(places, model, given)


def nll(path: Path, images: np.ndarray, k: int) -> float:
    """Minus the mean of L_k over images [n, 784], nats, with the same random numbers each time."""
    return -float(log_likelihoods(load(path), images, jax.random.key(0), k=k).mean())

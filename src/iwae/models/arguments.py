"""Arguments of a new `VAE`, checked and converted to the arrays that it holds."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.data import Kind
from iwae.errors import UserError
from iwae.models.layers import ACTIVATIONS
from iwae.models.likelihoods.observation import Observation
from iwae.models.networks import Network, Output


def check_size_arguments(
    n_data: int, latent_sizes: Sequence[int], hidden_sizes: Sequence[Sequence[int]], activation: str
) -> None:
    """Raise UserError for lists of unequal lengths, empty layers or an unknown activation."""
    if not latent_sizes or len(latent_sizes) != len(hidden_sizes):
        raise UserError(
            f"{len(latent_sizes)} latent sizes but {len(hidden_sizes)} lists of hidden sizes: "
            "give one of each for every stochastic layer"
        )
    if min(n_data, *latent_sizes, *(size for sizes in hidden_sizes for size in sizes)) < 1:
        raise UserError("every layer needs at least one unit")
    if activation not in ACTIVATIONS:
        raise UserError(f"no activation {activation!r}; known: {', '.join(ACTIVATIONS)}")


def check_network_argument(
    network: Network, kind: Kind, n_data: int, n_inputs: int, n_outputs: int
) -> None:
    """Raise UserError if the data are not images that a convolutional network takes."""
    shape, n = list(network.shape), math.prod(network.shape)
    if n != n_data:
        raise UserError(f"images of shape {shape} have {n} values, but an example has {n_data}")
    if n_inputs % n or n_outputs % n or kind.columns is not None:
        raise UserError(
            "network 'conv' needs the same number of outputs for each value, which "
            f"{kind.name!r} does not have: use network 'mlp'"
        )


def output_bias_argument(
    layer: Output, n_free: int, bias: Array | np.ndarray | None
) -> tuple[Output, Float[Array, " n_free"] | None]:
    """Split the initial outputs into the bias of the layer and the free parameters."""
    n_outputs = layer.bias.shape[0]
    if bias is None:
        return layer, jnp.zeros(n_free) if n_free else None
    if bias.shape != (n_outputs + n_free,):
        raise UserError(
            f"output_bias has shape {bias.shape}; this model needs {(n_outputs + n_free,)}"
        )
    outputs, free = bias[:n_outputs], bias[n_outputs:]
    layer = eqx.tree_at(lambda output: output.bias, layer, jnp.asarray(outputs, jnp.float32))
    return layer, jnp.asarray(free, jnp.float32) if n_free else None


def statistics_argument(
    data: Observation, given: Array | np.ndarray | None
) -> Float[Array, " n_statistics"] | None:
    """The training-set statistics of the encoder; None if it needs none."""
    n = data.encoding.n_statistics if data.encoding else 0
    if given is not None and given.shape != (n,):
        raise UserError(f"statistics has shape {given.shape}; this model needs {(n,)}")
    if n == 0:
        return None
    return jnp.zeros(n) if given is None else jnp.asarray(given, jnp.float32)


def log_scale_argument(
    given: Array | np.ndarray | bool | None, n_data: int
) -> Float[Array, " n_data"] | None:
    """The log scales of the values; zeros if `given` is True, for a model about to be loaded."""
    if given is None:
        return None
    if given is True:
        return jnp.zeros(n_data)
    if np.shape(given) != (n_data,):
        raise UserError(f"log_scale has shape {np.shape(given)}; this model needs {(n_data,)}")
    return jnp.asarray(given, jnp.float32)

"""The deterministic networks of a model: dense and convolutional.

Each takes one example; `jax.vmap` adds batches and particles.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from iwae.errors import UserError
from iwae.models.layers import ACTIVATIONS, Convolution, Dense, Doubling, Halving, Residual
from iwae.typing import PRNGKey

NETWORKS = ("mlp", "conv")

CHANNELS = (32, 64)
"""The default channels of the convolutions."""

MOST_BLOCKS = 100
"""The most residual blocks after one layer."""


class Network(NamedTuple):
    """The layers between the data and the first stochastic layer.

    In the encoder, these layers precede the dense ones of `hidden_sizes[0]`; in the decoder, their
    mirror image follows them. An `mlp` has no layers of its own: its `blocks` follow each of the
    dense layers.

    Attributes:
        name: `mlp` for dense layers alone, `conv` for convolutions between them and an image.
        channels: for `conv`, the channels of each convolution, starting at the data; each
            convolution halves height and width.
        blocks: residual blocks after each layer of this network.
        shape: for `conv`, the shape of an example, `(h, w)` or `(h, w, c)`.
    """

    name: str = "mlp"
    channels: tuple[int, ...] = ()
    blocks: int = 0
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        blocks = f", {self.blocks} residual blocks" if self.blocks else ""
        return " ".join([self.name, *map(str, self.channels)]) + blocks


def make_network(
    name: str,
    *,
    channels: Sequence[int] | None = None,
    blocks: int = 0,
    shape: Sequence[int] | None = None,
) -> Network:
    """Build a network by name; None stands for the default of an argument.

    Raises:
        UserError: for an unknown name, or an argument that is invalid, missing, or does not apply
            to this network.
    """
    if name not in NETWORKS:
        raise UserError(f"no network {name!r}; known: {', '.join(NETWORKS)}")
    if not 0 <= blocks <= MOST_BLOCKS:
        raise UserError(f"blocks must be a number from 0 to {MOST_BLOCKS}, not {blocks}")
    if name == "mlp":
        if channels:
            raise UserError("channels go with network 'conv', not 'mlp': leave them out")
        return Network(name, blocks=blocks)
    network = Network(name, tuple(channels or CHANNELS), blocks, tuple(shape or ()))
    if len(network.shape) not in (2, 3):
        raise UserError(
            f"network 'conv' needs images of shape [h, w] or [h, w, c], not {list(network.shape)}: "
            "give the shape of an example, or use network 'mlp'"
        )
    if min(*network.channels, *network.shape) < 1:
        raise UserError("every layer needs at least one unit, and every image at least one pixel")
    most = math.ceil(math.log2(max(network.shape[:2])))
    if len(network.channels) > most:
        size = " x ".join(map(str, network.shape[:2]))
        raise UserError(
            f"an image of {size} pixels can be halved {most} times, but channels names "
            f"{len(network.channels)} convolutions: give fewer"
        )
    return network


def as_network(network: Network | Mapping[str, Any] | str) -> Network:
    """Build a network from its JSON form: a name, or a name with the other fields.

    Raises:
        UserError: as `make_network`.
    """
    if isinstance(network, str):
        return make_network(network)
    given = network._asdict() if isinstance(network, Network) else network
    return make_network(**given)


class Hidden(eqx.Module):
    """The dense layers between two stochastic ones, each optionally with residual blocks."""

    layers: tuple[Dense, ...]
    blocks: tuple[tuple[Residual, ...], ...]
    activation: str = eqx.field(static=True)

    def __init__(self, sizes: Sequence[int], activation: str, *, blocks: int = 0, key: PRNGKey):
        keys = jax.random.split(key, len(sizes))
        self.layers = tuple(
            Dense(fan_in, fan_out, key=k)
            for fan_in, fan_out, k in zip(sizes[:-1], sizes[1:], keys[1:], strict=True)
        )
        block_keys = jax.random.split(keys[0], len(sizes))[1:]
        self.blocks = _residual_blocks(Dense, sizes[1:], blocks, activation, block_keys)
        self.activation = activation

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The output of the last layer; x itself if there are no layers."""
        for layer, blocks in zip(self.layers, self.blocks, strict=True):
            x = ACTIVATIONS[self.activation](layer(x))
            for block in blocks:
                x = block(x)
        return x


class ConvEncoder(eqx.Module):
    """Convolutions that each halve an image, from the encoder's inputs to a vector."""

    halvings: tuple[Halving, ...]
    blocks: tuple[tuple[Residual, ...], ...]
    activation: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, network: Network, n_inputs: int, activation: str, *, key: PRNGKey):
        per_pixel = n_inputs // math.prod(network.shape[:2])
        halving_keys, block_keys = _layer_keys(key, network)
        channels = (per_pixel, *network.channels)
        self.halvings = tuple(
            Halving(c_in, c_out, key=k)
            for c_in, c_out, k in zip(channels[:-1], channels[1:], halving_keys, strict=True)
        )
        self.blocks = _residual_blocks(
            Convolution, network.channels, network.blocks, activation, block_keys
        )
        self.activation, self.shape = activation, network.shape

    def __call__(self, x: Float[Array, " n_inputs"]) -> Float[Array, " m"]:
        """The last image as a vector; x has the same number of inputs for each value."""
        h, w, *colours = self.shape
        image = jnp.moveaxis(x.reshape(-1, h, w, *colours), 0, 2).reshape(h, w, -1)
        for halving, blocks in zip(self.halvings, self.blocks, strict=True):
            image = ACTIVATIONS[self.activation](halving(image))
            for block in blocks:
                image = block(image)
        return image.ravel()


class ConvDecoder(eqx.Module):
    """The mirror image of `ConvEncoder`: a dense layer, then convolutions that double an image.

    The last convolution returns the outputs of the observation. `bias` has one number for each
    output, so that the decoder can start at any constant image.
    """

    start: Dense
    doublings: tuple[Doubling, ...]
    blocks: tuple[tuple[Residual, ...], ...]
    bias: Float[Array, " n_outputs"]
    activation: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self, network: Network, n_inputs: int, n_outputs: int, activation: str, *, key: PRNGKey
    ):
        start_key, key = jax.random.split(key)
        doubling_keys, block_keys = _layer_keys(key, network)
        h, w = _image_sizes(network.shape, len(network.channels))[0]
        channels = network.channels[::-1]
        self.start = Dense(n_inputs, h * w * channels[0], key=start_key)
        per_pixel = n_outputs // math.prod(network.shape[:2])
        outputs = (*channels[1:], per_pixel)
        self.doublings = tuple(
            Doubling(c_in, c_out, use_bias=l < len(channels) - 1, key=k)
            for l, (c_in, c_out, k) in enumerate(zip(channels, outputs, doubling_keys, strict=True))
        )
        self.blocks = _residual_blocks(
            Convolution, channels, network.blocks, activation, block_keys
        )
        self.bias = jnp.zeros(n_outputs)
        self.activation, self.shape = activation, network.shape

    def __call__(self, x: Float[Array, " n_inputs"]) -> Float[Array, " n_outputs"]:
        """The outputs in the order of `Observation`, the same number for each value."""
        sizes = _image_sizes(self.shape, len(self.doublings))
        image = self.start(x).reshape(*sizes[0], -1)
        for doubling, blocks, (h, w) in zip(self.doublings, self.blocks, sizes[1:], strict=True):
            image = ACTIVATIONS[self.activation](image)
            for block in blocks:
                image = block(image)
            image = doubling(image)[:h, :w]
        h, w, *colours = self.shape
        outputs = jnp.moveaxis(image.reshape(h, w, -1, *colours), 2, 0)
        return outputs.ravel() + self.bias


def _image_sizes(shape: tuple[int, ...], n: int) -> list[tuple[int, int]]:
    """Heights and widths of an image that is halved n times, the smallest first."""
    return [(-(-shape[0] // 2**l), -(-shape[1] // 2**l)) for l in range(n, -1, -1)]


def _layer_keys(key: PRNGKey, network: Network) -> tuple[Array, Array]:
    """A key for each convolution, and another for the blocks that follow it."""
    convolution_key, block_key = jax.random.split(key)
    n = len(network.channels)
    return jax.random.split(convolution_key, n), jax.random.split(block_key, n)


def _residual_blocks(
    layer: type[Dense] | type[Convolution],
    sizes: Sequence[int],
    blocks: int,
    activation: str,
    keys: Key[Array, " sizes"],
) -> tuple[tuple[Residual, ...], ...]:
    """A group of `blocks` residual blocks for each size."""
    return tuple(
        tuple(Residual(layer, n, activation, key=k) for k in jax.random.split(key, blocks))
        if blocks
        else ()
        for n, key in zip(sizes, keys, strict=True)
    )


class OwnDecoder(eqx.Module):
    """A user's module, to whose output `bias` is added."""

    module: Callable[[Array], Array]
    bias: Float[Array, " n_outputs"]

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n_outputs"]:
        """The outputs of the observation."""
        return self.module(x) + self.bias


Features = Callable[[Float[Array, " n"]], Float[Array, " m"]]
"""A map from the encoder's inputs to the inputs of its dense layers."""

Output = Dense | ConvDecoder | OwnDecoder
"""The map from the decoder's dense layers to its outputs, with one `bias` for each output."""


def make_feature_network(
    network: Network, own: Features | None, n_inputs: int, activation: str, *, key: PRNGKey
) -> tuple[Features | None, int]:
    """Make the map before the encoder's dense layers (None: the identity); return its output size.

    Args:
        own: a user's module, which replaces that of the network.

    Raises:
        UserError: if the user's module does not return a vector.
    """
    features: Features | None = own
    if own is None and network.name == "conv":
        features = ConvEncoder(network, n_inputs, activation, key=key)
    return features, n_inputs if features is None else _width("encoder", features, n_inputs)


def make_output_network(
    network: Network,
    own: Callable[[Array], Array] | None,
    n_inputs: int,
    n_outputs: int,
    activation: str,
    *,
    key: PRNGKey,
) -> Output:
    """Make the map after the decoder's dense layers, from `n_inputs` to `n_outputs` numbers.

    Args:
        own: a user's module, which replaces that of the network.

    Raises:
        UserError: if the user's module does not return `n_outputs` numbers.
    """
    if own is None and network.name == "mlp":
        return Dense(n_inputs, n_outputs, key=key)
    if own is None:
        return ConvDecoder(network, n_inputs, n_outputs, activation, key=key)
    width = _width("decoder", own, n_inputs)
    if width != n_outputs:
        raise UserError(f"decoder returns {width} numbers, but the observation needs {n_outputs}")
    return OwnDecoder(own, jnp.zeros(n_outputs))


def _width(name: str, module: Features, n: int) -> int:
    """The output size of a module for an input of size n."""
    out = eqx.filter_eval_shape(module, jax.ShapeDtypeStruct((n,), jnp.float32))
    if not isinstance(out, jax.ShapeDtypeStruct) or out.ndim != 1 or out.dtype != jnp.float32:
        raise UserError(f"{name} must map a vector to a float32 vector, but returns {out}")
    return int(out.shape[0])

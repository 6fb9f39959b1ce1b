"""The deterministic networks of a model: dense layers, convolutions, residual blocks.

Each takes one example; `jax.vmap` adds batches and particles.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.errors import UserError
from iwae.typing import PRNGKey

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
}
"""Nonlinearities by name; add your own under a new name."""

NETWORKS = ("mlp", "conv")

CHANNELS = (32, 64)
"""The default channels of the convolutions."""

MOST_BLOCKS = 100
"""The most residual blocks after one layer."""


class Network(NamedTuple):
    """The layers between the data and the first stochastic layer.

    In the encoder these layers come before the dense ones of `hidden_sizes[0]`; in the decoder
    they come after them, mirrored. The `blocks` of an `mlp` follow each of those dense layers.

    Attributes:
        name: `mlp` for dense layers alone, `conv` for convolutions between them and an image.
        channels: for `conv`, those of each convolution, from the data on; each halves height and
            width.
        blocks: residual blocks after each layer of this network.
        shape: for `conv`, that of one example, `(h, w)` or `(h, w, c)`.
    """

    name: str = "mlp"
    channels: tuple[int, ...] = ()
    blocks: int = 0
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        words = [self.name, *map(str, self.channels)]
        return " ".join(words) + (f", {self.blocks} residual blocks" if self.blocks else "")


def make_network(
    name: str,
    *,
    channels: Sequence[int] | None = None,
    blocks: int = 0,
    shape: Sequence[int] | None = None,
) -> Network:
    """Build a network by name; an argument that is None takes its default.

    Raises:
        UserError: for an unknown name, or an argument that is invalid, missing or another
            network's.
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
    """Build a checked network from its JSON form: a name alone, or a name with other fields.

    Raises:
        UserError: as `make_network`.
    """
    if isinstance(network, str):
        return make_network(network)
    given = network._asdict() if isinstance(network, Network) else network
    return make_network(**given)


# --- layers ---------------------------------------------------------------------------------


class Dense(eqx.Module):
    """y = x W + b, initialised with Glorot uniform W of gain 1 and b = 0."""

    weight: Float[Array, "fan_in fan_out"]
    bias: Float[Array, " fan_out"]

    def __init__(self, fan_in: int, fan_out: int, *, key: PRNGKey):
        self.weight = jax.nn.initializers.glorot_uniform()(key, (fan_in, fan_out), jnp.float32)
        self.bias = jnp.zeros(fan_out)

    def __call__(self, x: Float[Array, " fan_in"]) -> Float[Array, " fan_out"]:
        """The affine map of x."""
        return x @ self.weight + self.bias


class Convolution(eqx.Module):
    """A convolution with 3 x 3 weights and zero padding, which keeps the number of pixels."""

    weight: Float[Array, "3 3 c_in c_out"]
    bias: Float[Array, " c_out"]

    def __init__(self, c_in: int, c_out: int, *, key: PRNGKey):
        self.weight = _glorot(key, (3, 3, c_in, c_out), 9 * c_in, 9 * c_out)
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h w c_out"]:
        """The cross-correlation of x and the weights."""
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        return _windows(padded, 3) @ _flat(self.weight) + self.bias[None, None]


class Halving(eqx.Module):
    """A 4 x 4 convolution with stride 2, which halves the height and width, rounded up."""

    weight: Float[Array, "4 4 c_in c_out"]
    bias: Float[Array, " c_out"]

    def __init__(self, c_in: int, c_out: int, *, key: PRNGKey):
        self.weight = _glorot(key, (4, 4, c_in, c_out), 16 * c_in, 4 * c_out)
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h2 w2 c_out"]:
        """The cross-correlation of x and the weights, with stride 2."""
        padded = jnp.pad(x, ((1, 1 + x.shape[0] % 2), (1, 1 + x.shape[1] % 2), (0, 0)))
        return _windows(padded, 4, 2) @ _flat(self.weight) + self.bias[None, None]


class Doubling(eqx.Module):
    """The transpose of `Halving` (with its own weights), which doubles the height and width."""

    weight: Float[Array, "4 4 c_in c_out"]
    bias: Float[Array, " c_out"] | None

    def __init__(self, c_in: int, c_out: int, *, use_bias: bool = True, key: PRNGKey):
        self.weight = _glorot(key, (4, 4, c_in, c_out), 4 * c_in, 16 * c_out)
        self.bias = jnp.zeros(c_out) if use_bias else None

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h2 w2 c_out"]:
        """The cross-correlation of the weights and x with a zero after each row and column.

        Pixels (2 i + a, 2 j + b) see the 2 x 2 window at (i + a, j + b), each of the four (a, b)
        through every second weight, so that nothing is multiplied by those zeros.
        """
        h, w, c_in = x.shape
        c_out = self.weight.shape[-1]
        split = self.weight.reshape(2, 2, 2, 2, c_in, c_out).transpose(0, 2, 4, 1, 3, 5)
        windows = _windows(jnp.pad(x, ((1, 1), (1, 1), (0, 0))), 2)
        seen = windows @ split.reshape(4 * c_in, 4 * c_out)
        seen = seen.reshape(h + 1, w + 1, 2, 2, c_out)
        rows = [
            jnp.stack([seen[a : a + h, b : b + w, a, b] for b in range(2)], axis=2)
            for a in range(2)
        ]
        out = jnp.stack(rows, axis=1).reshape(2 * h, 2 * w, c_out)
        return out if self.bias is None else out + self.bias[None, None]


def _windows(x: Float[Array, "h w c"], size: int, stride: int = 1) -> Float[Array, "h2 w2 n"]:
    """All windows of size x size pixels, each flattened in the order (row, column, channel).

    Their product with a weight matrix is a convolution, which stays one batched product under
    `vmap` over weights.
    """
    last = [n - size + 1 for n in x.shape[:2]]
    shifted = [
        x[i : i + last[0] : stride, j : j + last[1] : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _flat(weight: Float[Array, "r s c_in c_out"]) -> Float[Array, "n c_out"]:
    return weight.reshape(-1, weight.shape[-1])


def _glorot(key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """Glorot uniform weights of gain 1, for `fan_in` inputs per output and `fan_out` per input."""
    limit = math.sqrt(6 / (fan_in + fan_out))
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)


class Residual(eqx.Module):
    """x + f(x), where f has one hidden layer of the same size (He et al. 2016).

    f is initialised to zero, so that any number of blocks leaves the initial network unchanged
    (Goyal et al. 2017, sec. 5.1).
    """

    first: Dense | Convolution
    second: Dense | Convolution
    activation: str = eqx.field(static=True)

    def __init__(
        self, layer: type[Dense] | type[Convolution], n: int, activation: str, *, key: PRNGKey
    ):
        first_key, second_key = jax.random.split(key)
        self.first, second = layer(n, n, key=first_key), layer(n, n, key=second_key)
        self.second = eqx.tree_at(lambda f: f.weight, second, jnp.zeros_like(second.weight))
        self.activation = activation

    def __call__(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """x + f(x)."""
        return x + self.second(ACTIVATIONS[self.activation](self.first(x)))


def _residuals(
    layer: type[Dense] | type[Convolution], n: int, blocks: int, activation: str, key: PRNGKey
) -> tuple[Residual, ...]:
    keys = jax.random.split(key, blocks) if blocks else ()
    return tuple(Residual(layer, n, activation, key=k) for k in keys)


# --- networks -------------------------------------------------------------------------------


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
        self.blocks = tuple(
            _residuals(Dense, n, blocks, activation, k)
            for n, k in zip(sizes[1:], jax.random.split(keys[0], len(sizes))[1:], strict=True)
        )
        self.activation = activation

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The output of the last layer; x itself if there are no layers."""
        for layer, blocks in zip(self.layers, self.blocks, strict=True):
            x = ACTIVATIONS[self.activation](layer(x))
            for block in blocks:
                x = block(x)
        return x


class ConvEncoder(eqx.Module):
    """Convolutions that halve an image, from the encoder's inputs to a vector."""

    halvings: tuple[Halving, ...]
    blocks: tuple[tuple[Residual, ...], ...]
    activation: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, network: Network, n_inputs: int, activation: str, *, key: PRNGKey):
        per_pixel = n_inputs // math.prod(network.shape[:2])
        halving_keys, block_keys = _keys(key, network)
        channels = (per_pixel, *network.channels)
        self.halvings = tuple(
            Halving(c_in, c_out, key=k)
            for c_in, c_out, k in zip(channels[:-1], channels[1:], halving_keys, strict=True)
        )
        self.blocks = _block_groups(network, network.channels, activation, block_keys)
        self.activation, self.shape = activation, network.shape

    def __call__(self, x: Float[Array, " n_inputs"]) -> Float[Array, " m"]:
        """The last image as a vector; x holds the same number of inputs for each value."""
        h, w, *colours = self.shape
        image = jnp.moveaxis(x.reshape(-1, h, w, *colours), 0, 2).reshape(h, w, -1)
        for halving, blocks in zip(self.halvings, self.blocks, strict=True):
            image = ACTIVATIONS[self.activation](halving(image))
            for block in blocks:
                image = block(image)
        return image.ravel()


class ConvDecoder(eqx.Module):
    """The mirror image of `ConvEncoder`: a dense layer, then convolutions that double an image.

    The last one gives the outputs of the observation. `bias` has one number for each output, so
    that the decoder can start at any constant image.
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
        doubling_keys, block_keys = _keys(key, network)
        h, w = _sizes(network.shape, len(network.channels))[0]
        channels = network.channels[::-1]
        self.start = Dense(n_inputs, h * w * channels[0], key=start_key)
        per_pixel = n_outputs // math.prod(network.shape[:2])
        outputs = (*channels[1:], per_pixel)
        self.doublings = tuple(
            Doubling(c_in, c_out, use_bias=l < len(channels) - 1, key=k)
            for l, (c_in, c_out, k) in enumerate(zip(channels, outputs, doubling_keys, strict=True))
        )
        self.blocks = _block_groups(network, channels, activation, block_keys)
        self.bias = jnp.zeros(n_outputs)
        self.activation, self.shape = activation, network.shape

    def __call__(self, x: Float[Array, " n_inputs"]) -> Float[Array, " n_outputs"]:
        """The outputs, the same number for each value, in the order of `Observation`."""
        sizes = _sizes(self.shape, len(self.doublings))
        image = self.start(x).reshape(*sizes[0], -1)
        for doubling, blocks, (h, w) in zip(self.doublings, self.blocks, sizes[1:], strict=True):
            image = ACTIVATIONS[self.activation](image)
            for block in blocks:
                image = block(image)
            image = doubling(image)[:h, :w]
        h, w, *colours = self.shape
        outputs = jnp.moveaxis(image.reshape(h, w, -1, *colours), 2, 0)
        return outputs.ravel() + self.bias


def _sizes(shape: tuple[int, ...], n: int) -> list[tuple[int, int]]:
    """Heights and widths of an image that is halved n times, smallest first."""
    return [(-(-shape[0] // 2**l), -(-shape[1] // 2**l)) for l in range(n, -1, -1)]


def _keys(key: PRNGKey, network: Network) -> tuple[Array, Array]:
    """One key for each convolution, and one for the blocks after it."""
    convolution_key, block_key = jax.random.split(key)
    n = len(network.channels)
    return jax.random.split(convolution_key, n), jax.random.split(block_key, n)


def _block_groups(
    network: Network, channels: Sequence[int], activation: str, keys: Array
) -> tuple[tuple[Residual, ...], ...]:
    return tuple(
        _residuals(Convolution, n, network.blocks, activation, k)
        for n, k in zip(channels, keys, strict=True)
    )


class OwnDecoder(eqx.Module):
    """A user's module, with `bias` added to its output."""

    module: Callable[[Array], Array]
    bias: Float[Array, " n_outputs"]

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n_outputs"]:
        """The outputs of the observation."""
        return self.module(x) + self.bias


# --- parts of a model -----------------------------------------------------------------------


Features = Callable[[Float[Array, " n"]], Float[Array, " m"]]
"""A map from the encoder's inputs to what its dense layers see."""

Output = Dense | ConvDecoder | OwnDecoder
"""The map from the decoder's dense layers to its outputs, with one `bias` for each output."""


def make_features(
    network: Network, own: Features | None, n_inputs: int, activation: str, *, key: PRNGKey
) -> tuple[Features | None, int]:
    """The map before the encoder's dense layers (None if there is none), and its output size.

    Args:
        own: a user's module, which replaces that of the network.

    Raises:
        UserError: if the user's module does not return a vector.
    """
    features: Features | None = own
    if own is None and network.name == "conv":
        features = ConvEncoder(network, n_inputs, activation, key=key)
    return features, n_inputs if features is None else _width("encoder", features, n_inputs)


def make_output(
    network: Network,
    own: Callable[[Array], Array] | None,
    n_inputs: int,
    n_outputs: int,
    activation: str,
    *,
    key: PRNGKey,
) -> Output:
    """The map after the decoder's dense layers, from `n_inputs` to `n_outputs` numbers.

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

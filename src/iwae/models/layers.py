"""Layers: dense, convolutional, and residual blocks of either, with their initialisation.

Each takes one example; `jax.vmap` adds batches and particles.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
    """A 3 x 3 convolution with zero padding, which keeps the number of pixels."""

    weight: Float[Array, "3 3 c_in c_out"]
    bias: Float[Array, " c_out"]

    def __init__(self, c_in: int, c_out: int, *, key: PRNGKey):
        self.weight = _glorot(key, (3, 3, c_in, c_out), 9 * c_in, 9 * c_out)
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h w c_out"]:
        """The cross-correlation of x and the weights."""
        padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        return _windows(padded, 3) @ _as_matrix(self.weight) + self.bias[None, None]


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
        return _windows(padded, 4, 2) @ _as_matrix(self.weight) + self.bias[None, None]


class Doubling(eqx.Module):
    """The transpose of `Halving` with its own weights, which doubles the height and width."""

    weight: Float[Array, "4 4 c_in c_out"]
    bias: Float[Array, " c_out"] | None

    def __init__(self, c_in: int, c_out: int, *, use_bias: bool = True, key: PRNGKey):
        self.weight = _glorot(key, (4, 4, c_in, c_out), 4 * c_in, 16 * c_out)
        self.bias = jnp.zeros(c_out) if use_bias else None

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h2 w2 c_out"]:
        """The cross-correlation of the weights and x with a zero after each row and column.

        Output pixel (2 i + a, 2 j + b) depends on the 2 x 2 window at (i + a, j + b). Each of the
        four (a, b) uses every second weight, so that nothing is multiplied by those zeros.
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

    Their product with a weight matrix is a convolution. Under `vmap` over weights it stays a single
    batched product.
    """
    last = [n - size + 1 for n in x.shape[:2]]
    shifted = [
        x[i : i + last[0] : stride, j : j + last[1] : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _as_matrix(weight: Float[Array, "r s c_in c_out"]) -> Float[Array, "n c_out"]:
    return weight.reshape(-1, weight.shape[-1])


def _glorot(key: PRNGKey, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Array:
    """Glorot uniform weights of gain 1: `fan_in` inputs per output, `fan_out` outputs per input."""
    limit = math.sqrt(6 / (fan_in + fan_out))
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)


class Residual(eqx.Module):
    """x + f(x), where f has one hidden layer of the same size (He et al. 2016).

    f starts at zero, so that any number of blocks leaves the initial network unchanged (Goyal et
    al. 2017, sec. 5.1).
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

"""The interface between a kind of data and a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Shaped

Rows = Shaped[np.ndarray, "n d"]
"""Training examples, in the model's units; NaN is a missing value."""


class Encoding(NamedTuple):
    """The inputs of the encoder for an example.

    Attributes:
        n_inputs: the number of inputs. If values may be missing it is a multiple of d, and input i
            belongs to dimension i modulo d.
        transform: an example `[d]` and statistics `[n_statistics]` -> `[n_inputs]`.
        n_statistics: the number of training-set statistics that it needs; zeros must mean that
            nothing is known.
        statistics: training set -> statistics.
    """

    n_inputs: int
    transform: Callable[[Float[Array, " d"], Float[Array, " s"]], Float[Array, " i"]]
    n_statistics: int = 0
    statistics: Callable[[Rows], np.ndarray] = lambda rows: np.zeros(0)  # noqa: ARG005


class Observation(NamedTuple):
    """A kind of data of d dimensions.

    Attributes:
        n_outputs: the number of outputs of the decoder for an example.
        distribution: outputs `[n_outputs + n_free]` -> distribution over `x [d]` (event rank 1).
        initial_output: training set -> outputs `[n_outputs + n_free]` of the constant decoder with
            the highest likelihood.
        n_free: the number of outputs that do not depend on z: free parameters, which come last.
        encoding: the inputs of the encoder; None for the example itself.
        legal: a value in the support of the kind.
    """

    n_outputs: int
    distribution: Callable[[Float[Array, " o"]], dist.Distribution]
    initial_output: Callable[[Rows], np.ndarray]
    n_free: int = 0
    encoding: Encoding | None = None
    legal: float = 0.0


def standardised_observation(
    d: int, of: Callable[..., Any] = lambda x: x, of_rows: Callable[..., Any] = lambda x: x
) -> Encoding:
    """Standardise a function of the values: subtract its mean, divide by its standard deviation.

    Args:
        of: the function of an example, in JAX.
        of_rows: the same function of the training set, in NumPy and float64.
    """

    def transform(x: Float[Array, " d"], statistics: Float[Array, " s"]) -> Float[Array, " d"]:
        mean, log_scale = jnp.split(statistics, 2)
        return (of(x) - mean) * jnp.exp(-log_scale)

    def statistics(rows: Rows) -> np.ndarray:
        return observation_moments(of_rows(np.asarray(rows, np.float64)))

    return Encoding(d, transform, 2 * d, statistics)


def observation_moments(values: Shaped[np.ndarray, "n d"]) -> np.ndarray:
    """Means and log standard deviations (0 for constants) of the observed values, `[2 d]`."""
    values = np.asarray(values, np.float64)
    scale = np.nanstd(values, axis=0)
    return np.concatenate([np.nanmean(values, axis=0), np.log(np.where(scale > 0, scale, 1))])

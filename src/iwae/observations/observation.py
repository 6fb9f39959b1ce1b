"""What a kind of data is to a model."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Shaped

Rows = Shaped[np.ndarray, "n d"]
"""Training examples, in the model's units."""


class Encoding(NamedTuple):
    """What the encoder sees of an example.

    Attributes:
        n_inputs: how many numbers.
        transform: an example `[d]` and statistics `[n_statistics]` -> `[n_inputs]`.
        n_statistics: how many statistics of the training data it needs. All of them zero is to mean
            that nothing is known.
        statistics: training data -> statistics.
    """

    n_inputs: int
    transform: Callable[[Float[Array, " d"], Float[Array, " s"]], Float[Array, " i"]]
    n_statistics: int = 0
    statistics: Callable[[Rows], np.ndarray] = lambda rows: np.zeros(0)  # noqa: ARG005


class Observation(NamedTuple):
    """A kind of data of d dimensions.

    Attributes:
        n_outputs: numbers that the decoder puts out for an example.
        distribution: outputs `[n_outputs + n_free]` -> distribution over `x [d]` (event rank 1).
        initial_output: training data -> outputs `[n_outputs + n_free]` of the best constant
            decoder, that of the highest likelihood.
        n_free: outputs that are the same whatever z is: free parameters, which come last.
        encoding: what the encoder sees; None if that is the example itself.
    """

    n_outputs: int
    distribution: Callable[[Float[Array, " o"]], dist.Distribution]
    initial_output: Callable[[Rows], np.ndarray]
    n_free: int = 0
    encoding: Encoding | None = None

"""What a model says beyond its bounds: the density of any point."""

import jax
import numpy as np
from jaxtyping import Float

from iwae.evaluate import log_likelihoods
from iwae.model import AbstractLatentModel


def model_density(
    model: AbstractLatentModel, points: np.ndarray, k: int = 5000, seed: int = 0
) -> Float[np.ndarray, " n"]:
    """log p(x) at each of `points` `[n, d]`, nats, by k importance samples."""
    return log_likelihoods(model, np.asarray(points, np.float32), jax.random.key(seed), k=k)

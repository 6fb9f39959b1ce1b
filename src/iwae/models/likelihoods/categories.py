"""Categories 0 to K - 1."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.data import Kind
from iwae.models.likelihoods.observation import Encoding, Observation, Rows
from iwae.typing import PRNGKey


class Categorical(dist.CategoricalLogits):
    """NumPyro's distribution, with float32 categories."""

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """Categories, as float32."""
        return super().sample(key, sample_shape).astype(jnp.float32)

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """The normalised logit of each category."""
        return super().log_prob(value.astype(jnp.int32))


def categorical(kind: Kind, d: int) -> Observation:
    """K logits for each dimension; the encoder's inputs are one-hot vectors."""
    k = kind.categories
    assert k is not None  # noqa: S101 - by `make_kind`

    def distribution(outputs: Float[Array, " o"]) -> dist.Distribution:
        return Categorical(outputs.reshape(k, -1).T).to_event(1)

    def start(rows: Rows) -> np.ndarray:
        """Log frequencies of the categories; one that never occurs has a count of 1 / K."""
        counts = np.stack([(rows == category).sum(axis=0) for category in range(k)])
        return np.log(np.maximum(counts, 1 / k) / np.sum(~np.isnan(rows), axis=0)).ravel()

    def transform(x: Float[Array, " d"], _: Float[Array, " 0"]) -> Float[Array, " i"]:
        return jax.nn.one_hot(x.astype(jnp.int32), k, axis=0, dtype=jnp.float32).ravel()

    return Observation(k * d, distribution, start, encoding=Encoding(k * d, transform))

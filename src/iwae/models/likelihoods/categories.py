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
    """NumPyro's distribution over categories that are float32."""

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """Categories."""
        return super().sample(key, sample_shape).astype(jnp.float32)

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, " d"]:
        """The logit of each category, normalised."""
        return super().log_prob(value.astype(jnp.int32))


def categorical(kind: Kind, d: int) -> Observation:
    """K logits for each dimension, of which the encoder sees K zeros and ones."""
    k = kind.categories
    assert k is not None  # noqa: S101 - by `make_kind`

    def distribution(outputs: Float[Array, " o"]) -> dist.Distribution:
        return Categorical(outputs.reshape(k, -1).T).to_event(1)

    def start(rows: Rows) -> np.ndarray:
        """Logs of how often each is seen, a category never seen as if once in all the rows."""
        counts = np.stack([(rows == category).sum(axis=0) for category in range(k)])
        return np.log(np.maximum(counts, 1 / k) / np.sum(~np.isnan(rows), axis=0)).ravel()

    def transform(x: Float[Array, " d"], _: Float[Array, " 0"]) -> Float[Array, " i"]:
        return jax.nn.one_hot(x.astype(jnp.int32), k, axis=0, dtype=jnp.float32).ravel()

    return Observation(k * d, distribution, start, encoding=Encoding(k * d, transform))

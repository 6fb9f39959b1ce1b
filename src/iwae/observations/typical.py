"""One value that stands for a distribution."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.observations.categories import Categorical
from iwae.observations.table import Columns


def typical(p: dist.Distribution) -> Float[Array, " d"]:
    """The mean of each dimension; of categories the most likely one."""
    if isinstance(p, Columns):
        return p.in_place([typical(one) for one in p.each])
    if isinstance(p, dist.Independent) and isinstance(p.base_dist, Categorical):
        return jnp.argmax(p.base_dist.logits, axis=-1).astype(jnp.float32)
    return p.mean

"""A single value that represents a distribution."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.models.likelihoods.categories import Categorical
from iwae.models.likelihoods.masking import SelfMasked
from iwae.models.likelihoods.missing import Incomplete
from iwae.models.likelihoods.table import Columns


def typical(p: dist.Distribution) -> Float[Array, " d"]:
    """The mean of each dimension; for categories, the most likely one."""
    if isinstance(p, Columns):
        return p.in_place([typical(one) for one in p.each])
    p = complete(p)
    if isinstance(p, dist.Independent) and isinstance(p.base_dist, Categorical):
        return jnp.argmax(p.base_dist.logits, axis=-1).astype(jnp.float32)
    return p.mean


def complete(p: dist.Distribution) -> dist.Distribution:
    """The distribution of a whole example, without missing values."""
    if isinstance(p, Columns):
        return Columns(tuple(map(complete, p.each)), p.places)
    p = p.values if isinstance(p, SelfMasked) else p
    return p.complete if isinstance(p, Incomplete) else p

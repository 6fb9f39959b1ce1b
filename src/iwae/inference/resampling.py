"""Resampling: the particles that a gradient goes through, with a factor for each; posterior draws.

A gradient is a sum over k particles. S of them are enough for an unbiased estimate, if particle i
is chosen with probability r_i and its term divided by r_i (Horvitz & Thompson 1952). Burda et al.
(2016, sec. 3) mention the case S = 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from iwae.inference.particles import Particles
from iwae.typing import Latents, PRNGKey, Scalar

Drawn = tuple[Int[Array, " S"], Float[Array, " S"]]
"""Indices of the drawn particles, and the factor on the term of each."""

Draw = Callable[[PRNGKey, Float[Array, " k"], int], Drawn]
"""(key, shares, S) -> S particles for which sum_j factor_j f(index_j) estimates sum_i f(i)."""


def resample_few(key: PRNGKey, shares: Float[Array, " k"], count: int) -> Drawn:
    """Draw at most `count` distinct particles: the largest always, the others by their shares.

    r_i = min(1, share_i / c), with c such that the r_i sum to `count`, minimises the variance of
    the factors 1 / r_i (Fearnhead & Clifford 2003, sec. 5). The draw is systematic, from a single
    uniform number, so that no particle is drawn twice.

    Args:
        shares: non-negative; their scale does not matter. A particle with share 0 is never drawn.
        count: S, less than k.
    """
    return systematic(jax.random.uniform(key), shares, count)


def systematic(u: Scalar, shares: Float[Array, " k"], count: int) -> Drawn:
    """The draw of `resample_few` for a given uniform number u in [0, 1)."""
    chances = resampling_probabilities(shares, count)
    ends = jnp.cumsum(chances)
    points = u + jnp.arange(count, dtype=ends.dtype)
    index = jnp.sum(ends[:, None] <= points[None], axis=0)
    index = jnp.minimum(index, shares.size - 1)
    chosen = (points < ends[-1]) & (chances[index] > 0)
    return index, jnp.where(chosen, 1 / jnp.where(chosen, chances[index], 1.0), 0.0)


def resampling_probabilities(shares: Float[Array, " k"], count: int) -> Float[Array, " k"]:
    """The inclusion probability of each particle; see `resample_few`."""

    def lower(c: Scalar, _: None) -> tuple[Scalar, None]:
        """Include more of the largest with certainty, and lower c to suit the rest."""
        certain = shares >= c
        left = count - jnp.sum(certain)
        rest = jnp.sum(jnp.where(certain, 0.0, shares))
        return jnp.where(left > 0, rest / jnp.maximum(left, 1).astype(c.dtype), c), None

    c = jax.lax.scan(lower, jnp.sum(shares) / count, None, length=count)[0]
    tiny = jnp.finfo(c.dtype).tiny
    return jnp.where(shares > 0, jnp.minimum(1.0, shares / jnp.maximum(c, tiny)), 0.0)


def sir(particles: Particles, key: PRNGKey, draws: int) -> Latents:
    """Draws from p(z|x) by sampling importance resampling (Rubin 1988): leaves `[draws, ...]`.

    Particles are drawn in proportion to their weights, with replacement, so that draws repeat if k
    is small.
    """
    k = particles.log_w.size
    index = jax.random.choice(key, k, (draws,), p=jax.nn.softmax(particles.log_w))
    return jax.tree.map(lambda leaf: leaf[index], particles.z)

"""Hiding of observed values in training, so that an encoder learns to read rows with gaps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.typing import Example, PRNGKey

HIDE = 0.1
"""Default probability for a model of missing values whose training rows have no gaps.

`docs/missing.md` has the measurement."""


def hide(x: Example, key: PRNGKey, share: float) -> Float[Array, "..."]:
    """Replace each value of an example by NaN with probability `share`.

    A hidden value is missing for the encoder and for the bound, which is then a bound on the log
    density of the remaining values (Mattei & Frellsen 2019).
    """
    return jnp.where(jax.random.bernoulli(key, share, x.shape), jnp.nan, x)


def hidden_share(given: float | None, missing: str | None, *, gaps: bool) -> float | None:
    """The probability of hiding an observed value; None if the model takes no missing values.

    Args:
        given: the user's choice. None means `HIDE` if values may be missing at random but the
            training rows have no gaps, and 0 otherwise.
        missing: the mechanism of missing values; None if the model takes none.
        gaps: whether the training rows have missing values.
    """
    if missing is None or given is not None:
        return given
    return HIDE if missing == "at-random" and not gaps else 0.0

"""Hiding observed values in training, so that an encoder learns to read rows with gaps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from iwae.typing import Example, PRNGKey

HIDE = 0.1
"""The probability for a model of missing values whose training rows have no gaps. `docs/missing.md`
has the measurement."""


def hide(x: Example, key: PRNGKey, share: float) -> Float[Array, "..."]:
    """The example, each value of which goes missing (NaN) with probability `share`.

    A hidden value is missing for the encoder and for the bound, so that the bound is one on the
    log-density of the values that stay (Mattei & Frellsen 2019).
    """
    return jnp.where(jax.random.bernoulli(key, share, x.shape), jnp.nan, x)


def hidden_share(given: float | None, missing: str | None, *, gaps: bool) -> float | None:
    """The probability of hiding an observed value; None if the model takes no missing ones.

    Args:
        given: what the user chose; None for `HIDE` where values may be missing at random and none
            is, otherwise 0.
        missing: the mechanism of missing values.
        gaps: whether values are missing in the training rows.
    """
    if missing is None or given is not None:
        return given
    return HIDE if missing == "at-random" and not gaps else 0.0

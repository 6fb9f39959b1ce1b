"""Kinds of data: the decoder's outputs as parameters of a NumPyro distribution over an example.

An `Observation` turns the decoder's outputs for an example into a distribution whose event is the
whole example. It also returns the constant output with the highest likelihood on the training set
(the initial bias of the last layer), and the inputs of the encoder. `iwae.data.kinds` has the
support of each kind and its parameters.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.data import Kind, as_kind
from iwae.data.kinds import MISSING, column_kinds
from iwae.errors import UserError
from iwae.models.likelihoods.bernoulli import bernoulli
from iwae.models.likelihoods.categories import Categorical, categorical
from iwae.models.likelihoods.counts import negative_binomial, poisson
from iwae.models.likelihoods.gaussian import gaussian, gaussian_fixed, gaussian_shared
from iwae.models.likelihoods.levels import discretised_gaussian, logistic_mixture
from iwae.models.likelihoods.masking import SIGNS, self_masking, without_masking
from iwae.models.likelihoods.missing import likelihood_missing_at_random
from iwae.models.likelihoods.observation import Observation
from iwae.models.likelihoods.table import Columns, table


def observation(kind: Kind | str, d: int, missing: str | None = None) -> Observation:
    """Build the observation of a kind of data, for examples of d dimensions.

    Args:
        missing: a name in `MISSING`, if values may be missing (NaN).

    Raises:
        UserError: for an unknown name (the message lists the known ones), or if values are not
            missing at random and none of them is Gaussian.
    """
    kind = as_kind(kind)
    if kind.name not in OBSERVATIONS:
        raise UserError(f"no observation {kind.name!r}; known: {', '.join(OBSERVATIONS)}")
    if missing is None:
        return OBSERVATIONS[kind.name](kind, d)
    if missing not in MISSING:
        raise UserError(f"no mechanism {missing!r} of missing values; known: {', '.join(MISSING)}")
    if missing in SIGNS and not _has_gaussian(kind):
        raise UserError(
            f"values that are missing {missing} must be gaussian, not {kind}, because no other "
            "missing values can be integrated out in closed form: use at-random"
        )
    if kind.columns is not None:
        return table(kind, d, partial(_columns_of_kind, missing=missing))
    data = OBSERVATIONS[kind.name](kind, d)
    return (
        self_masking(data, d, missing)
        if missing in SIGNS
        else likelihood_missing_at_random(data, d)
    )


def _columns_of_kind(kind: Kind, d: int, missing: str) -> Observation:
    """The columns of a table of one kind; only Gaussian ones are missing not at random."""
    return observation(kind, d, missing if _has_gaussian(kind) else "at-random")


def _has_gaussian(kind: Kind) -> bool:
    names = [kind.name, *(one.name for one in column_kinds(kind))]
    return any(name in GAUSSIANS for name in names)


def likelihood_centre(p: dist.Distribution) -> Float[Array, " d"]:
    """The mean of each dimension; for categories, the most likely one."""
    if isinstance(p, Columns):
        return p.in_place([likelihood_centre(one) for one in p.each])
    p = without_masking(p)
    if isinstance(p, dist.Independent) and isinstance(p.base_dist, Categorical):
        return jnp.argmax(p.base_dist.logits, axis=-1).astype(jnp.float32)
    return p.mean


GAUSSIANS = ("gaussian", "gaussian-shared", "gaussian-fixed")
"""Kinds whose values may be missing not at random."""

OBSERVATIONS: dict[str, Callable[[Kind, int], Observation]] = {
    "bernoulli": bernoulli,
    "gaussian": gaussian,
    "gaussian-shared": gaussian_shared,
    "gaussian-fixed": gaussian_fixed,
    "logistic-mixture": logistic_mixture,
    "discretised-gaussian": discretised_gaussian,
    "categorical": categorical,
    "poisson": poisson,
    "negative-binomial": negative_binomial,
    "table": lambda kind, d: table(kind, d, observation),
}
"""Constructors of observations, from a kind and the number of dimensions."""

"""Kinds of data: what the decoder's last layer means, as a NumPyro distribution over one example.

An `Observation` turns the numbers that the decoder puts out for an example into a distribution
whose event is the whole example, says which constant output describes the training data best (the
initial bias of that layer), and what the encoder sees. What values a kind takes, and its
parameters, are in `iwae.data.kinds`.
"""

from collections.abc import Callable

from iwae._types import UserError
from iwae.data import Kind, as_kind
from iwae.observations.bernoulli import MEAN_CLIP, BernoulliFromLogits, bernoulli
from iwae.observations.categories import categorical
from iwae.observations.counts import negative_binomial, poisson
from iwae.observations.gaussian import LEAST_SCALE, gaussian, gaussian_fixed, gaussian_shared
from iwae.observations.levels import discretised_gaussian, logistic_mixture
from iwae.observations.observation import Encoding, Observation
from iwae.observations.table import table
from iwae.observations.typical import typical

__all__ = [
    "LEAST_SCALE",
    "MEAN_CLIP",
    "OBSERVATIONS",
    "BernoulliFromLogits",
    "Encoding",
    "Observation",
    "observation",
    "typical",
]


def observation(kind: Kind | str, d: int) -> Observation:
    """The kind of data, for examples of d dimensions.

    Raises:
        UserError: if there is none of that name; the message lists those there are.
    """
    kind = as_kind(kind)
    if kind.name not in OBSERVATIONS:
        raise UserError(f"no observation {kind.name!r}; known: {', '.join(OBSERVATIONS)}")
    return OBSERVATIONS[kind.name](kind, d)


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
"""From a kind and the number of dimensions to all that a model needs to know."""

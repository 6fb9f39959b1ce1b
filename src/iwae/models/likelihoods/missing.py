"""Examples with missing values (NaN): the density of the observed ones.

The mechanism of missing values (Rubin 1976) is a name in `MISSING`. If values are missing at random
given the observed ones, the mechanism is ignorable, and the density is that of the observed values
(Mattei & Frellsen 2019). Otherwise, the mechanism is a part of the model: see
`iwae.models.likelihoods.masking`.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree

from iwae.errors import UserError
from iwae.models.likelihoods.observation import Encoding, Observation, standardised_observation
from iwae.typing import PRNGKey


@runtime_checkable
class Imputing(Protocol):
    """A distribution p(x|z) that can impute the missing values of an example, given z."""

    def averages(self) -> PyTree:
        """The quantities to average over z: probabilities of categories, means of the rest."""

    def guess(self, averages: PyTree) -> Float[Array, " d"]:
        """One value for each dimension, from the averages over z."""

    def fill(self, x: Float[Array, " d"], key: PRNGKey) -> Float[Array, " d"]:
        """The example with its missing values drawn given z."""


class Incomplete(dist.Distribution):
    """p(x|z) of independent values, with the density of the observed ones.

    Args:
        complete: the distribution of the whole example.
        legal: a value in the support of the kind. It replaces missing values where a density is
            computed but not used, so that no gradient is nan.

    Raises:
        UserError: if the values are not independent given z.
    """

    pytree_data_fields = ("complete",)
    pytree_aux_fields = ("legal",)

    def __init__(self, complete: dist.Distribution, legal: float = 0.0):
        if not isinstance(complete, dist.Independent) or complete.event_dim != 1:
            raise UserError(
                f"missing values need a kind of data whose values are independent given z, which a "
                f"{type(complete).__name__} does not declare: end it with .to_event(1)"
            )
        self.complete, self.legal = complete, legal
        super().__init__(event_shape=complete.event_shape)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*d"]:
        """A whole example, without missing values."""
        return self.complete.sample(key, sample_shape)

    def log_prob(self, value: Float[Array, " d"]) -> Float[Array, ""]:
        """log p(x_obs|z), nats: the sum over observed values; 0 if there are none."""
        observed = ~jnp.isnan(value)
        each = self.complete.base_dist.log_prob(jnp.where(observed, value, self.legal))
        return jnp.sum(jnp.where(observed, each, 0.0))

    @property
    def mean(self) -> Float[Array, " d"]:
        """The mean of the whole example."""
        return self.complete.mean

    def averages(self) -> PyTree:
        """Probabilities `[d, K]` of categories, means `[d]` of anything else."""
        one = self.complete.base_dist
        return one.probs if isinstance(one, dist.CategoricalLogits) else one.mean

    def guess(self, averages: PyTree) -> Float[Array, " d"]:
        """The most likely category, or the mean of anything else."""
        if isinstance(self.complete.base_dist, dist.CategoricalLogits):
            return jnp.argmax(averages, axis=-1).astype(jnp.float32)
        return averages

    def fill(self, x: Float[Array, " d"], key: PRNGKey) -> Float[Array, " d"]:
        """The example with its missing values drawn from p(x_mis|z)."""
        return jnp.where(jnp.isnan(x), self.sample(key), x)


def likelihood_missing_at_random(data: Observation, d: int) -> Observation:
    """The same kind of data, with values missing at random.

    The encoder's inputs are the usual ones (standardised values in place of the example itself),
    with zeros for missing values, followed by a mask: 1 for observed values, 0 for missing ones.

    Raises:
        UserError: if the encoder does not have the same number of inputs for each dimension.
    """

    def distribution(outputs: Float[Array, " o"]) -> dist.Distribution:
        return Incomplete(data.distribution(outputs), data.legal)

    encoding = _with_mask(data.encoding or standardised_observation(d), d, data.legal)
    return data._replace(distribution=distribution, encoding=encoding)


def _with_mask(encoding: Encoding, d: int, legal: float) -> Encoding:
    """The inputs with zeros for missing values, and a mask of `d` values, 1 for observed ones."""
    if encoding.n_inputs % d:
        raise UserError(
            f"the encoder has {encoding.n_inputs} inputs for {d} values: with missing values it "
            "must have the same number for each"
        )

    def transform(x: Float[Array, " d"], statistics: Float[Array, " s"]) -> Float[Array, " i"]:
        observed = ~jnp.isnan(x)
        seen = encoding.transform(jnp.where(observed, x, legal), statistics)
        known = jnp.where(observed[None], seen.reshape(-1, d), 0.0)
        return jnp.concatenate([known.ravel(), observed.astype(jnp.float32)])

    return encoding._replace(n_inputs=encoding.n_inputs + d, transform=transform)

"""Layers of bits and categories: their distributions, and networks that compute the logits."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from iwae.models.latent_kinds import LatentKind
from iwae.models.layers import Dense
from iwae.models.likelihoods.bernoulli import BernoulliFromLogits
from iwae.models.networks import Features, Hidden
from iwae.typing import PRNGKey


class OneHots(dist.Distribution):
    """Independent categorical units, each a one-hot vector: a flat vector `[n C]` of 0 and 1.

    The log density is linear in the value, so that its gradient gives the effect of a change of
    category.
    """

    arg_constraints = {"logits": constraints.real_matrix}  # noqa: RUF012 - NumPyro's
    pytree_data_fields = ("logits",)
    support = constraints.real_vector

    def __init__(self, logits: Float[Array, "n C"], *, validate_args: bool | None = None):
        self.logits = jax.nn.log_softmax(logits, axis=-1)
        super().__init__((), (logits.size,), validate_args=validate_args)

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:
        """One-hot draws, `[*sample_shape, n C]` float32."""
        n, categories = self.logits.shape
        drawn = jax.random.categorical(key, self.logits, shape=(*sample_shape, n))
        return jax.nn.one_hot(drawn, categories).reshape(*sample_shape, -1)

    def log_prob(self, value: Float[Array, " n_C"]) -> Array:
        """The log probability of all units, nats."""
        return jnp.sum(value * self.logits.ravel())

    @property
    def mean(self) -> Array:
        """The probabilities, `[n C]`."""
        return jnp.exp(self.logits).ravel()

    @property
    def variance(self) -> Array:
        """p (1 - p) of each number, `[n C]`."""
        return self.mean * (1 - self.mean)


def discrete(kind: LatentKind, logits: Float[Array, " n"]) -> dist.Distribution:
    """Independent units of a discrete layer, with one logit for each number."""
    if kind.categories is None:
        return BernoulliFromLogits(logits).to_event(1)
    return OneHots(logits.reshape(-1, kind.categories))


class DiscreteNet(eqx.Module):
    """Bits or categories whose logits are a function of the input."""

    features: Features | None  # from the input to the hidden layers; None: the identity
    hidden: Hidden
    logits: Dense
    kind: LatentKind = eqx.field(static=True)

    def __init__(
        self,
        sizes: Sequence[int],
        n_latent: int,
        activation: str,
        *,
        kind: LatentKind,
        features: Features | None = None,
        blocks: int = 0,
        key: PRNGKey,
    ):
        hidden_key, logits_key = jax.random.split(key)
        self.features, self.kind = features, kind
        self.hidden = Hidden(sizes, activation, blocks=blocks, key=hidden_key)
        self.logits = Dense(sizes[-1], n_latent * kind.width, key=logits_key)

    def __call__(self, x: Float[Array, " n"]) -> dist.Distribution:
        """The units given the input."""
        h = self.hidden(x if self.features is None else self.features(x))
        return discrete(self.kind, self.logits(h))

    @property
    def outputs(self) -> tuple[Dense, ...]:
        """The linear map to the parameters of the units."""
        return (self.logits,)

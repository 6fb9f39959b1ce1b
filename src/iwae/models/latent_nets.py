"""Networks that give the distribution of one layer of latents."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.models.discrete import DiscreteNet
from iwae.models.flows import Flow, FlowDistribution
from iwae.models.latent_kinds import LatentKind
from iwae.models.layers import Dense
from iwae.models.networks import Features, Hidden
from iwae.typing import PRNGKey

_FLOW = 3  # folded into the key, whose splits are 0 to 2


class GaussianNet(eqx.Module):
    """A diagonal Gaussian whose mean and log standard deviation are functions of the input.

    With a flow, the noise of the layer is the image of N(0, I) under a flow conditioned on the
    output h of the hidden layers, initially the identity.
    """

    features: Features | None  # from the input to the hidden layers; None: the identity
    hidden: Hidden
    loc: Dense
    log_scale: Dense
    flow: Flow | None

    def __init__(
        self,
        sizes: Sequence[int],
        n_latent: int,
        activation: str,
        *,
        features: Features | None = None,
        blocks: int = 0,
        flow: int = 0,
        key: PRNGKey,
    ):
        hidden_key, loc_key, scale_key = jax.random.split(key, 3)
        self.features = features
        self.hidden = Hidden(sizes, activation, blocks=blocks, key=hidden_key)
        self.loc = Dense(sizes[-1], n_latent, key=loc_key)
        self.log_scale = Dense(sizes[-1], n_latent, key=scale_key)
        self.flow = None
        if flow:
            flow_key = jax.random.fold_in(key, _FLOW)
            self.flow = Flow(n_latent, flow, n_condition=sizes[-1], key=flow_key)

    def __call__(self, x: Float[Array, " n"]) -> dist.Distribution | FlowDistribution:
        """N(loc(h), exp(log_scale(h))^2), with h the output of the hidden layers."""
        h = self.hidden(x if self.features is None else self.features(x))
        loc, scale = self.loc(h), jnp.exp(self.log_scale(h))
        if self.flow is not None:
            return FlowDistribution(self.flow, loc, scale, h)
        return dist.Normal(loc, scale).to_event(1)

    @property
    def outputs(self) -> tuple[Dense, ...]:
        """The linear maps to the parameters of the units."""
        return self.loc, self.log_scale


LatentNet = GaussianNet | DiscreteNet


def make_latent_net(
    kind: LatentKind,
    sizes: Sequence[int],
    n_latent: int,
    activation: str,
    *,
    flow: int = 0,
    **options: Any,
) -> LatentNet:
    """A network from `sizes[0]` inputs through dense layers to `n_latent` units of this kind."""
    if kind.is_discrete:
        return DiscreteNet(sizes, n_latent, activation, kind=kind, **options)
    return GaussianNet(sizes, n_latent, activation, flow=flow, **options)


def latent_net_input_layers(net: LatentNet) -> tuple[Dense, ...]:
    """The linear maps that read the input of a network, or the features of the input."""
    return net.hidden.layers[:1] or net.outputs

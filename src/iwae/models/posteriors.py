"""Approximate posteriors q(z|x): one layer of latents given the layer below, and all layers."""

from collections.abc import Sequence
from typing import Any, Protocol, cast, runtime_checkable

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
from iwae.typing import Latents, PRNGKey, Scalar


@runtime_checkable
class Posterior(Protocol):
    """q(z|x) of one example: a pytree, so that `stop_gradient` reaches all its parameters."""

    def sample(self, key: PRNGKey) -> Latents:
        """A draw z ~ q(z|x), reparameterised unless the attribute `has_rsample` is False."""

    def log_prob(self, z: Latents) -> Scalar:
        """log q(z|x), nats."""


def is_reparameterised(q: Posterior) -> bool:
    """Whether gradients flow through draws of q: they do unless its `has_rsample` is False."""
    return bool(getattr(q, "has_rsample", True))


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


def make_net(
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


def first_maps(net: LatentNet) -> tuple[Dense, ...]:
    """The linear maps that read the input of a network, or the features of the input."""
    return net.hidden.layers[:1] or net.outputs


_FLOW = 3  # folded into the key, whose splits are 0 to 2


def is_gaussian(p: Any) -> bool:
    """Whether p is a diagonal Gaussian, whose units are independent."""
    return isinstance(p, dist.Independent) and isinstance(p.base_dist, dist.Normal)


def centre(q: Any) -> Float[Array, " d"]:
    """The mean of a Gaussian; of a flow, the image of zero noise."""
    if isinstance(q, FlowDistribution):
        return q.place(jnp.zeros(q.flow.size))
    return q.mean


class LayeredPosterior(eqx.Module):
    """q(h_1|x) q(h_2|h_1) ... q(h_L|h_{L-1}); z is the tuple (h_1, ..., h_L)."""

    first: Posterior
    above: tuple[LatentNet, ...]

    def sample(self, key: PRNGKey) -> Latents:
        """Draw from the bottom up; reparameterised unless there are bits or categories."""
        first_key, *keys = jax.random.split(key, 1 + len(self.above))
        z: tuple[Any, ...] = (self.first.sample(first_key),)
        for net, k in zip(self.above, keys, strict=True):
            z = (*z, net(z[-1]).sample(k))
        return z

    @property
    def has_rsample(self) -> bool:
        """Whether draws are reparameterised."""
        normal = all(isinstance(net, GaussianNet) for net in self.above)
        return normal and is_reparameterised(self.first)

    def layers(self, z: Latents) -> tuple[Posterior, ...]:
        """q(h_l|h_{l-1}) for l = 1 ... L, with h_0 = x."""
        return (self.first, *(net(below) for net, below in zip(self.above, z, strict=False)))

    def layer_log_probs(self, z: Latents) -> tuple[Scalar, ...]:
        """log q(h_l|h_{l-1}) for l = 1 ... L, nats, with h_0 = x."""
        return tuple(q.log_prob(h) for q, h in zip(self.layers(z), z, strict=True))

    def log_prob(self, z: Latents) -> Scalar:
        """log q(z|x), nats."""
        return cast("Scalar", sum(self.layer_log_probs(z)))

    def layer_means(self, z: Latents) -> tuple[Float[Array, " _"], ...]:
        """E[h_l|h_{l-1}] for l = 1 ... L, with h_0 = x; only the first depends on x alone.

        The mean of a flow is unknown. Its place is taken by h_l, an unbiased estimate if z is a
        draw.
        """
        layers: tuple[Any, ...] = self.layers(z)
        pairs = zip(layers, z, strict=True)
        return tuple(h if isinstance(q, FlowDistribution) else q.mean for q, h in pairs)

    def top_centre(self) -> Posterior:
        """q(h_L|h_{L-1}) at the centre of each layer below."""
        q: Any = self.first
        for net in self.above:
            q = net(centre(q))
        return q

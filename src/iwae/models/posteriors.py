"""Approximate posteriors q(z|x): their interface, and the one of all layers of a VAE."""

from typing import Any, Protocol, cast, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.models.flows import FlowDistribution
from iwae.models.latent_nets import GaussianNet, LatentNet
from iwae.typing import Latents, PRNGKey, Scalar


@runtime_checkable
class Posterior(Protocol):
    """q(z|x) of one example: a pytree, so that `stop_gradient` reaches all its parameters."""

    def sample(self, key: PRNGKey) -> Latents:
        """A draw z ~ q(z|x), reparameterised unless the attribute `has_rsample` is False."""

    def log_prob(self, z: Latents) -> Scalar:
        """log q(z|x), nats."""


def is_reparameterised_posterior(q: Posterior) -> bool:
    """Whether gradients flow through draws of q: they do unless its `has_rsample` is False."""
    return bool(getattr(q, "has_rsample", True))


def is_diagonal_gaussian(p: Any) -> bool:
    """Whether p is a diagonal Gaussian, whose units are independent."""
    return isinstance(p, dist.Independent) and isinstance(p.base_dist, dist.Normal)


def _centre(q: Any) -> Float[Array, " d"]:
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
        return normal and is_reparameterised_posterior(self.first)

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
            q = net(_centre(q))
        return q

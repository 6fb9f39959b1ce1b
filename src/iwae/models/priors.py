"""Priors p(h_L) of the top layer.

A prior is a module that is called with the model, because a VampPrior consists of the model's own
encoder at learned inputs. It returns a distribution with `sample(key)` and `log_prob(h)`.
"""

from functools import partial
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.errors import UserError
from iwae.models.discrete import discrete
from iwae.models.flows import Flow, FlowDistribution
from iwae.models.latent_kinds import LatentKind
from iwae.models.likelihoods.gaussian import LOG_ROOT_2PI
from iwae.models.named_densities import Named, check_named_density, parse_named_prior
from iwae.models.posteriors import Posterior, is_diagonal_gaussian
from iwae.typing import PRNGKey, Scalar


@runtime_checkable
class Prior(Protocol):
    """A module that returns p(h_L)."""

    def __call__(self, model: Any) -> Posterior:
        """p(h_L) of a model: a NumPyro distribution, or any pytree with `sample` and `log_prob`."""


class LabelPrior(eqx.Module):
    """The Gaussian of one label: means and log standard deviations."""

    parameters: Float[Array, "2 d"]

    def __call__(self, model: Any) -> dist.Distribution:  # noqa: ARG002
        """N(mean, sd^2)."""
        return dist.Normal(self.parameters[0], jnp.exp(self.parameters[1])).to_event(1)


class DiscretePrior(eqx.Module):
    """Independent bits or categories with learned logits, initially uniform.

    Attributes:
        logits: `[n]` for bits, `[n C]` for categories.
        kind: the kind of the top layer.
    """

    logits: Float[Array, " n"]
    kind: LatentKind = eqx.field(static=True)

    def __call__(self, model: Any) -> dist.Distribution:  # noqa: ARG002
        """The units given the logits."""
        return discrete(self.kind, self.logits)


class Mixture(eqx.Module):
    """A mixture of distributions of one kind.

    Attributes:
        components: a distribution whose arrays have a leading axis, `[K, ...]`.
        log_weights: normalised, `[K]`, nats.
    """

    components: Any
    log_weights: Float[Array, " K"]

    def sample(self, key: PRNGKey) -> Float[Array, " d"]:
        """A draw, which is not reparameterised."""
        index_key, key = jax.random.split(key)
        j = jax.random.categorical(index_key, self.log_weights)
        return jax.tree.map(lambda leaf: leaf[j], self.components).sample(key)

    def log_prob(self, h: Float[Array, " d"]) -> Scalar:
        """log sum_j w_j p_j(h), nats."""
        if is_diagonal_gaussian(self.components):
            each = _gaussians(self.components.base_dist, h)
        else:
            each = jax.vmap(lambda component: component.log_prob(h))(self.components)
        return jax.nn.logsumexp(self.log_weights + each)


def _gaussians(units: dist.Normal, h: Float[Array, " d"]) -> Float[Array, " K"]:
    """log N(h; loc_j, scale_j^2) of each component, nats.

    Written as a quadratic function of h, so that particles and components meet in two matrix
    products: the obvious form takes as long as twenty training steps. Centring at the mean of all
    components reduces cancellation; the remaining rounding error is about 1e-7 of
    sum_i (h_i - loc_i)^2 / scale_i^2.
    """
    centre = jax.lax.stop_gradient(jnp.mean(units.loc, axis=0))
    loc, h = units.loc - centre[None], h - centre
    precision = units.scale**-2
    constant = jnp.sum(precision * loc**2 / 2 + jnp.log(units.scale) + LOG_ROOT_2PI, axis=1)
    product = partial(jnp.matmul, precision="highest")  # a GPU would round to fewer bits
    return product(precision * loc, h) - product(precision, h**2) / 2 - constant


class MixturePrior(eqx.Module):
    """A mixture of K diagonal Gaussians with learned weights, means and standard deviations.

    The initial weights are equal; the initial mixture has mean 0 and variance 1 in every direction.

    Args:
        size: K.
        n_latent: d.
        key: for the initial means.
    """

    log_weights: Float[Array, " K"]  # up to a constant
    loc: Float[Array, "K d"]
    log_scale: Float[Array, "K d"]

    def __init__(self, size: int, n_latent: int, *, key: PRNGKey):
        self.log_weights = jnp.zeros(size)
        self.loc = _SPREAD * jax.random.normal(key, (size, n_latent))
        self.log_scale = jnp.full((size, n_latent), 0.5 * jnp.log(1 - _SPREAD**2))

    @property
    def named(self) -> Named:
        """Its name and size."""
        return Named("mixture", self.loc.shape[-2])

    def __call__(self, model: Any) -> Mixture:  # noqa: ARG002
        """sum_j w_j N(loc_j, scale_j^2)."""
        return Mixture(
            jax.vmap(lambda loc, scale: dist.Normal(loc, scale).to_event(1))(
                self.loc, jnp.exp(self.log_scale)
            ),
            jax.nn.log_softmax(self.log_weights),
        )


_SPREAD = 0.5
"""Standard deviation of the initial means of a mixture."""


class VampPrior(eqx.Module):
    """The mixture 1/K sum_j q(h_L|u_j) over learned pseudo-inputs u_j.

    Tomczak & Welling 2018 (arXiv 1705.07120), eq. 9. The pseudo-inputs are inputs of the encoder's
    network, in its units: standardised if the encoder standardises, followed by a mask of ones and
    zeros if values may be missing. With several stochastic layers, q of each is conditioned on the
    centre of the layer below.

    Args:
        inputs: the initial pseudo-inputs, `[K, n_inputs]`.
    """

    inputs: Float[Array, "K n_inputs"]

    @property
    def named(self) -> Named:
        """Its name and size."""
        return Named("vamp", self.inputs.shape[-2])

    def __call__(self, model: Any) -> Mixture:
        """1/K sum_j q(h_L|u_j)."""
        components = jax.vmap(lambda u: model.posterior_given(u).top_centre())(self.inputs)
        size = self.inputs.shape[0]
        return Mixture(components, jnp.full(size, -jnp.log(float(size))))


class FlowPrior(eqx.Module):
    """The image of N(0, I) under a coupling flow."""

    flow: Flow

    @property
    def named(self) -> Named:
        """Its name and size."""
        return Named("flow", self.flow.layers)

    def __call__(self, model: Any) -> FlowDistribution:  # noqa: ARG002
        """p(h_L) = N(f^-1(h_L); 0, I) |d f^-1 / d h_L|."""
        return FlowDistribution(self.flow)


class Settled(eqx.Module):
    """A prior that has been computed and no longer depends on the model."""

    distribution: Posterior
    named: Named = eqx.field(static=True)

    def __call__(self, model: Any) -> Posterior:  # noqa: ARG002
        """The distribution."""
        return self.distribution


OWN = "own"
"""The name of a user's own prior."""


def named(prior: Prior | None) -> Named:
    """The name and size of a prior.

    The priors of a label and of discrete layers have the name of N(0, I), which is None.
    """
    if prior is None or isinstance(prior, LabelPrior | DiscretePrior):
        return Named("normal")
    return getattr(prior, "named", Named(OWN))


def make_prior(
    prior: Prior | str, model: Any, rows: Array | np.ndarray | None, *, key: PRNGKey
) -> Prior | None:
    """The prior of a model before training; None is N(0, I).

    "normal" for a discrete top layer means a prior with learned logits.

    Args:
        prior: a name, or a user's own module.
        model: a `VAE` whose encoder is complete.
        rows: examples that initialise the pseudo-inputs of `vamp`, `[K, n_data]`; noise if None.

    Raises:
        UserError: for an unknown name, rows that do not fit it, or a module that returns no density
            of h_L.
    """
    wanted = parse_named_prior(prior) if isinstance(prior, str) else Named(OWN)
    kind = model.latents[-1]
    if isinstance(prior, str):
        check_named_density("prior", wanted, kind)
    shape = [wanted.size, model.n_data] if wanted.name == "vamp" else None
    if rows is not None and list(rows.shape) != shape:
        takes = f"those of shape {shape}" if shape else "none"
        raise UserError(
            f"pseudo_inputs has shape {list(rows.shape)}, but the prior {str(wanted)!r} takes "
            f"{takes}"
        )
    if not isinstance(prior, str):
        _check_own(prior, model)
        return prior
    if wanted.name == "mixture":
        return MixturePrior(wanted.size, model.latent_sizes[-1], key=key)
    if wanted.name == "vamp" and rows is None:
        return VampPrior(jax.random.uniform(key, (wanted.size, model.n_inputs)))
    if wanted.name == "vamp":
        return VampPrior(jax.vmap(model.inputs)(jnp.asarray(rows, jnp.float32)))
    if wanted.name == "flow":
        return FlowPrior(Flow(model.latent_sizes[-1], wanted.size, key=key))
    return DiscretePrior(jnp.zeros(model.widths[-1]), kind) if kind.is_discrete else None


def _check_own(prior: Any, model: Any) -> None:
    """Raise UserError if a user's prior does not return a density of h_L."""
    size = model.widths[-1]
    h = jax.ShapeDtypeStruct((size,), jnp.float32)
    try:
        found = eqx.filter_eval_shape(lambda m, h: prior(m).log_prob(h), model, h)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"prior must be a function from the model to a distribution of {size} numbers: {error}"
        ) from error
    if getattr(found, "shape", None) != () or found.dtype != jnp.float32:
        raise UserError(
            f"log_prob of the prior must return a float32 scalar, in nats, not {found}: end a "
            "NumPyro distribution with .to_event(1)"
        )

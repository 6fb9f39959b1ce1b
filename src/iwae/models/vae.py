"""The interface of latent variable models, and the autoencoder with L stochastic layers."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from iwae.data import Kind, as_json, as_kind
from iwae.errors import UserError
from iwae.models import likelihoods as observations
from iwae.models import networks
from iwae.models.arguments import (
    check_network_argument,
    check_size_arguments,
    log_scale_argument,
    output_bias_argument,
    statistics_argument,
)
from iwae.models.latent_kinds import LatentKind, latent_kinds
from iwae.models.latent_nets import LatentNet, make_latent_net
from iwae.models.layers import Dense
from iwae.models.likelihoods.observation import Observation
from iwae.models.named_densities import Named, named_coupling_layers, parse_named_posterior
from iwae.models.posteriors import LayeredPosterior, Posterior, is_diagonal_gaussian
from iwae.models.priors import OWN, LabelPrior, Prior, Settled, make_prior, named
from iwae.precision import float32
from iwae.typing import Example, Latents, PRNGKey, Scalar


class Code(NamedTuple):
    """Mean and standard deviation of every unit of the first layer under q."""

    mean: Float[Array, " d"]
    scale: Float[Array, " d"]


class AbstractLatentModel(eqx.Module):
    """p(x, z) and q(z|x), for one example at a time; batch with `jax.vmap`."""

    @abc.abstractmethod
    def posterior(self, x: Example) -> Posterior:
        """q(z|x), computed once per example and shared by all of its particles."""

    @abc.abstractmethod
    def log_joint(self, x: Example, z: Latents) -> Scalar:
        """log p(x, z), nats."""

    @abc.abstractmethod
    def sample(self, key: PRNGKey) -> tuple[Latents, Example]:
        """Draw (z, x) ~ p by ancestral sampling."""

    def encode(self, x: Example) -> Code:
        """Mean and standard deviation of q(h_1|x), the layer nearest the data.

        Raises:
            UserError: if q(h_1|x) is not a NumPyro distribution, which has both in closed form.
        """
        q = self.posterior(x)
        first = getattr(q, "first", q)
        if not isinstance(first, dist.Distribution):
            raise UserError(
                f"a {type(first).__name__} does not state its mean and scale: estimate them from "
                "draws, model.posterior(x).sample(key)"
            )
        return Code(first.mean, jnp.sqrt(first.variance))

    def condition(self, x: Example) -> tuple[Any, Example]:
        """Condition the model on the part of x that is not random, such as a label.

        Returns:
            The conditioned model, and the random part of x: all of it, unless a subclass overrides
            this method.
        """
        return self, x


class VAE(AbstractLatentModel):
    """The autoencoder of Burda et al. (2016) with L stochastic layers of any size.

    q(z|x) = q(h_1|x) q(h_2|h_1) ...; p(x, z) = p(x|h_1) p(h_1|h_2) ... p(h_L), p(h_L) = N(0, I).
    All latents are diagonal Gaussians, unless `latents`, `prior` or `posterior` says otherwise. `z`
    is the tuple (h_1, ..., h_L), in which h_1 is nearest the data. A discrete layer holds 0 and 1
    as float32: `[d_l]` for bits, `[d_l C]` for one-hot categories.

    Args:
        n_data: dimensions of one example (flat).
        latent_sizes: sizes of h_1, ..., h_L.
        hidden_sizes: for each stochastic layer l, the deterministic layers between h_{l-1} and
            h_l, in the encoder's order; the decoder has the same in reverse.
        observation: a name in `iwae.models.likelihoods.OBSERVATIONS`, or a `Kind` with its
            parameters (or these as a mapping, as `architecture` gives them).
        latents: the kind of each stochastic layer, or one for all: `normal`, `bernoulli` or
            `categorical:C`. The prior of a discrete top layer has learned logits.
        activation: a name in `iwae.models.networks.ACTIVATIONS`.
        output_bias: the initial bias of the decoder's last layer, followed by the free parameters
            of the observation, from `Observation.initial_output` (zeros if None).
        statistics: the training-set statistics that the encoder needs, from
            `Observation.encoding` (zeros if None).
        missing: a name in `iwae.models.likelihoods.MISSING`, if values may be missing (NaN in
            an example). The densities are then those of the observed values.
        log_scale: `[n_data]`, log |d data / d model| of each value, if examples are standardised:
            all densities are then in the units of the data (`Dataset.scaling` has it).
        network: the other layers between the data and h_1: a name in
            `iwae.models.networks.NETWORKS`, or a `Network` (or its fields as a mapping, as
            `architecture` gives them).
        encoder: a module of your own in place of the network's part of the encoder: a function from
            the encoder's inputs, `[n_inputs]` (the example, unless the observation has an
            `Encoding`), to a vector of any size. The layers of `hidden_sizes[0]` follow it.
        decoder: a module of your own in place of the network's part of the decoder: a function from
            the last of the dense layers (h_1 if there are none) to the `[n_outputs]` outputs of the
            observation.
        prior: p(h_L): "normal" for N(0, I), "mixture:K" for K learned Gaussians, "vamp:K" for the
            encoder at K learned pseudo-inputs, "flow:N" for N coupling layers; or a module of your
            own, a function from the model to a distribution.
        posterior: q(h_l|h_{l-1}) of every layer: "normal", or "flow:N" for N coupling layers,
            conditioned on the features from which mean and scale are computed; "flow-first:N" has
            them in q(h_1|x) alone.
        pseudo_inputs: the initial pseudo-inputs of `vamp:K`, `[K, n_data]`, such as random training
            rows (noise if None).
        key: for initialisation; every layer gets its own key.

    Raises:
        UserError: for unknown names, empty or unequal lists of sizes, a bias of the wrong shape, a
            network that does not fit the data, a module that does not return a vector of the
            right size, pseudo-inputs of the wrong shape or for another prior, or a prior or
            posterior that discrete latents do not have.
    """

    encoder: tuple[LatentNet, ...]
    prior_nets: tuple[LatentNet, ...]
    decoder_hidden: networks.Hidden
    output: networks.Output
    free: Float[Array, " n_free"] | None  # outputs that do not depend on z
    statistics: Float[Array, " n_statistics"] | None  # constants: no gradient
    top: Prior | None  # p(h_L); None: N(0, I)
    log_scale: Float[Array, " n_data"] | None  # log |d data / d model|; constants: no gradient
    kind: Kind = eqx.field(static=True)
    n_data: int = eqx.field(static=True)
    missing: str | None = eqx.field(static=True)
    network: networks.Network = eqx.field(static=True)
    latents: tuple[LatentKind, ...] = eqx.field(static=True)

    @float32
    def __init__(
        self,
        n_data: int,
        latent_sizes: Sequence[int] = (50,),
        hidden_sizes: Sequence[Sequence[int]] = ((200, 200),),
        *,
        latents: Sequence[str] | str = "normal",
        observation: Kind | Mapping[str, Any] | str = "bernoulli",
        activation: str = "tanh",
        output_bias: Array | np.ndarray | None = None,
        statistics: Array | np.ndarray | None = None,
        missing: str | None = None,
        log_scale: Array | np.ndarray | bool | None = None,
        network: networks.Network | Mapping[str, Any] | str = "mlp",
        encoder: networks.Features | None = None,
        decoder: networks.Features | None = None,
        prior: Prior | str = "normal",
        posterior: str = "normal",
        pseudo_inputs: Array | np.ndarray | None = None,
        key: PRNGKey,
    ):
        check_size_arguments(n_data, latent_sizes, hidden_sizes, activation)
        features_key = jax.random.fold_in(key, _FEATURES)
        encoder_key, prior_key, hidden_key, output_key = jax.random.split(key, 4)
        self.kind, self.n_data, self.missing = as_kind(observation), n_data, missing
        self.network = networks.as_network(network)
        data, n_layers = self._data(), len(latent_sizes)
        if self.network.name == "conv":
            sizes = n_data, self.n_inputs, data.n_outputs
            check_network_argument(self.network, self.kind, *sizes)
            if encoder is not None and decoder is not None:
                raise UserError("encoder and decoder replace all of network 'conv': leave it out")
        features, n_features = networks.make_feature_network(
            self.network, encoder, self.n_inputs, activation, key=features_key
        )
        # Residual blocks of a conv network follow its convolutions instead of the dense layers.
        blocks = self.network.blocks if self.network.name == "mlp" else 0
        kinds = self.latents = latent_kinds(latents, n_layers)
        widths = tuple(n * kind.width for n, kind in zip(latent_sizes, kinds, strict=True))
        inputs = (n_features, *widths[:-1])
        up = [(n, *hidden) for n, hidden in zip(inputs, hidden_sizes, strict=True)]
        down = [(n, *reversed(hidden)) for n, hidden in zip(widths, hidden_sizes, strict=True)]
        flows = named_coupling_layers(parse_named_posterior(posterior), kinds)
        options: list[dict[str, Any]] = [{"flow": flow} for flow in flows]
        options[0] |= {"features": features, "blocks": blocks}
        self.encoder = tuple(
            make_latent_net(kinds[l], up[l], latent_sizes[l], activation, key=k, **options[l])
            for l, k in enumerate(jax.random.split(encoder_key, n_layers))
        )
        self.prior_nets = tuple(
            make_latent_net(kinds[l], down[l + 1], latent_sizes[l], activation, key=k)
            for l, k in enumerate(jax.random.split(prior_key, n_layers)[1:])
        )
        self.decoder_hidden = networks.Hidden(down[0], activation, blocks=blocks, key=hidden_key)
        output = networks.make_output_network(
            self.network, decoder, down[0][-1], data.n_outputs, activation, key=output_key
        )
        self.output, self.free = output_bias_argument(output, data.n_free, output_bias)
        self.statistics = statistics_argument(data, statistics)
        self.log_scale = log_scale_argument(log_scale, n_data)
        self.top = None  # N(0, I), while the prior itself is made
        self.top = make_prior(prior, self, pseudo_inputs, key=jax.random.fold_in(key, _PRIOR))

    @property
    def observation(self) -> str:
        """A name in `iwae.models.likelihoods.OBSERVATIONS`."""
        return self.kind.name

    @property
    def example_size(self) -> int:
        """The length of an example."""
        return self.n_data

    @property
    def latent_sizes(self) -> tuple[int, ...]:
        """Units of h_1, ..., h_L."""
        return tuple(
            width // kind.width for width, kind in zip(self.widths, self.latents, strict=True)
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Lengths of h_1, ..., h_L: a unit with C categories takes C numbers."""
        return tuple(net.outputs[0].bias.shape[-1] for net in self.encoder)

    @property
    def has_discrete(self) -> bool:
        """Whether a stochastic layer has bits or categories, whose draws have no gradient."""
        return any(kind.is_discrete for kind in self.latents)

    @property
    def hidden_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of the deterministic layers below each stochastic one, in the encoder's order."""
        return tuple(
            tuple(layer.bias.shape[-1] for layer in net.hidden.layers) for net in self.encoder
        )

    @property
    def activation(self) -> str:
        """A name in `ACTIVATIONS`."""
        return self.decoder_hidden.activation

    def architecture(self) -> dict[str, Any]:
        """The arguments, without the key, that make a model of this shape.

        A user's own modules are not among them; `own` names the parts that they replace.
        """
        unusual = {
            "missing": self.missing,
            "log_scale": None if self.log_scale is None else True,
            "network": None if self.network == networks.Network() else self.network._asdict(),
            "prior": None if self.prior_name.name in ("normal", OWN) else str(self.prior_name),
            "posterior": None if self.posterior_name.name == "normal" else str(self.posterior_name),
            "latents": list(map(str, self.latents)) if self.has_discrete else None,
            "own": list(self.own) or None,
        }
        return {
            "n_data": self.n_data,
            "latent_sizes": self.latent_sizes,
            "hidden_sizes": [list(sizes) for sizes in self.hidden_sizes],
            "observation": as_json(self.kind),
            "activation": self.activation,
            **{name: value for name, value in unusual.items() if value is not None},
        }

    @property
    def own(self) -> tuple[str, ...]:
        """The parts, out of `encoder`, `decoder` and `prior`, that are a user's own modules."""
        features = self.encoder[0].features
        parts = {
            "encoder": features is not None and not isinstance(features, networks.ConvEncoder),
            "decoder": isinstance(self.output, networks.OwnDecoder),
            "prior": self.prior_name.name == OWN,
        }
        return tuple(name for name, is_own in parts.items() if is_own)

    @property
    def prior_name(self) -> Named:
        """The kind of p(h_L) and its size."""
        return named(self.top)

    @property
    def posterior_name(self) -> Named:
        """The kind of q(h_l|h_{l-1}) and its size."""
        first, *above = (getattr(net, "flow", None) for net in self.encoder)
        if first is None:
            return Named("normal")
        return Named("flow-first" if None in above else "flow", first.layers)

    def posterior(self, x: Float[Array, " n_data"]) -> LayeredPosterior:
        """q(z|x)."""
        return self.posterior_given(self.inputs(x))

    def posterior_given(self, inputs: Float[Array, " n_inputs"]) -> LayeredPosterior:
        """q(z|x), from the inputs of the encoder's network for x."""
        return LayeredPosterior(self.encoder[0](inputs), self.encoder[1:])

    def inputs(self, x: Float[Array, " n_data"]) -> Float[Array, " n_inputs"]:
        """The inputs of the encoder's network for an example."""
        encoding = self._data().encoding
        if encoding is None:
            return x
        known = jnp.zeros(0) if self.statistics is None else self.statistics
        return encoding.transform(x, jax.lax.stop_gradient(known))

    @property
    def n_inputs(self) -> int:
        """The number of inputs of the encoder's network."""
        encoding = self._data().encoding
        return encoding.n_inputs if encoding else self.n_data

    def condition(self, x: Float[Array, " n_data"]) -> tuple["VAE", Float[Array, " n_data"]]:
        """The model with its prior computed once, and the example."""
        return self.settled(), x

    def settled(self) -> "VAE":
        """The same model with its prior computed once for all evaluations of `log_joint`."""
        if self.top is None or isinstance(self.top, Settled | LabelPrior):
            return self
        top = Settled(self.prior(), named(self.top))
        return eqx.tree_at(lambda model: model.top, self, top)

    def _data(self) -> Observation:
        """The observation of this model's kind of data."""
        return observations.observation(self.kind, self.n_data, self.missing)

    def prior(self) -> Posterior:
        """p(h_L): N(0, I) unless it is learned; that of bits and categories always is."""
        if self.top is not None:
            return self.top(self)
        return dist.Normal(jnp.zeros(self.latent_sizes[-1]), 1.0).to_event(1)

    def decode(self, z: Latents) -> dist.Distribution:
        """p(x|h_1)."""
        outputs = self.output(self.decoder_hidden(z[0]))
        if self.free is not None:
            outputs = jnp.concatenate([outputs, self.free])
        return self._data().distribution(outputs)

    def log_likelihood(self, x: Float[Array, " n_data"], z: Latents) -> Scalar:
        """log p(x|h_1) of the observed values, nats, in the units of the data."""
        log_p = self.decode(z).log_prob(x)
        if self.log_scale is None:
            return log_p
        log_scale = jax.lax.stop_gradient(self.log_scale)
        return log_p - jnp.sum(jnp.where(jnp.isnan(x), 0.0, log_scale))

    def layer_log_priors(self, z: Latents) -> tuple[Scalar, ...]:
        """log p(h_l|h_{l+1}) for l = 1 ... L, nats; the last is log p(h_L)."""
        return tuple(p.log_prob(h) for p, h in zip(self.priors(z), z, strict=True))

    def priors(self, z: Latents) -> tuple[Posterior, ...]:
        """p(h_l|h_{l+1}) for l = 1 ... L; the last is p(h_L)."""
        between = (net(above) for net, above in zip(self.prior_nets, z[1:], strict=True))
        return (*between, self.prior())

    def redraw(self, z: Latents) -> Latents:
        """z as a function of the prior's parameters: the draw from p(z) whose noise yields z.

        The value is z. With the noise held fixed, gradients reach the networks of p(h_l|h_{l+1}),
        and p(h_L) if it is Gaussian: draws of a mixture are not reparameterised. Discrete layers
        are not supported.
        """
        z = jax.lax.stop_gradient(z)
        top = self.prior()
        by_noise = self.top is not None and is_diagonal_gaussian(top)
        drawn: tuple[Any, ...] = (_by_noise(top, top, z[-1]) if by_noise else z[-1],)
        for net, h, above in reversed(list(zip(self.prior_nets, z, z[1:], strict=False))):
            drawn = (_by_noise(net(drawn[0]), net(above), h), *drawn)
        return drawn

    def log_prior(self, z: Latents) -> Scalar:
        """log p(z) = sum_l log p(h_l|h_{l+1}), nats."""
        return cast("Scalar", sum(self.layer_log_priors(z)))

    def log_joint(self, x: Float[Array, " n_data"], z: Latents) -> Scalar:
        """log p(x|h_1) + log p(z), nats."""
        return self.log_likelihood(x, z) + self.log_prior(z)

    def sample(self, key: PRNGKey) -> tuple[Latents, Float[Array, " n_data"]]:
        """An ancestral draw, from the top down."""
        prior_key, x_key, *keys = jax.random.split(key, 2 + len(self.prior_nets))
        z: tuple[Any, ...] = (self.prior().sample(prior_key),)
        for net, k in zip(reversed(self.prior_nets), keys, strict=True):
            z = (net(z[0]).sample(k), *z)
        return z, self.decode(z).sample(x_key).astype(jnp.float32)


def as_vae(model: AbstractLatentModel) -> VAE:
    """The model itself; UserError if it is not a VAE."""
    if not isinstance(model, VAE):
        raise UserError(
            f"a {type(model).__name__} has no stochastic layers to examine: use an iwae.VAE"
        )
    return model


def vae_decoder_input(vae: VAE, problem: str) -> Dense:
    """The linear map of the decoder that reads h_1.

    Args:
        problem: the consequence of a user's own module that reads h_1 directly, for the error.

    Raises:
        UserError: if there is such a module.
    """
    if vae.decoder_hidden.layers:
        return vae.decoder_hidden.layers[0]
    if isinstance(vae.output, networks.OwnDecoder):
        raise UserError(
            f"a decoder of your own that reads h_1 directly {problem}: give the model a dense "
            "layer before it (hidden_sizes[0])"
        )
    return vae.output.start if isinstance(vae.output, networks.ConvDecoder) else vae.output


def _by_noise(p: dist.Distribution, other: dist.Distribution, h: Array) -> Array:
    """The draw from p with the noise, held fixed, of the draw h from `other`."""
    p, other = p.base_dist, other.base_dist
    return p.loc + p.scale * jax.lax.stop_gradient((h - other.loc) / other.scale)


_FEATURES, _PRIOR = 4, 5  # folded into the key, whose splits are 0 to 3

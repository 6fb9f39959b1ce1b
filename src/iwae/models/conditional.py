"""Conditional models p(x|y): a VAE whose biases, and optionally its prior, depend on a label y."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from iwae.data.rows import Examples
from iwae.errors import UserError
from iwae.models.latent_nets import latent_net_input_layers
from iwae.models.layers import Dense
from iwae.models.posteriors import Posterior
from iwae.models.priors import DiscretePrior, LabelPrior
from iwae.models.vae import VAE, AbstractLatentModel, vae_decoder_input
from iwae.typing import Latents, PRNGKey, Scalar


class ConditionalVAE(AbstractLatentModel):
    """p(x, z|y) and q(z|x, y) (Kingma et al. 2014; Sohn et al. 2015).

    An example is x followed by its one-hot label: `[n_data + C]`. The label is an additional input
    of the first dense layer of every network, with its own weights, which amounts to a shift of the
    biases. Given y, the model is a `VAE`, which `given` returns. A VampPrior then consists of
    q(h_L|u_j, y), and so depends on the label; other priors of `vae` are the same for all labels.

    Args:
        vae: the model of x without labels.
        n_classes: C.
        learned_prior: each label has its own Gaussian p(h_L|y) (logits for bits and categories)
            instead of the prior of `vae`, which must then be N(0, I).
        frequencies: relative frequencies of the labels in the training set, `[C]`; uniform if None.

    Raises:
        UserError: for fewer than two classes, frequencies that are not C shares adding up to 1, two
            priors, or a user's own decoder that reads h_1 directly.
    """

    vae: VAE
    shifts: tuple[Float[Array, "C _"], ...]  # added to the biases of `label_layers`
    tops: Float[Array, "C ..."] | None  # p(h_L|y): means and log sds [2 d], or logits
    frequencies: Float[Array, " C"]  # constants: no gradient

    def __init__(
        self,
        vae: VAE,
        n_classes: int,
        *,
        learned_prior: bool = False,
        frequencies: np.ndarray | None = None,
    ):
        if n_classes < 2:
            raise UserError(f"labels need at least two classes, not {n_classes}")
        if frequencies is not None:
            check_conditional_frequencies(frequencies, n_classes)
        kind = vae.latents[-1]
        if learned_prior and vae.top is not None and not isinstance(vae.top, DiscretePrior):
            raise UserError(
                f"learned_prior gives each label a Gaussian, but the model has the prior "
                f"{vae.prior_name} for all labels: leave one of the two out"
            )
        self.vae = vae
        self.shifts = tuple(
            jnp.zeros((n_classes, r.bias.shape[0]), jnp.float32) for r in label_layers(vae)
        )
        of_label = (vae.widths[-1],) if kind.is_discrete else (2, vae.latent_sizes[-1])
        self.tops = jnp.zeros((n_classes, *of_label), jnp.float32) if learned_prior else None
        self.frequencies = (
            jnp.full(n_classes, 1 / n_classes, jnp.float32)  # never made if only shapes are wanted
            if frequencies is None
            else jnp.asarray(frequencies, jnp.float32)
        )

    @property
    def n_classes(self) -> int:
        """C."""
        return self.frequencies.shape[-1]

    @property
    def example_size(self) -> int:
        """The length of an example, whose last C entries are its label."""
        return self.vae.n_data + self.n_classes

    @property
    def latent_sizes(self) -> tuple[int, ...]:
        """Sizes of h_1, ..., h_L."""
        return self.vae.latent_sizes

    def architecture(self) -> dict[str, Any]:
        """The architecture of the `VAE`, and the arguments that concern labels."""
        labels = {"n_classes": self.n_classes, "learned_prior": self.tops is not None}
        return {**self.vae.architecture(), "labels": labels}

    def given(self, y: Float[Array, " C"]) -> VAE:
        """The model of x alone, given a one-hot label."""
        added = {
            id(r): y @ shift for r, shift in zip(label_layers(self.vae), self.shifts, strict=True)
        }

        def shifted(node: Any) -> Any:
            more = added.get(id(node))
            return node if more is None else eqx.tree_at(lambda d: d.bias, node, node.bias + more)

        model = jax.tree.map(shifted, self.vae, is_leaf=lambda node: isinstance(node, Dense))
        if self.tops is None:
            return model
        kind, of_label = self.vae.latents[-1], jnp.tensordot(y, self.tops, 1)
        top = DiscretePrior(of_label, kind) if kind.is_discrete else LabelPrior(of_label)
        return eqx.tree_at(lambda m: m.top, model, top, is_leaf=lambda node: node is None)

    def condition(self, x: Float[Array, " n"]) -> tuple[VAE, Float[Array, " n_data"]]:
        """The model given the label of an example, and the example without its label."""
        values, y = jnp.split(x, [self.vae.n_data])
        return self.given(y).settled(), values

    def posterior(self, x: Float[Array, " n"]) -> Posterior:
        """q(z|x, y)."""
        model, x = self.condition(x)
        return model.posterior(x)

    def log_joint(self, x: Float[Array, " n"], z: Latents) -> Scalar:
        """log p(x, z|y), nats."""
        model, x = self.condition(x)
        return model.log_joint(x, z)

    def sample(self, key: PRNGKey) -> tuple[Latents, Float[Array, " n"]]:
        """Draw a label with its training-set frequency, then (z, x) by ancestral sampling."""
        label_key, key = jax.random.split(key)
        shares = jnp.log(jax.lax.stop_gradient(self.frequencies))
        y = jax.nn.one_hot(jax.random.categorical(label_key, shares), self.n_classes)
        z, x = self.given(y).sample(key)
        return z, jnp.concatenate([x, y])


Model = VAE | ConditionalVAE
"""The models that a run trains."""


def unconditional_model(model: Model) -> VAE:
    """The underlying model of x, which has the sizes, the kind of data and the networks."""
    return model.vae if isinstance(model, ConditionalVAE) else model


def label_of(model: AbstractLatentModel, x: Float[Array, " n"]) -> Float[Array, " C"]:
    """The one-hot label of an example; empty for a model without labels."""
    return x[model.vae.n_data :] if isinstance(model, ConditionalVAE) else x[:0]


def conditional_sample_sizes(
    model: AbstractLatentModel, examples: Examples
) -> Int[np.ndarray, " n"]:
    """For each example, the number of examples with its label; n for a model without labels."""
    if not isinstance(model, ConditionalVAE):
        return np.full(len(examples), len(examples))
    labels = np.argmax(examples[:, model.vae.n_data :], axis=1)
    return np.bincount(labels)[labels]


def check_conditional_frequencies(frequencies: np.ndarray, n_classes: int) -> None:
    """Raise UserError unless these are shares of `n_classes` labels that add up to 1."""
    if frequencies.shape != (n_classes,):
        raise UserError(f"frequencies has shape {frequencies.shape}, not {(n_classes,)}")
    total = float(frequencies.sum(dtype=np.float64))
    if not (frequencies.min() >= 0 and abs(total - 1) < _SHARES_ERROR):
        raise UserError(
            f"frequencies of labels must be shares that add up to 1; the smallest of these is "
            f"{frequencies.min():g} and they add up to {total:g}"
        )


_SHARES_ERROR = 1e-3
"""Tolerance of the sum of shares, above the rounding error of float32."""


def label_layers(vae: VAE) -> list[Dense]:
    """The first dense layers of all networks, whose input includes the label."""
    nets = (*vae.encoder, *vae.prior_nets)
    decoder = vae_decoder_input(vae, "has no layer for a label to enter")
    return [*(dense for net in nets for dense in latent_net_input_layers(net)), decoder]


def conditional_examples(rows: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Append one-hot labels: rows `[n, d]` and labels 0 ... C - 1 `[n]` -> `[n, d + C]`.

    Raises:
        UserError: if the numbers of labels and rows differ, or a label is out of range.
    """
    if len(rows) != len(labels):
        raise UserError(f"there are {len(rows)} examples, but {len(labels)} labels")
    if len(labels) and (labels.min() < 0 or labels.max() >= n_classes):
        raise UserError(f"labels must be whole numbers from 0 to {n_classes - 1}")
    return np.concatenate([rows, np.eye(n_classes, dtype=rows.dtype)[labels]], axis=1)

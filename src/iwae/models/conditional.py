"""Conditional models p(x|y): a VAE whose biases, and by choice its prior, depend on a label y."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from iwae.data.kinds import KINDS, check_values
from iwae.errors import UserError
from iwae.models.networks import ConvDecoder, Dense, OwnDecoder
from iwae.models.vae import VAE, AbstractLatentModel, GaussianNet, Posterior
from iwae.typing import Latents, PRNGKey, Scalar


class ConditionalVAE(AbstractLatentModel):
    """p(x, z|y) and q(z|x, y) (Kingma et al. 2014; Sohn et al. 2015).

    An example is x and, after it, its label as C zeros and ones: `[n_data + C]`. A label enters
    the first dense layer of every network, as one more input with weights of its own, which is to
    say that it adds to the biases. So given y, this is a `VAE`, which `given` returns.

    Args:
        vae: the model of x, before it knows of labels.
        n_classes: C.
        learned_prior: p(h_L|y) is a Gaussian of its own for each label, not N(0, I).
        frequencies: of the labels in the training data, `[C]`; all the same if None.

    Raises:
        UserError: for fewer than two classes, frequencies that are not C shares of one whole, or if
            the first thing that reads a latent is a module of a user's own.
    """

    vae: VAE
    shifts: tuple[Float[Array, "C _"], ...]  # of the biases of `_readers`
    tops: Float[Array, "C 2 d"] | None  # means and log standard deviations of p(h_L|y)
    frequencies: Float[Array, " C"]  # no gradient reaches them

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
            check_frequencies(frequencies, n_classes)
        self.vae = vae
        self.shifts = tuple(jnp.zeros((n_classes, r.bias.shape[0])) for r in _readers(vae))
        self.tops = jnp.zeros((n_classes, 2, vae.latent_sizes[-1])) if learned_prior else None
        equal = frequencies is None
        self.frequencies = (
            jnp.full(n_classes, 1 / n_classes) if equal else jnp.asarray(frequencies, jnp.float32)
        )

    @property
    def n_classes(self) -> int:
        """C."""
        return self.frequencies.shape[-1]

    @property
    def example_size(self) -> int:
        """Numbers in an example, of which the last C are its label."""
        return self.vae.n_data + self.n_classes

    @property
    def latent_sizes(self) -> tuple[int, ...]:
        """Sizes of h_1, ..., h_L."""
        return self.vae.latent_sizes

    def architecture(self) -> dict[str, Any]:
        """That of the `VAE`, and what was added to it."""
        labels = {"n_classes": self.n_classes, "learned_prior": self.tops is not None}
        return {**self.vae.architecture(), "labels": labels}

    def given(self, y: Float[Array, " C"]) -> VAE:
        """The model of x alone, given a label as zeros and a one."""
        added = {id(r): y @ shift for r, shift in zip(_readers(self.vae), self.shifts, strict=True)}

        def shifted(node: Any) -> Any:
            more = added.get(id(node))
            return node if more is None else eqx.tree_at(lambda d: d.bias, node, node.bias + more)

        model = jax.tree.map(shifted, self.vae, is_leaf=lambda node: isinstance(node, Dense))
        if self.tops is None:
            return model
        top = jnp.tensordot(y, self.tops, 1)
        return eqx.tree_at(lambda m: m.top, model, top, is_leaf=lambda node: node is None)

    def condition(self, x: Float[Array, " n"]) -> tuple[VAE, Float[Array, " n_data"]]:
        """The model given the label of an example, and the rest of the example."""
        values, y = jnp.split(x, [self.vae.n_data])
        return self.given(y), values

    def posterior(self, x: Float[Array, " n"]) -> Posterior:
        """q(z|x, y)."""
        model, x = self.condition(x)
        return model.posterior(x)

    def log_joint(self, x: Float[Array, " n"], z: Latents) -> Scalar:
        """log p(x, z|y), nats."""
        model, x = self.condition(x)
        return model.log_joint(x, z)

    def sample(self, key: PRNGKey) -> tuple[Latents, Float[Array, " n"]]:
        """A label as often as in the training data, and an ancestral draw given it."""
        label_key, key = jax.random.split(key)
        shares = jnp.log(jax.lax.stop_gradient(self.frequencies))
        y = jax.nn.one_hot(jax.random.categorical(label_key, shares), self.n_classes)
        z, x = self.given(y).sample(key)
        return z, jnp.concatenate([x, y])


Model = VAE | ConditionalVAE
"""What a run trains."""


def without_labels(model: Model) -> VAE:
    """The model of x before it knows of labels, which has its sizes, its kind and its networks."""
    return model.vae if isinstance(model, ConditionalVAE) else model


def check_examples(model: AbstractLatentModel, examples: np.ndarray) -> None:
    """Refuse examples `[n, ...]` whose likelihood would be none, such as grey under Bernoulli.

    Of models of a user's own class, and of kinds of a user's own, nothing is known: all is taken.

    Raises:
        UserError: for values that the model's kind of data does not have.
    """
    if isinstance(model, Model) and without_labels(model).kind.name in KINDS:
        vae, rows = without_labels(model), np.asarray(examples)
        values = rows.reshape(len(rows), -1)[:, : vae.n_data]  # without labels
        check_values(values, vae.kind, "a value of examples", missing=vae.missing is not None)


def check_frequencies(frequencies: np.ndarray, n_classes: int) -> None:
    """Raise UserError unless these are the shares of so many labels."""
    if frequencies.shape != (n_classes,):
        raise UserError(f"frequencies has shape {frequencies.shape}, not {(n_classes,)}")
    total = float(frequencies.sum(dtype=np.float64))
    if not (frequencies.min() >= 0 and abs(total - 1) < _SHARES_ERROR):
        raise UserError(
            f"frequencies of labels are shares that add up to 1; these begin at "
            f"{frequencies.min():g} and add up to {total:g}"
        )


_SHARES_ERROR = 1e-3
"""More than float32 does to a sum of shares."""


def _readers(vae: VAE) -> list[Dense]:
    """The first dense layer of every network, in which a label has its weights."""
    hidden = [(net.hidden.layers[:1] or (net.loc, net.log_scale)) for net in _nets(vae)]
    return [dense for some in (*hidden, (_decoder_reader(vae),)) for dense in some]


def _nets(vae: VAE) -> Iterator[GaussianNet]:
    yield from vae.encoder
    yield from vae.prior_nets


def _decoder_reader(vae: VAE) -> Dense:
    if vae.decoder_hidden.layers:
        return vae.decoder_hidden.layers[0]
    if isinstance(vae.output, OwnDecoder):
        raise UserError(
            "a decoder of your own that takes h_1 itself has no place for a label: give the model "
            "a dense layer between them (hidden_sizes[0])"
        )
    return vae.output.start if isinstance(vae.output, ConvDecoder) else vae.output


def with_labels(rows: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Examples of a conditional model: rows `[n, d]` and labels 0 ... C - 1 `[n]` -> `[n, d + C]`.

    Raises:
        UserError: if there are not as many labels as rows, or a label is none.
    """
    if len(rows) != len(labels):
        raise UserError(f"there are {len(rows)} examples, but {len(labels)} labels")
    if len(labels) and (labels.min() < 0 or labels.max() >= n_classes):
        raise UserError(f"labels are whole numbers from 0 to {n_classes - 1}")
    return np.concatenate([rows, np.eye(n_classes, dtype=rows.dtype)[labels]], axis=1)

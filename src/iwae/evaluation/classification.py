"""Conditional models as classifiers, by the likelihood under each label."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import log_softmax, logsumexp

from iwae.errors import UserError
from iwae.evaluation.examples import (
    check_examples,
    gather_examples,
    map_examples_by_cost,
    refuse_nan_examples,
)
from iwae.evaluation.likelihood import likelihood_chunk_length, streamed_log_likelihood
from iwae.models.conditional import ConditionalVAE
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey, Scalar


def class_log_likelihoods(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
) -> Float[np.ndarray, "n C"]:
    """log p(x|y) of every example under every label, nats, by `log_likelihoods`.

    All labels of an example share the same noise.

    Args:
        examples: `[n, d]` in the model's units, without labels.
        k: importance samples for each example and label.
        batch_size: examples at a time on each device; changes the speed, not the numbers.

    Raises:
        UserError: if the model is not conditional, or the examples have the wrong size.
        FloatingPointError: if a number is nan.
    """
    slabs = class_log_likelihood_slabs(model, examples, key, k=k, batch_size=batch_size)
    return gather_examples(slabs)["log_likelihood"]


def class_log_likelihood_slabs(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """`class_log_likelihoods` from example `first` on, slab by slab: `log_likelihood` `[n, C]`."""
    if not isinstance(model, ConditionalVAE):
        raise UserError(f"a {type(model).__name__} is not conditional: use a ConditionalVAE")
    examples, chunk = np.asarray(examples), likelihood_chunk_length(k)
    if examples.ndim != 2 or examples.shape[1] != model.vae.n_data:
        raise UserError(
            f"examples have shape {list(examples.shape)}, but are scored under every label: "
            f"give [n, {model.vae.n_data}] without labels"
        )
    check_examples(model.vae, examples)
    slabs = map_examples_by_cost(
        eqx.Partial(_under_every_label, k=k, chunk=chunk),
        model,
        examples,
        key,
        rows=k * model.n_classes,
        at_once=chunk,
        batch_size=batch_size,
        first=first,
    )
    return refuse_nan_examples(slabs, first)


def _under_every_label(
    model: ConditionalVAE, x: Example, key: PRNGKey, *, k: int, chunk: int
) -> dict[str, Float[Array, " C"]]:
    """L_k of one example under each label, with the same noise, `[C]`, nats."""
    score = streamed_log_likelihood(k, chunk)

    def given(y: Float[Array, " C"]) -> Scalar:
        return score(model.given(y), x, jax.random.clone(key))["log_likelihood"]

    return {"log_likelihood": jax.lax.map(given, jnp.eye(model.n_classes))}


def label_log_probabilities(
    log_likelihoods: Float[np.ndarray, "n C"], frequencies: Float[np.ndarray, " C"]
) -> Float[np.ndarray, "n C"]:
    """log p(y|x), nats, by Bayes' rule from log p(x|y) and p(y).

    Raises:
        FloatingPointError: if an example is impossible under every label.
    """
    joint = log_likelihoods + _log(frequencies)
    impossible = np.flatnonzero(np.isneginf(joint).all(axis=1))
    if impossible.size:
        raise FloatingPointError(
            f"example {impossible[0]} is impossible under every label, so p(y|x) is undefined"
        )
    return np.asarray(log_softmax(joint, axis=1))


def marginalise_classes(
    log_likelihoods: Float[np.ndarray, "n C"], frequencies: Float[np.ndarray, " C"]
) -> Float[np.ndarray, " n"]:
    """log p(x) = log sum_y p(y) p(x|y), nats: the likelihood with the label marginalised."""
    return np.asarray(logsumexp(log_likelihoods + _log(frequencies), axis=1))


def confusion_matrix(
    labels: Int[np.ndarray, " n"], found: Int[np.ndarray, " n"], n_classes: int
) -> Int[np.ndarray, "C C"]:
    """Number of examples of each true label (rows) and predicted label (columns)."""
    counts = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(counts, (labels, found), 1)
    return counts


def _log(frequencies: Float[np.ndarray, " C"]) -> Float[np.ndarray, "1 C"]:
    with np.errstate(divide="ignore"):  # a label with no examples has probability zero
        return np.log(np.asarray(frequencies, np.float64))[None]

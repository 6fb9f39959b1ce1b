"""What a conditional model says of labels: a classifier, by the likelihood of each label."""

import jax
import numpy as np
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp

from iwae._types import PRNGKey, UserError
from iwae.conditional import ConditionalVAE, with_labels
from iwae.evaluate.likelihood import log_likelihoods
from iwae.model import AbstractLatentModel


def class_log_likelihoods(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
) -> Float[np.ndarray, "n C"]:
    """log p(x|y) of every example under every label, in nats, as `log_likelihoods` has it.

    All labels of an example are scored by the same noise.

    Args:
        examples: `[n, d]` in the model's units, without labels.
        k: importance samples for each example and label.
        batch_size: examples at a time on each device; changes the speed, not the numbers.

    Raises:
        UserError: if the model knows no labels, or examples are of another size.
    """
    if not isinstance(model, ConditionalVAE):
        raise UserError(f"a {type(model).__name__} knows no labels: this needs a ConditionalVAE")
    examples, c = np.asarray(examples), model.n_classes
    if examples.ndim != 2 or examples.shape[1] != model.vae.n_data:
        raise UserError(
            f"examples have shape {list(examples.shape)}; these are scored under every label, so "
            f"give [n, {model.vae.n_data}] without labels"
        )
    scored = [
        log_likelihoods(
            model,
            with_labels(examples, np.full(len(examples), label), c),
            jax.random.clone(key),
            k=k,
            batch_size=batch_size,
        )
        for label in range(c)
    ]
    return np.stack(scored, axis=1)


def label_log_probabilities(
    log_likelihoods: Float[np.ndarray, "n C"], frequencies: Float[np.ndarray, " C"]
) -> Float[np.ndarray, "n C"]:
    """log p(y|x), nats, by Bayes' rule from log p(x|y) and p(y)."""
    return np.asarray(log_softmax(log_likelihoods + _log(frequencies), axis=1))


def marginal_log_likelihoods(
    log_likelihoods: Float[np.ndarray, "n C"], frequencies: Float[np.ndarray, " C"]
) -> Float[np.ndarray, " n"]:
    """log p(x) = log sum_y p(y) p(x|y), nats: how likely an example is under any label."""
    return np.asarray(logsumexp(log_likelihoods + _log(frequencies), axis=1))


def _log(frequencies: Float[np.ndarray, " C"]) -> Float[np.ndarray, "1 C"]:
    with np.errstate(divide="ignore"):  # a label that no example has is impossible
        return np.log(np.asarray(frequencies, np.float64))[None]

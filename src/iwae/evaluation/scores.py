"""Scores of examples: log-likelihoods with their errors, outlier p-values, area under the curve."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from iwae.data.rows import Examples
from iwae.evaluation.classification import class_log_likelihoods, marginalise_classes
from iwae.evaluation.examples import gather_examples
from iwae.evaluation.likelihood import log_likelihood_slabs, log_likelihoods
from iwae.models.conditional import ConditionalVAE
from iwae.models.vae import AbstractLatentModel
from iwae.typing import PRNGKey


class Scores(NamedTuple):
    """The log-likelihood of each example, nats.

    Attributes:
        log_likelihood: `[n]`, L_k: a lower bound in expectation.
        error: `[n]`, its Monte Carlo error; a lower limit of it if `pareto_k` is above
            `iwae.evaluation.tails.pareto_threshold` of k.
        pareto_k: `[n]`, k-hat of the weights; nan for fewer than 25.
    """

    log_likelihood: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    pareto_k: Float[np.ndarray, " n"]


def score(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
) -> Scores:
    """Log-likelihoods with their errors; arguments and exceptions as for `log_likelihoods`."""
    return gather_examples(score_slabs(model, examples, key, k=k, batch_size=batch_size))


def score_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
) -> Iterator[Scores]:
    """`score`, slab by slab."""
    for slab in log_likelihood_slabs(model, examples, key, k=k, batch_size=batch_size):
        found = gather_examples(iter([slab]))
        yield Scores(found["log_likelihood"], found["monte_carlo_error"], found["pareto_k"])


def outlier_p_values(
    scores: Float[np.ndarray, " n"], reference: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " n"]:
    """The share of reference examples that are at most as likely: small for outliers.

    (1 + #{reference <= score}) / (m + 1), a conformal p-value (Vovk et al. 2005): for an example
    from the distribution of the reference, it is at most p with a probability of at most p.

    Args:
        scores: log-likelihoods, nats.
        reference: those of examples that were held out from training.
    """
    return cross_outlier_p_values([scores], [reference])


def cross_outlier_p_values(
    scores: Sequence[Float[np.ndarray, " n"]], references: Sequence[Float[np.ndarray, " _"]]
) -> Float[np.ndarray, " n"]:
    """`outlier_p_values` by several models, each with its own held-out examples.

    Each model compares the examples with those held out from its training; m is the total number of
    these (Vovk 2015, "Cross-conformal predictors").

    Args:
        scores: log-likelihoods by each model, nats.
        references: for each model, the log-likelihoods of the examples held out from its training.
    """
    below = np.zeros(np.shape(scores[0]), int)
    for one, held_out in zip(scores, references, strict=True):
        below += np.searchsorted(np.sort(held_out), one, side="right")
    return np.asarray((1 + below) / (sum(map(len, references)) + 1))


def auroc(own: Float[np.ndarray, " n"], others: Float[np.ndarray, " m"]) -> tuple[float, float]:
    """The probability that an example scores above one of other data, and the standard error.

    This is the area under the receiver operating characteristic curve of the score. Ties count
    half; 1/2 is chance. The error accounts for the choice of both samples, and is nan if either has
    only one example.

    Source: DeLong, DeLong & Clarke-Pearson (1988), "Comparing the areas under two or more
    correlated receiver operating characteristic curves", for one curve.
    """

    def below(values: np.ndarray, of: np.ndarray) -> np.ndarray:
        """The share of `of` below each value; ties count half."""
        of = np.sort(of)
        left, right = (np.searchsorted(of, values, side) for side in ("left", "right"))
        return (left + right) / 2 / len(of)

    wins, losses = below(own, others), below(others, own)
    if min(len(own), len(others)) < 2:
        return float(wins.mean()), float("nan")
    variance = wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses)
    return float(wins.mean()), float(np.sqrt(variance))


def marginal_scores(
    model: AbstractLatentModel, points: np.ndarray, k: int = 5000, seed: int = 0
) -> Float[np.ndarray, " n"]:
    """log p(x) at each of `points` `[n, d]`, nats, from k importance samples.

    For a conditional model, this is log sum_y p(y) p(x|y).
    """
    points, key = np.asarray(points, np.float32), jax.random.key(seed)
    if isinstance(model, ConditionalVAE):
        given = class_log_likelihoods(model, points, key, k=k)
        return marginalise_classes(given, np.asarray(model.frequencies))
    return log_likelihoods(model, points, key, k=k)

"""Summaries of per-example values: means, errors, and the tail of the weights."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from iwae.data import KINDS, as_kind
from iwae.evaluation.likelihood import KHAT_WEIGHTS
from iwae.evaluation.standard_errors import BATCHES, monte_carlo_error, standard_error
from iwae.evaluation.tails import heavy_tailed_share, pareto_threshold
from iwae.inference.kernels import KHAT_LEAST
from iwae.results.schema import Document, record_field_names


def summary_number(value: float | None) -> float | None:
    """A number for JSON: None if it is not finite."""
    return None if value is None or not np.isfinite(value) else float(value)


def summarise_mean(values: np.ndarray) -> tuple[float | None, float | None]:
    """A mean and its standard error; None where they are not finite."""
    if not np.isfinite(values).all():
        return None, None
    return float(values.mean()), summary_number(standard_error(values))


def summarise_means(**values: np.ndarray) -> Document:
    """Means over examples and their standard errors, as fields by name."""
    found: Document = {}
    for name, each in values.items():
        found |= dict(zip(record_field_names(name), summarise_mean(each), strict=True))
    return found


def summarise_replicates(values: np.ndarray) -> dict[str, float | None]:
    """The summary of values `[R, n]`, and the standard deviation between replicates, nats."""
    total = summarise_means(log_likelihood=values.mean(axis=0))
    known = len(values) > 1 and total["log_likelihood"] is not None
    spread = np.std(values.mean(axis=1), ddof=1) if known else np.nan
    return {**total, "between_replicates_sd": summary_number(spread)}


def summarise_weights(values: Mapping[str, np.ndarray], k: int) -> Document:
    """A log-likelihood with its errors, and diagnostics of the k weights of each example."""
    weights, known = min(k, KHAT_WEIGHTS), k >= KHAT_LEAST  # weights that k-hat is fitted to
    share = heavy_tailed_share(values["pareto_k"], weights) if known else None
    infinite = int(np.isinf(values["monte_carlo_error"]).sum())
    return {
        **summarise_means(log_likelihood=values["log_likelihood"]),
        "monte_carlo_error": summary_number(monte_carlo_error(values["monte_carlo_error"])),
        "monte_carlo_batches": min(k, BATCHES),
        **({"monte_carlo_infinite": infinite} if infinite else {}),
        "ess_mean": float(values["ess"].mean()),
        "ess_min": float(values["ess"].min()),
        "pareto_k_unreliable": summary_number(share),
        "pareto_k_threshold": pareto_threshold(weights) if known else None,
    }


def summarise_draws(
    values: Float[np.ndarray, "J n"], errors: Float[np.ndarray, "J n"] | None = None
) -> Document:
    """The mean over J draws of n examples, and its errors, for a record.

    Pixels are drawn independently, so the variance of a mean over examples is the mean of their
    variances between draws, each with J - 1 degrees of freedom, over n.

    Args:
        values: log-likelihoods, nats, with independent particles.
        errors: their Monte Carlo errors, nats.
    """
    draws, n = values.shape
    values = values if np.isfinite(values).all() else np.full_like(values, np.nan)
    one = np.sqrt(values.var(axis=0, ddof=1).sum()) / n
    found = {
        "draws": draws,
        **summarise_means(log_likelihood=values.mean(axis=0)),
        "draws_error": summary_number(one / np.sqrt(draws)),
        "one_draw_error": summary_number(one),
    }
    if errors is not None:
        found["monte_carlo_error"] = summary_number(monte_carlo_error(errors.ravel()))
    return found


def summary_with_bits(record: Document, identity: Document) -> Document:
    """A record with bits per dimension beside the nats, in its rows too, for quantised data.

    Data with missing values have none: their examples differ in dimension.

    Args:
        identity: of the data.
    """
    if "missing" in identity or not KINDS[as_kind(identity["observation"]).name].quantised:
        return record
    bits = -1 / (math.prod(identity["shape"]) * math.log(2))
    more: Document = {}
    for name, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            more[name] = [summary_with_bits(row, identity) for row in value]
    if "log_likelihood" in record:
        mean, error = record["log_likelihood"], record["stderr"]
        more["bits_per_dimension"] = None if mean is None else bits * mean
        more["bits_per_dimension_stderr"] = None if error is None else -bits * error
    return {**record, **more}

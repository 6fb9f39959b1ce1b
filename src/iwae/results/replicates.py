"""Summaries over replicates, over draws of the pixels, and per dimension, for a record."""

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
from jaxtyping import Float

from iwae.data import KINDS, as_kind
from iwae.evaluation.diagnostics import monte_carlo_error, test_sample_error
from iwae.results.records import number, summary_over_replicates
from iwae.results.schema import Document


def over_replicates(
    each: Sequence[Document],
    shared: Document,
    arrays: Mapping[str, np.ndarray],
    rows_of: str,
    column: str,
) -> Document:
    """One record for all replicates; `replicates` has each one's own.

    Args:
        arrays: `log_likelihood [R, m, n]` for each of m rows, and `draws [R, m, J, n]` if there
            are some; the last row leads.
        rows_of: where a replicate's record has its rows, such as `by_k`.
        column: of the rows, the same for all replicates.
    """
    each = [with_bits(one, shared["data"]) for one in each]
    if len(each) == 1:
        return {**each[0], **shared}
    what = {name: shared[name] for name in ("dataset", "split", "n", "test_sha256")}
    values = arrays["log_likelihood"]
    rows = [
        {column: each[0][rows_of][i][column], **summary_over_replicates(values[:, i])}
        for i in range(values.shape[1])
    ]
    if "draws" in arrays:
        means = arrays["draws"].mean(axis=0)
        rows = [
            {**row, "binarizations": draws_summary(draws)}
            for row, draws in zip(rows, means, strict=True)
        ]
    rows = [with_bits(row, shared["data"]) for row in rows]
    return {
        **rows[-1],
        rows_of: rows,
        **{name: _mean_counts(each, name) for name in ("active_units", "active_units_authors")},
        **shared,
        "replicates": [{**one, **what} for one in each],
    }


def _mean_counts(each: Sequence[Document], name: str) -> list[float]:
    """Units per layer, averaged over replicates; a layer pruned away has none."""
    layers = zip_longest(*(one[name] for one in each), fillvalue=0)
    return [float(np.mean(counts)) for counts in layers]


def draws_summary(
    values: Float[np.ndarray, "J n"], errors: Float[np.ndarray, "J n"] | None = None
) -> Document:
    """The mean over J draws of n examples, and its errors, for a record.

    Pixels are drawn independently, so the variance of a mean over examples is the sum of those of
    each example between its draws: J - 1 degrees of freedom for each of them.

    Args:
        values: log-likelihoods, nats, each from particles of its own.
        errors: their Monte Carlo errors, nats.
    """
    draws, n = values.shape
    finite = np.isfinite(values).all()
    one = np.sqrt(values.var(axis=0, ddof=1).sum()) / n if finite else np.nan
    mean = values.mean(axis=0) if finite else np.full(n, np.nan)
    more = (
        {} if errors is None else {"monte_carlo_error": number(monte_carlo_error(errors.ravel()))}
    )
    return {
        "draws": draws,
        "log_likelihood": number(mean.mean()),
        "stderr": number(test_sample_error(mean)),
        "draws_error": number(one / np.sqrt(draws)),
        "one_draw_error": number(one),
        **more,
    }


def with_bits(record: Document, identity: Document) -> Document:
    """A record, and its rows, with bits per dimension beside the nats where data are quantised.

    Where values may be missing, examples have no number of dimensions in common.

    Args:
        identity: of the data.
    """
    if "missing" in identity or not KINDS[as_kind(identity["observation"]).name].quantised:
        return record
    bits = -1 / (math.prod(identity["shape"]) * math.log(2))
    more: Document = {}
    for name, value in record.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            more[name] = [with_bits(row, identity) for row in value]
    if "log_likelihood" in record:
        mean, error = record["log_likelihood"], record["stderr"]
        more["bits_per_dimension"] = None if mean is None else bits * mean
        more["bits_per_dimension_stderr"] = None if error is None else -bits * error
    return {**record, **more}

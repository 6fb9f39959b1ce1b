"""Rate, distortion and mutual information of a run."""

from functools import partial
from pathlib import Path
from typing import Any, Unpack

import jax
import numpy as np

from iwae.errors import require_positive
from iwae.evaluation.information import (
    Information,
    information_kl_gap,
    information_rate_slabs,
    ratio_slabs,
)
from iwae.models.conditional import conditional_sample_sizes
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.reading import read_bounds
from iwae.results.schema import Document, Method, record_field_names
from iwae.results.subjects import Subject, make_subject, subject_record_name
from iwae.results.summaries import summarise_means
from iwae.runs.trained import trained_model_sha256

DEFAULT_K = 16
"""Default number of samples per example."""


def information_run(run: Path, *, k: int = DEFAULT_K, **options: Unpack[SplitOptions]) -> Document:
    """Rate, distortion and mutual information of every replicate, and the parts of the ELBO's gap.

    The gap is split where the run has records of importance sampling and of annealing on these
    examples: log p(x) by the longest annealing run, L_k by the most samples. Writes
    `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz`: `rate`,
    `distortion` and `log_ratio` `[R, n]`, nats, and `index [n]` in the split. A call that was
    stopped continues when it is repeated.

    Args:
        k: samples of each example.
        options: see `SplitOptions`.

    Raises:
        UserError: if the run, its weights, its data or the split are not there.
    """
    require_positive("k", k)
    subject = make_subject(Path(run), **options)
    return measure(
        subject,
        Method.INFORMATION,
        partial(_measure, k=k),
        file=subject_record_name(subject, Method.INFORMATION, *[f"k{k}"] * (k != DEFAULT_K)),
        arrays={"index": subject.places},
    )


def _measure(one: Replicate, k: int) -> Measured:
    subject, method = one.subject, Method.INFORMATION
    of = one.model, subject.data, jax.random.key(subject.seed)
    rates, ratios = partial(information_rate_slabs, *of, k=k), partial(ratio_slabs, *of)
    rate = one.values("rate", rates, method=f"{method}, rate", k=k)
    ratio = one.values("mutual information", ratios, method=f"{method}, mutual information")
    found = Information(**rate, **ratio)
    sizes = conditional_sample_sizes(one.model, subject.data)
    record = {
        **summarise_means(
            log_likelihood=found.elbo,  # what rate and distortion add up to
            rate=found.rate,
            distortion=found.distortion,
            mutual_information_lower=found.log_ratio,
            mutual_information_upper=found.rate,
            marginal_kl=found.rate - found.log_ratio,
        ),
        # Given the labels, if the model is conditional.
        "mutual_information_limit": float(np.log(sizes).mean()),
        "k": k,
        "gap": _gap_parts(subject, one.number, found),
    }
    return Measured(record, found._asdict())


def _gap_parts(subject: Subject, replicate: int, found: Information) -> Document | None:
    """The parts of the ELBO's gap, over the examples of which all three bounds are known."""
    digest = trained_model_sha256(subject.run, subject.weights, replicate)
    where: dict[str, Any] = {"split": subject.split, "weights": subject.weights}
    known = [
        one
        for one in read_bounds(subject.run, **where, pruned=subject.pruned)
        if one.record.digests[replicate : replicate + 1] == [digest]
    ]
    samples, annealed = ([one for one in known if one.rank[0] == rank] for rank in (0, 1))
    if not samples or not annealed:
        return None
    best, exact = samples[-1], annealed[-1]
    places = np.intersect1d(np.intersect1d(subject.places, best.places), exact.places)
    if len(places) < 2:
        return None
    elbo = found.elbo[np.isin(subject.places, places)]
    bounds = [one.values[replicate, np.isin(one.places, places)] for one in (best, exact)]
    if not np.isfinite([elbo, *bounds]).all():
        return None
    split = information_kl_gap(elbo, *bounds)
    named = {"total": split.gap, "recovered": split.recovered, "remaining": split.remaining}
    parts: Document = {"log_p": exact.estimator, "bound": best.estimator, "n": len(places)}
    for name, value in named.items():
        parts |= dict(zip(record_field_names(name), value, strict=True))
    return parts

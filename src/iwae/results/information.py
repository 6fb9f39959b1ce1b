"""Rate, distortion and mutual information of a run, for a record."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Unpack

import jax
import numpy as np

from iwae.evaluation.examples import check_positive
from iwae.evaluation.information import (
    Estimate,
    Information,
    estimate,
    gap_split,
    join_information,
    rate_slabs,
    ratio_slabs,
)
from iwae.models.conditional import Model, sizes_of_labels
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.reading import Known, known_bounds
from iwae.results.records import (
    Subject,
    k_words,
    make_subject,
    model_sha256,
    number,
    record_name,
    shared_record,
)
from iwae.results.schema import Document, Method
from iwae.results.unfinished import Slab

DEFAULT_K = 16
"""Samples of each example, where none are asked for."""


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
    check_positive("k", k)
    subject = make_subject(Path(run), **options)
    return measure(
        subject,
        partial(_measure, k=k),
        file=record_name(subject, Method.INFORMATION, *k_words(k, DEFAULT_K)),
        shared=shared_record(subject, Method.INFORMATION),
        arrays={"index": subject.places},
    )


def _measure(one: Replicate, k: int) -> Measured:
    """One replicate: what each example costs, then how well a draw tells it from the others."""
    subject, key = one.subject, jax.random.key(one.subject.seed)
    of = one.model, subject.data, key

    def rates(first: int) -> Iterator[Slab]:
        return rate_slabs(*of, k=k, batch_size=subject.batch_size, first=first)

    def ratios(first: int) -> Iterator[Slab]:
        return ratio_slabs(*of, batch_size=subject.batch_size, first=first)

    found = join_information(
        one.slabs("rate", rates, method=f"{Method.INFORMATION}, rate", k=k),
        one.slabs("mutual information", ratios, method=f"{Method.INFORMATION}, mutual information"),
    )
    record = {
        **_summary(found, subject, one.model),
        "k": k,
        "gap": _gap(subject, one.number, found),
    }
    return Measured(record, found._asdict())


def _summary(found: Information, subject: Subject, model: Model) -> Document:
    """Means and standard errors, nats; given the labels, if the model is conditional."""
    below, above = found.mutual_information
    elbo = estimate(found.elbo)
    return {
        "log_likelihood": number(elbo.mean),  # the ELBO: what rate and distortion add up to
        "stderr": number(elbo.stderr),
        **_named("rate", estimate(found.rate)),
        **_named("distortion", estimate(found.distortion)),
        **_named("mutual_information_lower", below),
        **_named("mutual_information_upper", above),
        "mutual_information_limit": float(np.log(sizes_of_labels(model, subject.data)).mean()),
        **_named("marginal_kl", found.marginal_kl),
    }


def _named(name: str, value: Estimate) -> Document:
    return {name: number(value.mean), f"{name}_stderr": number(value.stderr)}


def _gap(subject: Subject, replicate: int, found: Information) -> Document | None:
    """Where the gap of the ELBO goes, on the examples that all three numbers are known of."""
    mine = model_sha256(subject.run, subject.weights, replicate)
    known = [
        one
        for one in known_bounds(
            subject.run, split=subject.split, weights=subject.weights, pruned=subject.pruned
        )
        if one.record.digests[replicate : replicate + 1] == [mine]
    ]
    samples = [one for one in known if one.rank[0] == 0]
    annealed = [one for one in known if one.rank[0] == 1]
    if not samples or not annealed:
        return None
    best, exact = samples[-1], annealed[-1]
    places = np.intersect1d(np.intersect1d(subject.places, best.places), exact.places)
    if len(places) < 2:
        return None
    elbo = found.elbo[np.isin(subject.places, places)]
    bounds = _on(best, replicate, places), _on(exact, replicate, places)
    if not np.isfinite([elbo, *bounds]).all():
        return None
    split = gap_split(elbo, *bounds)
    return {
        "log_p": exact.estimator,
        "bound": best.estimator,
        "n": len(places),
        **_named("total", split.gap),
        **_named("recovered", split.recovered),
        **_named("remaining", split.remaining),
    }


def _on(known: Known, replicate: int, places: np.ndarray) -> np.ndarray:
    return known.values[replicate, np.isin(known.places, places)]

"""Log-likelihoods by importance sampling, for a record."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import jax
import numpy as np

from iwae.errors import UserError
from iwae.evaluation.likelihood import log_likelihood_slabs
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.records import (
    make_subject,
    record_name,
    shared_record,
    unit_counts,
    weight_summary,
)
from iwae.results.schema import Document, Method
from iwae.results.unfinished import Slab


def evaluate_run(
    run: Path, *, ks: Sequence[int] = (5000,), **options: Unpack[SplitOptions]
) -> Document:
    """Importance sampled log-likelihoods and active units of every replicate of a run.

    Writes `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz` (the
    values behind it): for R replicates, m numbers of samples and n examples `k [m]`, `index [n]` in
    the split, `log_likelihood`, `ess` and `pareto_k` `[R, m, n]`, and `variances_R_L` of the units
    of each replicate R (from 0) and layer L (from 1). A number that is not finite is null in the
    record. A call that was stopped continues when it is repeated.

    Args:
        ks: numbers of importance samples; the record leads with the largest.
        options: see `SplitOptions`.

    Raises:
        UserError: if the run, its weights, its data or the split are not there.
    """
    if not ks:
        raise UserError("name at least one k")
    ks = sorted(set(ks))
    subject = make_subject(Path(run), **options)
    return measure(
        subject,
        partial(_measure, ks=ks),
        file=record_name(subject, f"k{ks[-1]}"),
        shared={**shared_record(subject, Method.IMPORTANCE), "proposal": "posterior"},
        arrays={"k": np.asarray(ks), "index": subject.places},
        rows=("by_k", "k"),
    )


def _measure(one: Replicate, ks: Sequence[int]) -> Measured:
    subject, key = one.subject, jax.random.key(one.subject.seed)

    def slabs(first: int, k: int) -> Iterator[Slab]:
        return log_likelihood_slabs(
            one.model, subject.data, key, k=k, batch_size=subject.batch_size, first=first
        )

    found = [one.values(f"k={k}", partial(slabs, k=k), method=Method.IMPORTANCE, k=k) for k in ks]
    by_k = [{"k": k, **weight_summary(values, k)} for k, values in zip(ks, found, strict=True)]
    counts, variances = unit_counts(subject, one.model)
    stacked = {
        name: np.stack([values[name] for values in found])
        for name in ("log_likelihood", "ess", "pareto_k")
    }
    own = {f"variances_{one.number}_{layer}": v for layer, v in enumerate(variances, start=1)}
    return Measured({**by_k[-1], "by_k": by_k, **counts}, stacked, own)

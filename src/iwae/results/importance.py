"""Log-likelihoods by importance sampling, for a record."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from iwae.errors import UserError
from iwae.evaluation.examples import gather
from iwae.evaluation.likelihood import log_likelihood_slabs
from iwae.models.conditional import Model
from iwae.results.ordering import check_ordering
from iwae.results.records import (
    Record,
    Subject,
    Track,
    joined,
    make_subject,
    origin,
    record_name,
    shared_record,
    unit_counts,
    untracked,
    weight_summary,
    write_record,
)
from iwae.results.unfinished import Slab, Unfinished

IMPORTANCE = "importance sampling"


class Measurement(NamedTuple):
    """What one model scores on the examples.

    Attributes:
        values: of each k, `log_likelihood` (nats), `ess` and `pareto_k`, `[n]` float64.
        variances: of the units of each layer.
        record: the replicate's own.
    """

    values: list[dict[str, np.ndarray]]
    variances: tuple[np.ndarray, ...]
    record: Record


def evaluate_run(
    run: Path,
    *,
    split: str = "test",
    weights: str = "final",
    ks: Sequence[int] = (5000,),
    examples: int | None = None,
    pruned: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    track: Track = untracked,
) -> Record:
    """Importance sampled log-likelihoods and active units of every replicate of a run.

    Writes `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz` (the
    values behind it): for R replicates, m numbers of samples and n examples `k [m]`, `index [n]` in
    the split, `log_likelihood`, `ess` and `pareto_k` `[R, m, n]`, and `variances_R_L` of the units
    of each replicate R (from 0) and layer L (from 1). A number that is not finite is null in the
    record. What a stopped call had done is kept, and the same call goes on from there.

    Args:
        ks: numbers of importance samples; the record leads with the largest.
        examples: a seeded random subset of the split instead of all of it.
        pruned: measure the models with their inactive units removed.
        seed: of the importance samples and of the subset.
        batch_size: examples at a time on each device; changes the speed, not the numbers.
        track: wraps an iterable of slabs, its length and a label into a progress bar.

    Raises:
        UserError: if the run, its weights, its data or the split are not there.
    """
    if not ks:
        raise UserError("name at least one k")
    run, ks = Path(run), sorted(set(ks))
    subject = make_subject(
        run,
        split=split,
        weights=weights,
        examples=examples,
        pruned=pruned,
        seed=seed,
        labels=True,
        data_dir=data_dir,
    )
    unfinished = Unfinished(run)
    measured = [
        _measure(subject, replicate, model, ks, batch_size, unfinished, track)
        for replicate, model in subject.models()
    ]
    shared = {**shared_record(subject, IMPORTANCE), "proposal": "posterior"}
    each = [one.record for one in measured]
    likelihoods = [[values["log_likelihood"] for values in one.values] for one in measured]
    record = joined(each, shared, likelihoods, "by_k", ["k"])
    arrays = {"k": np.asarray(ks), "index": subject.places}
    for name in ("log_likelihood", "ess", "pareto_k"):
        arrays[name] = np.stack(
            [np.stack([values[name] for values in one.values]) for one in measured]
        )
    for replicate, one in enumerate(measured):
        for layer, variances in enumerate(one.variances, start=1):
            arrays[f"variances_{replicate}_{layer}"] = variances
    name = record_name(subject, f"k{ks[-1]}")
    record["ordering"] = check_ordering(run, record, arrays)
    write_record(run, name, record, arrays)
    unfinished.forget()
    return record


def _measure(
    subject: Subject,
    replicate: int,
    model: Model,
    ks: Sequence[int],
    batch_size: int | None,
    unfinished: Unfinished,
    track: Track,
) -> Measurement:
    """One replicate."""
    start, key, values = time.perf_counter(), jax.random.key(subject.seed), []
    for k in ks:

        def slabs(first: int, k: int = k) -> Iterator[Slab]:
            return log_likelihood_slabs(
                model, subject.data, key, k=k, batch_size=batch_size, first=first
            )

        kept = unfinished.slabs(subject.settings(replicate, method=IMPORTANCE, k=k), slabs)
        label = f"replicate {replicate}, k={k}"
        values.append(gather(iter(track(kept, len(subject.data), label))))
    seconds = time.perf_counter() - start
    by_k = [{"k": k, **weight_summary(value, k)} for k, value in zip(ks, values, strict=True)]
    counts, variances = unit_counts(subject, model)
    record = {
        **by_k[-1],
        "by_k": by_k,
        **counts,
        "seconds": seconds,
        **origin(subject, replicate),
    }
    return Measurement(values, variances, record)

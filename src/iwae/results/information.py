"""What a model's posteriors say about its examples, for a record."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

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
from iwae.models.vae import VAE
from iwae.results.ordering import Known, known_bounds, models_of
from iwae.results.records import (
    Record,
    Subject,
    Track,
    make_subject,
    number,
    origin,
    record_name,
    shared_record,
    untracked,
    write_record,
)
from iwae.results.unfinished import Slab, Unfinished

INFORMATION = "information"


def information_run(
    run: Path,
    *,
    split: str = "test",
    weights: str = "final",
    examples: int | None = None,
    k: int = 16,
    pruned: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    track: Track = untracked,
) -> Record:
    """Rate, distortion and mutual information of every replicate, and where the ELBO's gap goes.

    The gap is split where the run has records of importance sampling and of annealing on these
    examples: log p(x) by the longest annealing run, L_k by the most samples. Writes
    `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz`: `rate`,
    `distortion` and `log_ratio` `[R, n]`, nats, and `index [n]` in the split. What a stopped call
    had done is kept, and the same call goes on from there.

    Args:
        k: samples of each example.
        split, weights, examples, pruned, seed, batch_size, track: as for `evaluate_run`.

    Raises:
        UserError: if the run, its weights, its data or the split are not there.
    """
    check_positive("k", k)
    subject = make_subject(
        Path(run),
        split=split,
        weights=weights,
        examples=examples,
        pruned=pruned,
        seed=seed,
        data_dir=data_dir,
    )
    unfinished = Unfinished(subject.run)
    each, found = [], []
    for replicate, model in subject.models():
        begin = time.perf_counter()
        one = _measure(subject, replicate, model, k, batch_size, unfinished, track)
        each.append(
            {
                **_summary(one),
                "k": k,
                "gap": _gap(subject, replicate, one),
                "seconds": time.perf_counter() - begin,
                **origin(subject, replicate),
            }
        )
        found.append(one)
    record = {
        **(each[0] if len(each) == 1 else {"replicates": each}),
        **shared_record(subject, INFORMATION),
    }
    arrays: dict[str, Any] = {
        name: np.stack([getattr(one, name) for one in found]) for name in Information._fields
    }
    arrays["index"] = subject.places
    write_record(subject.run, record_name(subject, INFORMATION), record, arrays)
    unfinished.forget()
    return record


def _measure(
    subject: Subject,
    replicate: int,
    model: VAE,
    k: int,
    batch_size: int | None,
    unfinished: Unfinished,
    track: Track,
) -> Information:
    """One replicate: first what each example costs, then how well a draw tells it from others."""
    key, n = jax.random.key(subject.seed), len(subject.data)
    rates = partial(rate_slabs, model, subject.data, key, k=k, batch_size=batch_size)
    ratios = partial(ratio_slabs, model, subject.data, key, batch_size=batch_size)

    def kept(name: str, make: Callable[[int], Iterator[Slab]], **options: Any) -> Iterator[Slab]:
        settings = subject.settings(replicate, method=f"{INFORMATION}, {name}", **options)
        return iter(track(unfinished.slabs(settings, make), n, f"replicate {replicate}, {name}"))

    return join_information(
        kept("rate", lambda first: rates(first=first), k=k),
        kept("mutual information", lambda first: ratios(first=first)),
    )


def _summary(found: Information) -> Record:
    """Means and standard errors, nats."""
    below, above = found.mutual_information
    elbo = estimate(found.elbo)
    return {
        "log_likelihood": number(elbo.mean),  # the ELBO: what rate and distortion add up to
        "stderr": number(elbo.stderr),
        **_named("rate", estimate(found.rate)),
        **_named("distortion", estimate(found.distortion)),
        **_named("mutual_information_lower", below),
        **_named("mutual_information_upper", above),
        "mutual_information_limit": float(np.log(len(found.rate))),
        **_named("marginal_kl", found.marginal_kl),
    }


def _named(name: str, value: Estimate) -> Record:
    return {name: number(value.mean), f"{name}_stderr": number(value.stderr)}


def _gap(subject: Subject, replicate: int, found: Information) -> Record | None:
    """Where the gap of the ELBO goes, on the examples that all three numbers are known of."""
    mine = origin(subject, replicate)["model_sha256"]
    known = [
        one
        for one in known_bounds(
            subject.run, split=subject.split, weights=subject.weights, pruned=subject.pruned
        )
        if len(models_of(one.record)) > replicate and models_of(one.record)[replicate] == mine
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

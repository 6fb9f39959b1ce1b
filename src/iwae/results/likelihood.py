"""Log-likelihoods by importance sampling."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import jax
import numpy as np

from iwae.data.binarisation import redraw_binarisation
from iwae.errors import UserError
from iwae.evaluation.likelihood import log_likelihood_slabs
from iwae.evaluation.standard_errors import BATCHES
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.schema import Document, Method
from iwae.results.subjects import Subject, make_subject, subject_record_name, subject_unit_counts
from iwae.results.summaries import summarise_draws, summarise_weights
from iwae.results.unfinished import Slab
from iwae.runs.split_examples import split_examples
from iwae.typing import PRNGKey

DEFAULT_K = 5000
"""Default number of importance samples."""


def evaluate_run(
    run: Path,
    *,
    ks: Sequence[int] = (DEFAULT_K,),
    binarizations: int | None = None,
    **options: Unpack[SplitOptions],
) -> Document:
    """Importance sampled log-likelihoods and active units of every replicate of a run.

    Writes `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz` (the
    values behind it): for R replicates, m numbers of samples and n examples `k [m]`, `index [n]` in
    the split, `log_likelihood`, `monte_carlo_error`, `ess` and `pareto_k` `[R, m, n]`,
    `draws [R, m, J, n]` if there are J draws, and `variances_R_L` of the units of each replicate R
    (from 0) and layer L (from 1). A number that is not finite is null in the record. A call that
    was stopped continues when it is repeated.

    Args:
        ks: numbers of importance samples; the record leads with the largest.
        binarizations: J, the number of draws of the pixels of a dynamically binarised test set to
            measure, the usual one first; each row of the record then has the mean over them,
            `binarizations`.
        options: see `SplitOptions`.

    Raises:
        UserError: if the run, its weights, its data or the split are not there, or its test set
            has no other draws.
    """
    if not ks:
        raise UserError("name at least one k")
    ks = sorted(set(ks))
    subject = make_subject(Path(run), **options)
    drawn = [subject] if binarizations is None else _redrawn_subjects(subject, binarizations)
    words = [f"k{ks[-1]}", *([] if binarizations is None else [f"draws{binarizations}"])]
    return measure(
        subject,
        Method.IMPORTANCE,
        partial(_measure, ks=ks, drawn=drawn),
        file=subject_record_name(subject, *words),
        shared={"proposal": "posterior"},
        arrays={"k": np.asarray(ks), "index": subject.places},
        rows=("by_k", "k"),
    )


def _measure(one: Replicate, ks: Sequence[int], drawn: Sequence[Subject]) -> Measured:
    found = [[_draw_values(one, k, draw, drawn[draw]) for draw in range(len(drawn))] for k in ks]
    by_k = [_k_row(k, draws) for k, draws in zip(ks, found, strict=True)]
    counts, variances = subject_unit_counts(one.subject, one.model)
    stacked = {
        name: np.stack([draws[0][name] for draws in found])
        for name in ("log_likelihood", "monte_carlo_error", "ess", "pareto_k")
    }
    if len(drawn) > 1:
        stacked["draws"] = np.stack([_stacked(draws, "log_likelihood") for draws in found])
    own = {f"variances_{one.number}_{layer}": v for layer, v in enumerate(variances, start=1)}
    return Measured({**by_k[-1], "by_k": by_k, **counts}, stacked, own)


def _draw_values(one: Replicate, k: int, draw: int, subject: Subject) -> Slab:
    """The values of one replicate on one draw of the examples."""
    key = importance_key(subject.seed, draw)
    slabs = partial(log_likelihood_slabs, one.model, subject.data, key, k=k)
    settings: Document = {"method": Method.IMPORTANCE, "k": k, "batches": BATCHES}
    name = f"k={k}" if draw == 0 else f"k={k}, draw {draw}"
    # Draws differ in their examples, so draw 0 can resume a measurement without other draws.
    return one._replace(subject=subject).values(name, slabs, **settings)


def _k_row(k: int, draws: Sequence[Slab]) -> Document:
    """The row of a record for one k, with the mean over draws if there are several."""
    row = {"k": k, **summarise_weights(draws[0], k)}
    if len(draws) == 1:
        return row
    values = (_stacked(draws, name) for name in ("log_likelihood", "monte_carlo_error"))
    return {**row, "binarizations": summarise_draws(*values)}


def _stacked(draws: Sequence[Slab], name: str) -> np.ndarray:
    return np.stack([one[name] for one in draws])


def _redrawn_subjects(subject: Subject, draws: int) -> list[Subject]:
    """The subject with each of its draws of the test pixels; the first draw is its own.

    Raises:
        UserError: for fewer than two draws, or examples that have no other draws.
    """
    if draws < 2:
        raise UserError(f"binarizations is {draws}; their spread needs at least 2")
    if subject.split != "test":
        raise UserError(
            f"binarizations are draws of the test split, not of {subject.split}: leave out one of "
            "the two"
        )
    sets = [redraw_binarisation(subject.dataset, draw) for draw in range(draws)]
    others = [split_examples(one, "test")[subject.places] for one in sets[1:]]
    return [subject, *(subject._replace(data=data) for data in others)]


def importance_key(seed: int, draw: int) -> PRNGKey:
    """The key of the particles of a draw; draw 0 has the usual one."""
    key = jax.random.key(seed)
    # Counted from the end, since examples and particles fold in numbers from 0 on.
    return key if draw == 0 else jax.random.fold_in(key, np.uint32(2**32 - draw))

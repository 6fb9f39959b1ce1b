"""Bounds from both sides on real examples, beside those on simulated ones."""

from functools import partial
from pathlib import Path
from typing import Unpack

import jax

from iwae.errors import UserError
from iwae.evaluation.tails import pareto_threshold, ratio_tail
from iwae.evaluation.two_sided_bounds import (
    annealed_two_sided_slabs,
    two_sided_slabs,
    two_sided_verdict,
)
from iwae.precision import float32
from iwae.results.ais import Annealing, ais_keys, check_ais_tolerance, freeze_split_ais
from iwae.results.likelihood import DEFAULT_K
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.schema import Document, Method
from iwae.results.subjects import make_subject, subject_record_name
from iwae.results.summaries import summarise_means, summarise_weights, summary_number
from iwae.results.unfinished import Slab

_STORED = ("lower", "upper", "ratio", "monte_carlo_error", "ess", "pareto_k")


@float32
def sandwich_run(
    run: Path,
    *,
    annealing: Annealing | None = None,
    k: int = DEFAULT_K,
    tolerance: float = 0.5,
    **options: Unpack[SplitOptions],
) -> Document:
    """Bounds from both sides on log p(x) of real examples, of every replicate of a run.

    By annealing and by k importance samples; see `iwae.two_sided`. The lower bounds
    are those that `anneal_run` and `evaluate_run` measure. Bounds of `bdmc_run` by the same
    annealing of the same model, where the run has them, are in the record too, as `simulated`;
    where it has L_k of all examples, bounds of a subset are also extrapolated to all.
    Writes `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz`:
    `index [n]` in the split, `lower`, `upper`, `ratio`, `monte_carlo_error`, `ess`, `pareto_k` and
    `acceptance` `[R, n]`, all but the last also as `importance_...`, `betas_R [T]` and
    `step_sizes_R [T-1]`. A call that was stopped continues when it is repeated.

    Args:
        annealing: temperatures, chains (two or more) and moves; by default `Annealing()`.
        k: importance samples, two or more.
        tolerance: the largest acceptable gap, nats; see `evaluation.two_sided_bounds`.
        options: see `SplitOptions`.

    Raises:
        UserError: if the run, its weights, its data or the split are not there, or an option makes
            no sense.
    """
    annealing = annealing or Annealing()
    annealing.check()
    check_ais_tolerance(tolerance)
    for name, value in (("chains", annealing.chains), ("k", k)):
        if value < 2:
            raise UserError(f"{name} is {value}; an upper bound needs at least 2 weights")
    subject = make_subject(Path(run), **options)
    words = ["sandwich", *annealing.words(), *[f"k{k}"] * (k != DEFAULT_K)]
    return measure(
        subject,
        Method.SANDWICH,
        partial(_measure, annealing=annealing, k=k, tolerance=tolerance),
        file=subject_record_name(subject, *words),
        shared=annealing.facts(subject),
        arrays={"index": subject.places},
    )


def _measure(one: Replicate, annealing: Annealing, k: int, tolerance: float) -> Measured:
    subject, length = one.subject, annealing.temperatures
    path, key = freeze_split_ais(one, annealing, length), ais_keys(subject.seed, length)[1]
    moves, of = annealing.moves(annealing.chains, **path._asdict()), (one.model, subject.data)
    chains = partial(annealed_two_sided_slabs, *of, key, **moves)
    samples = partial(two_sided_slabs, *of, jax.random.key(subject.seed), k=k)
    method = f"{Method.SANDWICH}, annealing"
    annealed = one.values(f"{length} temperatures", chains, method=method, **annealing.values())
    sampled = one.values(f"{k} samples", samples, method=f"{Method.SANDWICH}, samples", k=k)
    tail = ratio_tail(annealed["ratio"], annealed["lower"])
    judged = two_sided_verdict(annealed["upper"] - annealed["lower"], tail, tolerance)
    record = {
        **_two_sided_summary(annealed, annealing.chains),
        "acceptance_mean": float(annealed["acceptance"].mean()),
        "importance": {"k": k, **_two_sided_summary(sampled, k)},
        "verdict": {"word": judged.status, "reason": judged.reason, "tolerance": tolerance},
    }
    values = {name: annealed[name] for name in (*_STORED, "acceptance")}
    values |= {f"importance_{name}": sampled[name] for name in _STORED}
    return Measured(record, values, path.arrays(str(one.number)))


def _two_sided_summary(values: Slab, k: int) -> Document:
    """Means and errors of both sides and of the gap, nats, and diagnostics of the k weights."""
    lower, upper = values["lower"], values["upper"]
    return {
        **summarise_weights({**values, "log_likelihood": lower}, k),
        **summarise_means(lower=lower, upper=upper, gap=upper - lower),
        "ratio_pareto_k": summary_number(ratio_tail(values["ratio"], lower)),
        "ratio_pareto_k_threshold": summary_number(pareto_threshold(len(lower))),
    }

"""All bounds of a run in one row, and the published number of its experiment."""

from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from iwae.config.comparison import is_of_cell
from iwae.config.presets import PRESETS
from iwae.evaluation.diagnostics import test_sample_error
from iwae.results.completing import both_sides, carried_over, carries_over
from iwae.results.reading import Known, known_bounds
from iwae.results.schema import Fields, Method, Number, Part, Record, Sides
from iwae.results.text import plus_minus

Row = dict[str, str]


def published_nll(config: dict[str, Any]) -> str:
    """The published NLL of an experiment, its active units and epochs; "-" if there is none."""
    for entry in PRESETS.values():
        if entry.nll is not None and is_of_cell(entry, config):
            notes = [f"{'+'.join(map(str, entry.active))} active"] if entry.active else []
            epochs = f"{entry.config().epochs:,} epochs"
            notes.append("not as published" if entry.is_fast else epochs)
            return f"{entry.nll:.2f} ({', '.join(notes)})"
    return "-"


def estimates_row(run: Path, name: str, weights: str = "final") -> Row | None:
    """A row of the table of estimates; None for a run whose models were not annealed.

    All numbers are for the same examples: the whole test set if L_k is known there, to which
    annealing of a subset is carried over, and otherwise the subset.
    """
    bounds = known_bounds(run, split="test", weights=weights, pruned=False)
    if not bounds or bounds[-1].rank[0] == 0:
        return None
    samples = {bound.estimator: bound for bound in bounds if bound.rank[0] == 0}
    record = bounds[-1].record
    shorter, longest = (bound for bound in bounds if bound.record is record)
    whole = [bound for bound in samples.values() if carries_over(bound.record, record)]
    # The bound on all examples, if any, that carries annealing of a subset over to them.
    control = whole[-1] if whole and record.subset is not None else None
    base = longest if control is None else control
    row = {"run": name, "examples": _examples_text(longest, control)}
    for estimator, bound in samples.items():
        row[estimator] = _mean_on_examples(bound, base)
    for title, bound in (("AIS, short", shorter), ("AIS, long", longest)):
        row[title] = f"{_annealed_text(bound, control)} (T = {bound.rank[1]})"
    verdicts = [model.verdict.word for model in record.models if model.verdict is not None]
    row["verdict"] = " / ".join(dict.fromkeys(verdicts))
    if (both := _both_sides(run, record, Method.BIDIRECTIONAL)) is not None:
        sampled = [model.importance for model in both.models if model.importance is not None]
        row["gap of AIS"] = _mean_over_replicates(both.models, tighter_gap(both.models))
        row[f"gap of {sampled[0].k:,} samples"] = _mean_over_replicates(sampled, "gap")
    if (both := _both_sides(run, record, Method.SANDWICH)) is not None:
        row["gap of AIS, test examples"] = _mean_over_replicates(both.models, "gap")
    if samples:
        most = list(samples.values())[-1]
        last = [model.by_k[-1] for model in most.record.models]
        row[f"ESS of {most.estimator}"] = _mean_or_dash([one.ess_mean for one in last], ".0f")
        row["k-hat too large"] = _mean_or_dash([one.pareto_k_unreliable for one in last], ".0%")
    return row


def _examples_text(annealed: Known, control: Known | None) -> str:
    n, total = annealed.record.n, None if control is None else control.record.n
    if annealed.record.subset is None or n == total:
        return f"{n:,}"
    return f"a subset of {n:,}" if total is None else f"{total:,}, of which {n:,} annealed"


def _annealed_text(one: Known, control: Known | None) -> str:
    """The mean of an annealed bound, with the errors from the choice of examples and subset."""
    values = one.values.mean(axis=0)
    if control is None:
        return plus_minus(values.mean(), test_sample_error(values), digits=2)
    found = carried_over(values, control.values.mean(axis=0), one.places, control.estimator)
    text = plus_minus(found.log_likelihood, found.stderr, digits=2)
    return f"{text}, subset ± {found.subset_error:.2f}" if found.subset_error else text


def shared_places(bounds: Sequence[Known]) -> np.ndarray | None:
    """The places of the examples that all bounds share; None unless two share two examples."""
    if len(bounds) < 2:
        return None
    places = reduce(np.intersect1d, [bound.places for bound in bounds])
    return places if len(places) >= 2 else None


def differences_by_budget(
    bounds: Iterable[Known], places: np.ndarray, reference: Known
) -> tuple[list[int], list[float], list[float]]:
    """Budgets of bounds, their mean paired differences to a reference, and standard errors, nats.

    Means are over the given examples, which all bounds share, and over replicates. Of two bounds
    with one budget, the later counts.
    """
    zero = mean_of_replicates(reference, places)
    values = {one.rank[1]: mean_of_replicates(one, places) - zero for one in bounds}
    budgets = sorted(values)
    means = [float(values[budget].mean()) for budget in budgets]
    return budgets, means, [test_sample_error(values[budget]) for budget in budgets]


def mean_of_replicates(known: Known, places: np.ndarray) -> Float[np.ndarray, " n"]:
    """The mean over replicates of a bound on the given examples, `[n]` nats."""
    return known.values[:, np.isin(known.places, places)].mean(axis=0)


def tighter_gap(each: Iterable[Part | Sides]) -> str:
    """The name of the gap to quote: that to the mixed upper bound, if all have it."""
    return "gap" if any(one.mixed_gap is None for one in each) else "mixed_gap"


def _mean_on_examples(one: Known, other: Known) -> str:
    """A bound's mean and standard error over the examples of another; "-" if it lacks some."""
    values = mean_of_replicates(one, other.places)
    if len(values) < len(other.places):
        return "-"
    return plus_minus(values.mean(), test_sample_error(values), digits=2)


def _both_sides(run: Path, record: Record, method: Method) -> Record | None:
    """The two-sided bounds on most examples, with the same annealing of the same models."""
    same = record.annealing, record.split, record.weights, record.pruned
    found = [both for _, both in both_sides(run, method, *same) if both.digests == record.digests]
    return max(found, key=lambda both: both.n, default=None)


def _mean_or_dash(values: Sequence[Number], form: str) -> str:
    """A mean in a format; "-" if one of the values is unknown."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):{form}}" if len(known) == len(values) else "-"


def _mean_over_replicates(each: Sequence[Fields], name: str) -> str:
    """The mean over replicates, each with its own examples, and its standard error."""
    means, errors = np.array([one.mean(name) for one in each], np.float64).T
    if not np.isfinite([means, errors]).all():
        return plus_minus(None)
    mean = round(means.mean(), 2) + 0.0  # no negative zero
    error = np.sqrt(np.mean(errors**2) / len(each))
    return plus_minus(mean, error, digits=2)

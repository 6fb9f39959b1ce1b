"""All bounds of a run in one row of a table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iwae.evaluation.standard_errors import standard_error
from iwae.results.compare import compared_mean
from iwae.results.extrapolation import can_extrapolate, difference_estimate
from iwae.results.formatting import plus_minus
from iwae.results.reading import Known, read_bounds, read_two_sided
from iwae.results.schema import Fields, Method, Number, Record, tighter_gap_field

Row = dict[str, str]


def estimates_row(run: Path, name: str, weights: str = "final") -> Row | None:
    """A row of the table of estimates; None for a run whose models were not annealed.

    All numbers are for the same examples: the whole test set if L_k is known there, to which
    annealing of a subset is extrapolated, and otherwise the subset.
    """
    bounds = read_bounds(run, split="test", weights=weights, pruned=False)
    if not bounds or bounds[-1].rank[0] == 0:
        return None
    samples = {bound.estimator: bound for bound in bounds if bound.rank[0] == 0}
    record = bounds[-1].record
    shorter, longest = (bound for bound in bounds if bound.record is record)
    whole = [bound for bound in samples.values() if can_extrapolate(bound.record, record)]
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
        row["gap of AIS"] = _mean_over_replicates(both.models, tighter_gap_field(both.models))
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
        return plus_minus(values.mean(), standard_error(values), digits=2)
    found = difference_estimate(values, control.values.mean(axis=0), one.places, control.estimator)
    text = plus_minus(found.log_likelihood, found.stderr, digits=2)
    return f"{text}, subset ± {found.subset_error:.2f}" if found.subset_error else text


def _mean_on_examples(one: Known, other: Known) -> str:
    """A bound's mean and standard error over the examples of another; "-" if it lacks some."""
    values = compared_mean(one, other.places)
    if len(values) < len(other.places):
        return "-"
    return plus_minus(values.mean(), standard_error(values), digits=2)


def _both_sides(run: Path, record: Record, method: Method) -> Record | None:
    """The two-sided bounds on most examples, with the same annealing of the same models."""
    same = record.annealing, record.split, record.weights, record.pruned
    found = [
        both for _, both in read_two_sided(run, method, *same) if both.digests == record.digests
    ]
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

"""All bounds known of a run in one row, and the number that a paper reports of its experiment."""

from collections.abc import Iterable, Sequence
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
    """The published number of this experiment and its epochs; "-" if there is nothing."""
    for entry in PRESETS.values():
        if entry.nll is not None and is_of_cell(entry, config):
            about = [f"{'+'.join(map(str, entry.active))} active"] if entry.active else []
            epochs = f"{entry.config().epochs:,} epochs"
            about.append("not as published" if entry.is_fast else epochs)
            return f"{entry.nll:.2f} ({', '.join(about)})"
    return "-"


def estimates_row(run: Path, name: str, weights: str = "final") -> Row | None:
    """One line of the table of estimates; None for a run whose models were not annealed.

    All numbers are of the same examples: of all of the test set where L_k of all is known, to which
    annealing of a subset is carried over, and otherwise of the subset.
    """
    bounds = known_bounds(run, split="test", weights=weights, pruned=False)
    if not bounds or bounds[-1].rank[0] == 0:
        return None
    samples = {one.estimator: one for one in bounds if one.rank[0] == 0}
    record = bounds[-1].record
    shorter, longest = (one for one in bounds if one.record is record)
    whole = [one for one in samples.values() if carries_over(one.record, record)]
    # The bound of all examples that carries annealing of a subset over to them, if any.
    control = whole[-1] if whole and record.subset is not None else None
    base = longest if control is None else control
    row = {"run": name, "examples": _examples(longest, control)}
    for estimator, one in samples.items():
        row[estimator] = _mean_on(one, base)
    for one, words in ((shorter, "AIS, short"), (longest, "AIS, long")):
        row[words] = f"{_annealed(one, control)} (T = {one.rank[1]})"
    verdicts = [one.verdict.word for one in record.models if one.verdict is not None]
    row["verdict"] = " / ".join(dict.fromkeys(verdicts))
    if (both := _both_sides(run, record, Method.BIDIRECTIONAL)) is not None:
        sampled = [one.importance for one in both.models if one.importance is not None]
        row["gap of AIS"] = _plus_minus(both.models, tighter_gap(both.models))
        row[f"gap of {sampled[0].k:,} samples"] = _plus_minus(sampled, "gap")
    if (both := _both_sides(run, record, Method.SANDWICH)) is not None:
        row["gap of AIS, test examples"] = _plus_minus(both.models, "gap")
    if samples:
        most = list(samples.values())[-1]
        last = [one.by_k[-1] for one in most.record.models]
        row[f"ESS of {most.estimator}"] = _mean([one.ess_mean for one in last], ".0f")
        row["k-hat too large"] = _mean([one.pareto_k_unreliable for one in last], ".0%")
    return row


def _examples(annealed: Known, control: Known | None) -> str:
    n, total = annealed.record.n, None if control is None else control.record.n
    if annealed.record.subset is None or n == total:
        return f"{n:,}"
    return f"a subset of {n:,}" if total is None else f"{total:,}, of which {n:,} annealed"


def _annealed(one: Known, control: Known | None) -> str:
    """The mean of an annealed bound, and its error from the choice of test examples and subset."""
    values = one.values.mean(axis=0)
    if control is None:
        return plus_minus(values.mean(), test_sample_error(values), digits=2)
    found = carried_over(values, control.values.mean(axis=0), one.places, control.estimator)
    words = plus_minus(found.log_likelihood, found.stderr, digits=2)
    return f"{words}, subset ± {found.subset_error:.2f}" if found.subset_error else words


def differences_by_budget(
    bounds: Iterable[Known], places: np.ndarray, reference: Known
) -> tuple[list[int], list[float], list[float]]:
    """Budgets, and the mean paired differences of bounds to a reference with standard errors, nats.

    Means are over these examples, which all have, and over replicates. Of two bounds of one budget,
    the later one counts.
    """
    zero = mean_of_replicates(reference, places)
    values = {one.rank[1]: mean_of_replicates(one, places) - zero for one in bounds}
    budgets = sorted(values)
    means = [float(values[budget].mean()) for budget in budgets]
    return budgets, means, [test_sample_error(values[budget]) for budget in budgets]


def mean_of_replicates(known: Known, places: np.ndarray) -> Float[np.ndarray, " n"]:
    """The bounds of these examples, `[n]` nats, as means over replicates."""
    return known.values[:, np.isin(known.places, places)].mean(axis=0)


def tighter_gap(each: Iterable[Part | Sides]) -> str:
    """The name of the gap to quote: to the mixed upper side where all have measured it."""
    return "gap" if any(one.mixed_gap is None for one in each) else "mixed_gap"


def _mean_on(one: Known, other: Known) -> str:
    """A bound's mean and standard error over the examples of another one."""
    values = mean_of_replicates(one, other.places)
    if len(values) < len(other.places):
        return "-"
    return plus_minus(values.mean(), test_sample_error(values), digits=2)


def _both_sides(run: Path, record: Record, method: Method) -> Record | None:
    """The bounds from both sides by the same annealing of the same models, on most examples."""
    how = record.annealing, record.split, record.weights, record.pruned
    found = [both for _, both in both_sides(run, method, *how) if both.digests == record.digests]
    return max(found, key=lambda both: both.n, default=None)


def _mean(values: Sequence[Number], form: str) -> str:
    """A mean in a format; "-" if one of the values is unknown."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):{form}}" if len(known) == len(values) else "-"


def _plus_minus(each: Sequence[Fields], name: str) -> str:
    """The mean over replicates, whose examples differ, and its standard error."""
    means, errors = np.array([one.mean(name) for one in each], np.float64).T
    if not np.isfinite([means, errors]).all():
        return plus_minus(None)
    mean = round(means.mean(), 2) + 0.0  # no minus before a zero
    error = np.sqrt(np.mean(errors**2) / len(each))
    return plus_minus(mean, error, digits=2)

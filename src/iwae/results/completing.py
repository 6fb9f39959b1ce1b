"""Numbers completed by a run's other records: for all examples of a split, and for other draws.

A bound of a subset is carried over to all examples, and a bound of one draw of the pixels to the
mean over draws, by its difference to a bound that was measured on more (Cochran 1977, chapter 7).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from iwae.evaluation.diagnostics import test_sample_error
from iwae.results.reading import (
    BOUNDING,
    BUDGETS,
    Known,
    bounds_in,
    read_records,
    report_damage,
)
from iwae.results.records import number
from iwae.results.schema import (
    MIXED,
    Binarizations,
    Document,
    Method,
    Number,
    Part,
    Record,
    Row,
    SampledRow,
    Samples,
    Settings,
    Simulated,
    Whole,
    fields_of,
)
from iwae.results.store import Arrays, Damaged, place, read_arrays


def read_completed(
    run: Path, methods: Sequence[str] = tuple(Method), damaged: Damaged = report_damage
) -> Iterator[tuple[Path, Record]]:
    """`read_records`, with what the run's other records add to each."""
    for path, record in read_records(run, methods, damaged):
        is_carried = record.method in _CARRIED and record.subset is not None
        arrays = _values(path, record, damaged) if is_carried else None
        yield path, completed(run, record, arrays)


def _values(path: Path, record: Record, damaged: Damaged) -> Arrays | None:
    """The values behind a record of a subset; None if they are not of its models and examples."""
    names, n = _CARRIED[record.method], record.n
    arrays = read_arrays(path, damaged, ("index", *names))
    if arrays is None:
        return None
    rows = [len(record.by_k or record.by_temperatures)] if record.method in BOUNDING else []
    shapes, index = {arrays[name].shape for name in names}, arrays["index"]
    are_places = index.shape == (n,) and index.dtype.kind in "iu" and (index >= 0).all()
    if shapes != {(len(record.models), *rows, n)} or not are_places:
        damaged(f"{place(path)} is no record of its values")
        return None
    return arrays


def completed(run: Path, record: Record, arrays: Arrays | None) -> Record:
    """The record with what the run's other records allow.

    Rows of a bound get `whole` and `binarizations`; bounds from both sides `lower_whole` and
    `upper_whole`, and `simulated`, those of simulated examples by the same settings.

    Args:
        arrays: the values behind it; needed of a subset only.
    """
    if record.method == Method.SANDWICH:
        return _sandwich(run, record, arrays)
    if record.method not in BOUNDING:
        return record
    others = _of_all(run, record)
    controls = _controls(record, arrays, others)
    drawn = [one for _, one in others if any(map(_own_draws, one.by_k))]
    if record.subset is not None and not controls:
        drawn = []  # the draws are of all examples
    found = _Others(arrays, controls, drawn)
    parts = [_part(part, found, r) for r, part in enumerate(record.replicates)]
    whole = _part(record, found, None)
    return whole.model_copy(update={"replicates": tuple(parts)}) if parts else whole


_SIDES = ("lower", "upper")
_CARRIED: Mapping[Method, tuple[str, ...]] = {
    **dict.fromkeys(BOUNDING, ("log_likelihood",)),
    Method.SANDWICH: (*_SIDES, *(f"importance_{side}" for side in _SIDES)),
}
"""Method -> names of the values that are carried over from a subset."""


_FILLED = ("simulated", "importance", *(f"{side}_whole" for side in _SIDES))
"""Fields of bounds from both sides that other records fill in."""


def _sandwich(run: Path, record: Record, arrays: Arrays | None) -> Record:
    """Bounds from both sides, with those of simulated examples and those of all examples."""
    controls = _controls(record, arrays, _of_all(run, record))
    parts = []
    for r, part in enumerate(record.models):
        more: dict[str, Any] = {}
        if (made := simulated_bounds(run, record, r)) is not None:
            more["simulated"] = made
        if controls and arrays is not None:
            more |= _whole_sides(arrays, controls, r, "")
            if part.importance is not None:
                sides = _whole_sides(arrays, controls, r, "importance_")
                more["importance"] = part.importance.model_copy(update=sides)
        parts.append(part.model_copy(update=more))
    if not record.replicates:
        return record.model_copy(update={name: getattr(parts[0], name) for name in _FILLED})
    return record.model_copy(update={"replicates": tuple(parts)})


def _whole_sides(
    arrays: Arrays, controls: Sequence[Known], replicate: int, prefix: str
) -> dict[str, Whole]:
    """Both sides of one replicate, carried over to all examples by one bound of all."""
    index = arrays["index"]
    control = best_control(arrays[f"{prefix}lower"], index, controls)
    return {
        f"{side}_whole": carried_over(
            arrays[prefix + side][replicate], control.values[replicate], index, control.estimator
        )
        for side in _SIDES
    }


def _of_all(run: Path, record: Record) -> list[tuple[Path, Record]]:
    """Records of L_k of all examples, of the same models."""
    return [
        (path, one)
        for path, one in read_records(run, (Method.IMPORTANCE,))
        if carries_over(one, record)
    ]


def carries_over(one: Record, other: Record) -> bool:
    """Whether one has L_k of all examples of the split, by the same models, for the other one."""
    names = ("split", "weights", "pruned", "digests", "test_sha256")
    alike = all(getattr(one, name) == getattr(other, name) for name in names)
    return bool(one.by_k) and one.subset is None and alike


_LEADING = {
    *("whole", "binarizations"),
    *("monte_carlo_error", "monte_carlo_infinite", "pareto_k_unreliable", "pareto_k_threshold"),
}
"""Fields that the last row shares with the record that it leads."""


def _own_draws(row: Row) -> bool:
    return row.binarizations is not None and row.binarizations.by is None


class _Others(NamedTuple):
    """The knowledge beside a record: its own values, those of all examples, and several draws.

    Attributes:
        arrays: the values behind the record.
        controls: bounds of all examples, loosest first.
        drawn: the records with several draws.
    """

    arrays: Arrays | None
    controls: Sequence[Known]
    drawn: Sequence[Record]


def _controls(
    record: Record, arrays: Arrays | None, others: Sequence[tuple[Path, Record]]
) -> list[Known]:
    """The bounds of all examples that may carry a subset's over, loosest first.

    One example has none, since it tells no error of what would be carried over.
    """
    if record.subset is None or arrays is None or len(arrays["index"]) < 2:
        return []
    found = [bound for path, one in others for bound in bounds_in(path, one)]
    known = [one for one in found if one.values.shape[1] > arrays["index"].max()]
    return sorted(known, key=lambda one: one.rank)


def best_control(
    values: Float[np.ndarray, "R m"], places: Int[np.ndarray, " m"], controls: Sequence[Known]
) -> Known:
    """The bound of all examples that carries a subset's over with the smallest subset error.

    That is the L_k of the same samples, which leaves no error, and otherwise usually the tightest:
    a loose one adds the noise of its samples. Of equal ones it is the tightest.

    Args:
        values: of the subset, nats.
        places: of the subset among all.
        controls: loosest first.
    """

    def error(one: Known) -> float:
        means = values.mean(axis=0), one.values.mean(axis=0)
        found = carried_over(*means, places, one.estimator).subset_error
        return np.inf if found is None else found

    return min(reversed(controls), key=error)


def whole_of(run: Path, known: Known) -> Whole | None:
    """A bound of a subset, as a mean over replicates, carried over to all examples, if it can be.

    Args:
        run: the folder that has the bound and the others.
    """
    arrays = {"index": known.places}
    controls = _controls(known.record, arrays, _of_all(run, known.record))
    if not controls:
        return None
    control = best_control(known.values, known.places, controls)
    means = known.values.mean(axis=0), control.values.mean(axis=0)
    return carried_over(*means, known.places, control.estimator)


def _part(part: Any, others: _Others, replicate: int | None) -> Any:
    """A record, or its part about one model, with completed rows."""
    for name, _ in BUDGETS.values():
        if rows := getattr(part, name):
            full = tuple(_row(row, i, others, replicate) for i, row in enumerate(rows))
            if replicate is None and part.replicates:
                each = zip(*(getattr(one, name) for one in part.replicates), strict=True)
                full = tuple(_over(row, ones) for row, ones in zip(full, each, strict=True))
            leading = full[-1].model_dump(include=_LEADING, exclude_none=True)
            return part.model_copy(
                update={name: full, **{each: getattr(full[-1], each) for each in leading}}
            )
    return part


def _row(row: Row, i: int, others: _Others, replicate: int | None) -> Row:
    more: dict[str, Whole | Binarizations] = {}
    if others.controls and others.arrays is not None:
        mine, index = others.arrays["log_likelihood"][:, i], others.arrays["index"]
        control = best_control(mine, index, others.controls)
        one = (mine.mean(axis=0), control.values.mean(axis=0))
        if replicate is not None:
            one = (mine[replicate], control.values[replicate])
        more["whole"] = carried_over(*one, index, control.estimator)
    base = more.get("whole", row)
    parts = others.drawn if replicate is None else [one.models[replicate] for one in others.drawn]
    drawn = None if _own_draws(row) else _drawn_row(parts, row)
    found = None if drawn is None else _shifted(base.log_likelihood, base.stderr, drawn)
    if found is not None:
        more["binarizations"] = found
    return row.model_copy(update=more) if more else row


def _over(row: Row, each: Sequence[Row]) -> Row:
    """The mean over replicates, with the errors of its particles from each one's.

    Replicates are measured with the same keys, and their errors are correlated: that of the mean is
    bounded by the mean of them, what it is if they are perfectly so.
    """
    more: dict[str, Number] = {}
    if None not in (errors := [one.monte_carlo_error for one in each]):
        more["monte_carlo_error"] = float(np.mean(np.array(errors, float)))
    if None not in (shares := [one.pareto_k_unreliable for one in each]):
        more["pareto_k_unreliable"] = float(np.mean(np.array(shares, float)))
        more["pareto_k_threshold"] = each[0].pareto_k_threshold
    if infinite := sum(one.monte_carlo_infinite or 0 for one in each):
        more["monte_carlo_infinite"] = infinite
    return row.model_copy(update=more) if more else row


def carried_over(
    subset: Float[np.ndarray, " m"],
    control: Float[np.ndarray, " n"],
    places: Int[np.ndarray, " m"],
    name: str,
) -> Whole:
    """A bound of m examples, carried over to the n that they are a random subset of.

    The mean of the control over all n plus the mean difference to it on the subset. The
    difference's error has the finite-population correction sqrt(1 - m / n); it is that of a simple
    random sample, and too large for a stratified one. `stderr` is the control's, in the ratio of
    the two standard deviations on the subset.

    Args:
        subset: nats, of two examples or more.
        control: another bound of the same model, nats.
        places: of the subset among the n.
        name: of the control.
    """
    n, m, same = len(control), len(subset), control[places]
    if not (np.isfinite(control).all() and np.isfinite(subset).all()):
        return Whole(n=n, by=name, log_likelihood=None, stderr=None, subset_error=None)
    difference = subset - same
    with np.errstate(over="ignore", invalid="ignore"):  # then an error is not finite
        spread = np.std(subset) / np.std(same) if np.std(same) > 0 else 1.0
        return Whole(
            n=n,
            by=name,
            log_likelihood=number(control.mean() + difference.mean()),
            stderr=number(spread * test_sample_error(control)),
            subset_error=number(test_sample_error(difference) * np.sqrt(1 - m / n)),
        )


def _drawn_row(parts: Sequence[Part], row: Row) -> SampledRow | None:
    """The bound of the most samples with draws of its own that is no tighter than the row.

    The draws move a tighter bound as they move this one. A looser one has an error of particles
    that hides it: that of L_1 differs from draw to draw by far more than L_50 moves.
    """
    known = [one for part in parts for one in part.by_k if _own_draws(one)]
    if isinstance(row, SampledRow):
        known = [one for one in known if one.k <= row.k]
    return max(known, key=lambda one: one.k, default=None)


def _shifted(base: Number, stderr: Number, row: SampledRow) -> Binarizations | None:
    """A number of draw 0, carried over to the mean over the draws of another bound, the row.

    The Monte Carlo error of that bound on draw 0, which its mean over draws does not share, counts
    as an error of the draws. The number's `stderr` changes in the ratio that the row's does.
    """
    own = row.binarizations
    if own is None or None in (base, row.log_likelihood, own.log_likelihood):
        return None
    known = None not in (stderr, own.stderr, row.stderr) and row.stderr != 0
    errors = own.draws_error, row.monte_carlo_error
    return own.model_copy(
        update={
            "log_likelihood": base + own.log_likelihood - row.log_likelihood,  # type: ignore[operator]
            "stderr": stderr * own.stderr / row.stderr if known else None,  # type: ignore[operator]
            "draws_error": None if None in errors else float(np.hypot(*errors)),  # type: ignore[arg-type]
            "monte_carlo_error": None,
            "by": f"L_{row.k}",
        }
    )


# --- the same annealing of simulated examples ------------------------------------------------


def simulated_bounds(run: Path, record: Record, number: int) -> Simulated | None:
    """Bounds on simulated examples by the same annealing of the same model, if known.

    Those by importance samples are included if there were as many.

    Args:
        record: of bounds on real examples.
        number: of the replicate.
    """
    how = record.annealing, record.split, record.weights, record.pruned
    digest = record.digests[number : number + 1]
    made = [
        both
        for _, both in both_sides(run, Method.BIDIRECTIONAL, *how)
        if both.digests[number : number + 1] == digest
    ]
    found = max(made, key=lambda both: both.n, default=None)
    if found is None:
        return None
    part = found.models[number]
    own, sampled = record.models[number].importance, part.importance
    alike = own is not None and sampled is not None and sampled.k == own.k
    samples = Samples(k=sampled.k, **_bounds(sampled)) if alike and sampled else None
    return Simulated(n=found.n, **_bounds(part), importance=samples)


def _bounds(of: Part | Samples) -> Document:
    return {
        field: getattr(of, field)
        for name in ("lower", "upper", "gap", *MIXED)
        for field in fields_of(name)
    }


def both_sides(
    run: Path, method: Method, annealing: Settings | None, split: str, weights: str, pruned: bool
) -> Iterator[tuple[Path, Record]]:
    """Records of a run by such annealing in both directions, of a split or of simulated examples.

    Their models may be others, trained before or after: compare the digests.
    """
    wanted = annealing, weights, pruned
    for path, record in read_records(run, (method,)):
        same = (record.annealing, record.weights, record.pruned) == wanted
        if same and record.split in ("simulated", split):
            yield path, record

"""Extrapolate a run's bounds to all examples of a split and to other draws, by its other records.

A bound of a subset is extrapolated to all examples, and a bound of one draw of the pixels to the
mean over draws, by its difference to a bound that was measured on more (Cochran 1977, chapter 7).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from iwae.evaluation.standard_errors import standard_error
from iwae.results import schema
from iwae.results.reading import (
    BOUNDING,
    BUDGETS,
    Known,
    read_record_bounds,
    read_records,
    read_two_sided,
    warn_unreadable_record,
)
from iwae.results.record_files import Arrays, Damaged, read_record_arrays, record_place
from iwae.results.schema import Method, Number, Part, Record, Whole
from iwae.results.summaries import summary_number


def read_extrapolated_records(
    run: Path, methods: Sequence[str] = tuple(Method), damaged: Damaged = warn_unreadable_record
) -> Iterator[tuple[Path, Record]]:
    """`read_records`, each completed by the run's other records."""
    for path, record in read_records(run, methods, damaged):
        is_extrapolated = record.method in _EXTRAPOLATED and record.subset is not None
        arrays = _subset_values(path, record, damaged) if is_extrapolated else None
        yield path, extrapolate_record(run, record, arrays)


def _subset_values(path: Path, record: Record, damaged: Damaged) -> Arrays | None:
    """The values behind a record of a subset; None if they do not fit its models and examples."""
    names, n = _EXTRAPOLATED[record.method], record.n
    arrays = read_record_arrays(path, damaged, ("index", *names))
    if arrays is None:
        return None
    rows = [len(record.by_k or record.by_temperatures)] if record.method in BOUNDING else []
    shapes, index = {arrays[name].shape for name in names}, arrays["index"]
    are_places = index.shape == (n,) and index.dtype.kind in "iu" and (index >= 0).all()
    if shapes != {(len(record.models), *rows, n)} or not are_places:
        damaged(f"{record_place(path)} is not the record of its values")
        return None
    return arrays


def extrapolate_record(run: Path, record: Record, arrays: Arrays | None) -> Record:
    """The record, completed by the run's other records.

    Rows of a bound get `whole` and `binarizations`. Bounds from both sides get `lower_whole`,
    `upper_whole` and `simulated`, the bounds on simulated examples with the same settings.

    Args:
        arrays: the values behind the record; needed for a subset only.
    """
    if record.method == Method.SANDWICH:
        return _completed_sides(run, record, arrays)
    if record.method not in BOUNDING:
        return record
    others = _of_all(run, record)
    controls = _controls(record, arrays, others)
    drawn = [one for _, one in others if any(map(_own_draws, one.by_k))]
    if record.subset is not None and not controls:
        drawn = []  # the draws are of all examples
    known = _Knowledge(arrays, controls, drawn)
    parts = tuple(_completed_part(part, known, r) for r, part in enumerate(record.replicates))
    whole = _completed_part(record, known, None)
    return whole.model_copy(update={"replicates": parts}) if parts else whole


_SIDES = ("lower", "upper")
_EXTRAPOLATED: Mapping[Method, tuple[str, ...]] = {
    **dict.fromkeys(BOUNDING, ("log_likelihood",)),
    Method.SANDWICH: (*_SIDES, *(f"importance_{side}" for side in _SIDES)),
}
"""Method -> names of the values that are extrapolated from a subset."""

_FILLED = ("simulated", "importance", *(f"{side}_whole" for side in _SIDES))
"""Fields of bounds from both sides that other records complete."""


def _completed_sides(run: Path, record: Record, arrays: Arrays | None) -> Record:
    """Bounds from both sides, with those on simulated examples and on all examples."""
    controls = _controls(record, arrays, _of_all(run, record))
    parts = []
    for r, part in enumerate(record.models):
        more: dict[str, Any] = {}
        if (simulated := _simulated_bounds(run, record, r)) is not None:
            more["simulated"] = simulated
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
    """Both sides of one replicate, extrapolated to all examples by the same control."""
    index = arrays["index"]
    control = _best_control(arrays[f"{prefix}lower"], index, controls)
    return {
        f"{side}_whole": difference_estimate(
            arrays[prefix + side][replicate], control.values[replicate], index, control.estimator
        )
        for side in _SIDES
    }


def _of_all(run: Path, record: Record) -> list[tuple[Path, Record]]:
    """Records of L_k of all examples by the same models."""
    return [
        (path, one)
        for path, one in read_records(run, (Method.IMPORTANCE,))
        if can_extrapolate(one, record)
    ]


def can_extrapolate(one: Record, other: Record) -> bool:
    """Whether a record has L_k of all examples of the other's split, by the same models."""
    names = ("split", "weights", "pruned", "digests", "test_sha256")
    alike = all(getattr(one, name) == getattr(other, name) for name in names)
    return bool(one.by_k) and one.subset is None and alike


_LEADING = {
    *("whole", "binarizations"),
    *("monte_carlo_error", "monte_carlo_infinite", "pareto_k_unreliable", "pareto_k_threshold"),
}
"""Fields that a record has from its last row."""


def _own_draws(row: schema.Row) -> bool:
    return row.binarizations is not None and row.binarizations.by is None


class _Knowledge(NamedTuple):
    """Everything that completes a record.

    Attributes:
        arrays: the values behind the record.
        controls: bounds of all examples, loosest first.
        drawn: records with several draws of the pixels.
    """

    arrays: Arrays | None
    controls: Sequence[Known]
    drawn: Sequence[Record]


def _controls(
    record: Record, arrays: Arrays | None, others: Sequence[tuple[Path, Record]]
) -> list[Known]:
    """The bounds of all examples that can extrapolate those of a subset, loosest first.

    None for a subset of one example, which does not give a subset error.
    """
    if record.subset is None or arrays is None or len(arrays["index"]) < 2:
        return []
    found = [bound for path, one in others for bound in read_record_bounds(path, one)]
    known = [one for one in found if one.values.shape[1] > arrays["index"].max()]
    return sorted(known, key=lambda one: one.rank)


def _best_control(
    values: Float[np.ndarray, "R m"], places: Int[np.ndarray, " m"], controls: Sequence[Known]
) -> Known:
    """The bound of all examples that carries a subset's bound over with the smallest subset error.

    L_k of the same samples has no subset error. Otherwise the tightest bound is usually best, since
    a loose one adds the noise of its samples. Ties go to the tightest.

    Args:
        values: the bound of the subset, nats.
        places: of the subset among all.
        controls: loosest first.
    """

    def error(one: Known) -> float:
        means = values.mean(axis=0), one.values.mean(axis=0)
        found = difference_estimate(*means, places, one.estimator).subset_error
        return np.inf if found is None else found

    return min(reversed(controls), key=error)


def extrapolated_mean(run: Path, known: Known) -> Whole | None:
    """A subset's bound, averaged over replicates, extrapolated to all examples; None if it cannot.

    Args:
        run: the folder of the run.
    """
    controls = _controls(known.record, {"index": known.places}, _of_all(run, known.record))
    return _extrapolated(known.values, known.places, controls) if controls else None


def _extrapolated(
    values: Float[np.ndarray, "R m"],
    places: Int[np.ndarray, " m"],
    controls: Sequence[Known],
    replicate: int | None = None,
) -> Whole:
    """A subset's bound, of a replicate or averaged over all, extrapolated by the best control."""
    control = _best_control(values, places, controls)
    pair = values.mean(axis=0), control.values.mean(axis=0)
    if replicate is not None:
        pair = values[replicate], control.values[replicate]
    return difference_estimate(*pair, places, control.estimator)


def _completed_part(part: Any, known: _Knowledge, replicate: int | None) -> Any:
    """A record, or its part about one model, with completed rows."""
    for name, _ in BUDGETS.values():
        if rows := getattr(part, name):
            full = tuple(_completed_row(row, i, known, replicate) for i, row in enumerate(rows))
            if replicate is None and part.replicates:
                each = zip(*(getattr(one, name) for one in part.replicates), strict=True)
                full = tuple(_over(row, ones) for row, ones in zip(full, each, strict=True))
            leading = full[-1].model_dump(include=_LEADING, exclude_none=True)
            own = {field: getattr(full[-1], field) for field in leading}
            return part.model_copy(update={name: full, **own})
    return part


def _completed_row(row: schema.Row, i: int, known: _Knowledge, replicate: int | None) -> schema.Row:
    more: dict[str, Whole | schema.Binarizations] = {}
    if known.controls and known.arrays is not None:
        values = known.arrays["log_likelihood"][:, i]
        more["whole"] = _extrapolated(values, known.arrays["index"], known.controls, replicate)
    base = more.get("whole", row)
    parts = known.drawn if replicate is None else [one.models[replicate] for one in known.drawn]
    drawn = None if _own_draws(row) else _drawn_row(parts, row)
    found = None if drawn is None else _shifted(base.log_likelihood, base.stderr, drawn)
    if found is not None:
        more["binarizations"] = found
    return row.model_copy(update=more) if more else row


def _over(row: schema.Row, each: Sequence[schema.Row]) -> schema.Row:
    """The mean over replicates, with a Monte Carlo error from those of the replicates.

    Replicates are measured with the same keys, so their errors are correlated: the error of the
    mean is at most the mean of the errors, which it is under perfect correlation.
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


def difference_estimate(
    subset: Float[np.ndarray, " m"],
    control: Float[np.ndarray, " n"],
    places: Int[np.ndarray, " m"],
    name: str,
) -> Whole:
    """A bound of m examples, a random subset, extrapolated to all n examples.

    The mean of the control over all n plus the mean difference to it on the subset. The error of
    the difference has the finite-population correction sqrt(1 - m / n); it is that of a simple
    random sample, and too large for a stratified one. `stderr` is the control's, scaled by the
    ratio of the two standard deviations on the subset.

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
            log_likelihood=summary_number(control.mean() + difference.mean()),
            stderr=summary_number(spread * standard_error(control)),
            subset_error=summary_number(standard_error(difference) * np.sqrt(1 - m / n)),
        )


def _drawn_row(parts: Sequence[Part], row: schema.Row) -> schema.SampledRow | None:
    """The bound of the most samples that has draws of its own and is no tighter than the row.

    Draws move a tighter bound as they move this one. They cannot be extrapolated to a looser one,
    whose Monte Carlo error hides the shift: L_1 varies by far more than L_50 shifts.
    """
    known = [one for part in parts for one in part.by_k if _own_draws(one)]
    if isinstance(row, schema.SampledRow):
        known = [one for one in known if one.k <= row.k]
    return max(known, key=lambda one: one.k, default=None)


def _shifted(base: Number, stderr: Number, row: schema.SampledRow) -> schema.Binarizations | None:
    """A number of draw 0, extrapolated to the mean over the draws of another bound, the row.

    The Monte Carlo error of the row on draw 0, which its mean over draws does not share, counts as
    an error of the draws. `stderr` is scaled as the row's is.
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


def _simulated_bounds(run: Path, record: Record, number: int) -> schema.Simulated | None:
    """Bounds on simulated examples by the same annealing of the same model, if known.

    With bounds by importance samples, if as many were drawn.

    Args:
        record: of bounds on real examples.
        number: of the replicate.
    """
    settings = record.annealing, record.split, record.weights, record.pruned
    digest = record.digests[number : number + 1]
    known = [
        both
        for _, both in read_two_sided(run, Method.BIDIRECTIONAL, *settings)
        if both.digests[number : number + 1] == digest
    ]
    found = max(known, key=lambda both: both.n, default=None)
    if found is None:
        return None
    part = found.models[number]
    own, sampled = record.models[number].importance, part.importance
    alike = own is not None and sampled is not None and sampled.k == own.k
    samples = schema.Samples(k=sampled.k, **_bounds(sampled)) if alike and sampled else None
    return schema.Simulated(n=found.n, **_bounds(part), importance=samples)


def _bounds(part: Part | schema.Samples) -> schema.Document:
    names = map(schema.record_field_names, ("lower", "upper", "gap", *schema.MIXED))
    return {field: getattr(part, field) for both in names for field in both}

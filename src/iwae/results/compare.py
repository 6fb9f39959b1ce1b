"""Runs, and bounds of a run, compared with each other, example by example."""

from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
from jaxtyping import Float

from iwae.errors import UserError
from iwae.evaluation.differences import paired_difference
from iwae.evaluation.standard_errors import standard_error
from iwae.results.extrapolation import extrapolated_mean
from iwae.results.reading import Known, read_bounds
from iwae.results.schema import Document
from iwae.results.summaries import summarise_replicates, summary_number
from iwae.runs.folder import folder_config

ENOUGH = 100
"""Minimum examples of an estimator that is preferred to a looser one on more examples."""

WEIGHTS = {"final": ("final",), "best": ("best",), "both": ("final", "best")}
"""The option `weights` -> the weights of each run to compare."""


def compare(
    runs: Sequence[Path],
    *,
    split: str = "test",
    weights: str = "final",
    pruned: bool = False,
    estimator: str | None = None,
) -> Document:
    """The difference of each run to the first, from their records, on the same examples.

    Variation between examples cancels in a paired difference, so that its standard error is far
    below those of the two likelihoods. Replicates are averaged, example by example.

    Args:
        runs: folders of two or more runs that have been measured; one is enough for "both".
        weights: "final" or "best", or "both" of each run beside each other.
        estimator: such as "L_5000" or "AIS_500"; by default the tightest that all runs have on
            enough examples: 100, or as many as any estimator has.

    Returns:
        A record: `estimator`, `n`, whether the examples are a `subset` of the split, `test_sha256`
        and, for each of `runs`, `weights`, `log_likelihood`, `stderr`, `between_replicates_sd`
        and, for all but the first, `difference`, `difference_stderr` and `significant`, nats;
        `whole` is the bound extrapolated from the run's own subset to all examples of the split,
        where possible.

    Raises:
        UserError: if a run has no such record, or the runs were measured on different test sets.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights are {' or '.join(WEIGHTS)}, not {weights!r}")
    models = [(Path(run), one) for run in runs for one in WEIGHTS[weights]]
    if len(models) < 2:
        raise UserError("name at least two runs to compare, or one and --weights both")
    return compare_models(models, split=split, pruned=pruned, estimator=estimator)


def compare_models(
    models: Sequence[tuple[Path, str]],
    *,
    split: str = "test",
    pruned: bool = False,
    estimator: str | None = None,
) -> Document:
    """`compare` for folders, each with its weights, "final" or "best"."""
    runs = [run for run, _ in models]
    known = [_bounds_by_name(run, weights, split, pruned) for run, weights in models]
    name = _common(runs, known, estimator)
    chosen = [bounds[name] for bounds in known]
    for run, one in zip(runs, chosen, strict=True):
        _refuse_other(chosen[0], one, runs[0], run, split)
    index = _shared(chosen)
    if len(index) < 2:
        raise UserError(f"the runs share {len(index)} examples with {name}; a difference needs 2")
    wholes = [extrapolated_mean(run, one) for run, one in zip(runs, chosen, strict=True)]
    values = [one.values[:, np.isin(one.places, index)] for one in chosen]
    rows = [
        {
            "run": str(run),
            "weights": weights,
            **summarise_replicates(each),
            **_paired(each, values[0]),
            "whole": whole and whole.document(),
        }
        for (run, weights), each, whole in zip(models, values, wholes, strict=True)
    ]
    return {
        "estimator": name,
        "split": split,
        "weights": " and ".join(dict.fromkeys(weights for _, weights in models)),
        "pruned": pruned,
        "n": len(index),
        "subset": any(one.record.subset is not None for one in chosen),
        "test_sha256": chosen[0].record.test_sha256,
        "unit": "nats",
        "runs": [rows[0] | {"difference": None, "difference_stderr": None}, *rows[1:]],
    }


def _bounds_by_name(run: Path, weights: str, split: str, pruned: bool) -> dict[str, Known]:
    """The bounds of a run's models; UserError, with the remedy, if there are none."""
    folder_config(run)  # or the message that this is no run
    bounds = read_bounds(run, split=split, weights=weights, pruned=pruned)
    if bounds:
        return {one.estimator: one for one in bounds}
    other = "best" if weights == "final" else "final"
    if read_bounds(run, split=split, weights=other, pruned=pruned):
        raise UserError(f"{run} was {compared_weights_hint(other)}, or measure the {weights} ones")
    more = "" if weights == "final" else f" --weights {weights}"
    raise UserError(f"{run} has not been measured: iwae evaluate {run}{more}")


def compared_weights_hint(weights: str) -> str:
    """The remedy for a run measured with other weights, in words."""
    return f"measured with {weights} weights: add --weights {weights}"


def _common(runs: Sequence[Path], known: Sequence[dict[str, Known]], estimator: str | None) -> str:
    """The estimator of the comparison."""
    for run, bounds in zip(runs, known, strict=True):
        if estimator is not None and estimator not in bounds:
            raise UserError(f"{run} has no {estimator}; it has {', '.join(bounds)}")
    if estimator is not None:
        return estimator
    common = {
        name: len(_shared([bounds[name] for bounds in known]))
        for name, one in known[0].items()
        if all(name in bounds for bounds in known) and not one.short
    }
    if not common:
        has = "; ".join(f"{run}: {', '.join(b)}" for run, b in zip(runs, known, strict=True))
        raise UserError(f"the runs were not measured by the same estimator ({has})")
    enough = min(ENOUGH, max(common.values()))
    return [name for name, n in common.items() if n >= enough][-1]


def _shared(known: Sequence[Known]) -> np.ndarray:
    """The examples that all bounds have in common."""
    return reduce(np.intersect1d, [one.places for one in known])


def _refuse_other(first: Known, one: Known, first_run: Path, run: Path, split: str) -> None:
    """Raise UserError unless two bounds are of the same examples by the same method."""
    field = "test_sha256" if split == "test" else "data"  # other splits are part of the identity
    if getattr(first.record, field) != getattr(one.record, field):
        raise UserError(
            f"{first_run} and {run} were measured on different {split} sets (their {field} "
            "differ): likelihoods of different data cannot be compared"
        )
    if first.record.annealing != one.record.annealing:
        raise UserError(
            f"{first_run} and {run} were not annealed alike ({first.record.annealing} and "
            f"{one.record.annealing}): measure one of them again, or give another --estimator"
        )


def _paired(values: np.ndarray, first: np.ndarray) -> Document:
    """The paired difference of a run's mean to that of the first."""
    found = paired_difference(values.mean(axis=0), first.mean(axis=0))
    return {
        "difference": summary_number(found.mean),
        "difference_stderr": summary_number(found.stderr),
        "significant": bool(found.significant),
    }


def compared_by_budget(
    bounds: Iterable[Known], places: np.ndarray, reference: Known
) -> tuple[list[int], list[float], list[float]]:
    """Budgets of bounds, their mean paired differences to a reference, and standard errors, nats.

    Means are over the given examples, which all bounds share, and over replicates. Of two bounds
    with one budget, the later counts.
    """
    zero = compared_mean(reference, places)
    values = {one.rank[1]: compared_mean(one, places) - zero for one in bounds}
    budgets = sorted(values)
    means = [float(values[budget].mean()) for budget in budgets]
    return budgets, means, [standard_error(values[budget]) for budget in budgets]


def compared_places(bounds: Sequence[Known]) -> np.ndarray | None:
    """The places of the examples that all bounds share; None unless two share two examples."""
    if len(bounds) < 2:
        return None
    places = _shared(bounds)
    return places if len(places) >= 2 else None


def compared_mean(known: Known, places: np.ndarray) -> Float[np.ndarray, " n"]:
    """The mean over replicates of a bound on the given examples, `[n]` nats."""
    return known.values[:, np.isin(known.places, places)].mean(axis=0)

"""Figures from the records of a run: bounds, curves, ranks and gradients."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from iwae.evaluation.calibration import KINDS
from iwae.evaluation.ecdf_bands import uniform_bands
from iwae.evaluation.standard_errors import standard_error
from iwae.reports import figures
from iwae.results.compare import compared_by_budget, compared_mean, compared_places
from iwae.results.formatting import NAMES_OF_RANKS, format_annealing
from iwae.results.gradient_signal import gradient_signal_curves, gradient_signal_powers
from iwae.results.reading import Known, read_bounds, read_records, warn_unreadable_record
from iwae.results.record_files import read_record_arrays
from iwae.results.schema import Method, Record
from iwae.wording import count_in_words


def recorded_bounds_figure(run: Path, weights: str = "final") -> Figure | None:
    """The recorded bounds on log p(x) less the tightest one, by their budgets.

    Differences are paired by example, so that the choice of examples does not add to their errors.
    All bounds are of the same models, on the test examples that all records share, and averaged
    over replicates.

    Args:
        run: folder of the run.
        weights: which models, "final" or "best".

    Returns:
        The figure; None unless there are two bounds on common examples.
    """
    known = read_bounds(run, split="test", weights=weights, pruned=False)
    known = [bound for bound in known if bound.record.digests == known[-1].record.digests]
    if (places := compared_places(known)) is None:
        return None
    tightest = known[-1]
    mean = compared_mean(tightest, places)
    curves: dict[str, list[Known]] = {}
    for bound in known:
        curves.setdefault(_curve_name(bound, len(places)), []).append(bound)
    return figures.bounds_against_budget(
        {name: compared_by_budget(each, places, tightest) for name, each in curves.items()},
        reference=(tightest.estimator, mean.mean(), standard_error(mean)),
    )


def _curve_name(known: Known, n: int) -> str:
    """The name of the curve that a bound belongs to."""
    settings = known.record.annealing
    if settings is None:
        return f"importance sampling, {count_in_words(n, 'example', ',')}"
    return f"annealing {format_annealing(settings)}, the same examples"


def recorded_rate_distortion_figure(run: Path, weights: str) -> Figure | None:
    """The first replicate's rate-distortion curve on test examples; None without a record.

    Of several records, the last by name counts.
    """
    found = _unpruned_records(run, Method.CURVE, weights)
    paths = [path for path, record in found if record.split == "test"]
    names = ("betas", "rate", "distortion")
    curve = read_record_arrays(paths[-1], warn_unreadable_record, names) if paths else None
    if curve is None:
        return None
    return figures.rate_distortion_curve(curve["betas"], curve["rate"][0], curve["distortion"][0])


def draw_recorded_calibration(run: Path) -> list[Path]:
    """Draw the first replicate's ranks beside each record of `iwae calibrate`."""
    return _draw_beside(run, Method.CALIBRATION, _rank_figure)


def draw_recorded_gradients(run: Path) -> list[Path]:
    """Draw signal-to-noise ratios beside each record of `iwae gradients`."""
    return _draw_beside(run, Method.GRADIENTS, _gradient_figure)


def _draw_beside(
    run: Path, method: Method, draw: Callable[[Path, Record], Figure | None]
) -> list[Path]:
    """Draw each record of a method beside it, and return the files written."""
    written = []
    for path, record in read_records(Path(run), (method,)):
        if (figure := draw(path, record)) is not None:
            written.append(path.with_suffix(".png"))
            figures.save_figure(figure, written[-1])
    return written


def recorded_calibration_figure(run: Path, weights: str) -> Figure | None:
    """The first replicate's ranks in the record with the most examples; None without one."""
    found = _unpruned_records(run, Method.CALIBRATION, weights)
    return _rank_figure(*max(found, key=lambda pair: pair[1].n)) if found else None


def _unpruned_records(run: Path, method: Method, weights: str) -> list[tuple[Path, Record]]:
    """The records of a method for these weights, unpruned."""
    return [
        (path, record)
        for path, record in read_records(run, (method,))
        if (record.weights, record.pruned) == (weights, False)
    ]


def _rank_figure(path: Path, record: Record) -> Figure | None:
    """The ranks in a record, a panel for each layer and kind; None if values are damaged."""
    names = [f"{name}_0" for name in (*KINDS, "layers")]
    values = read_record_arrays(path, warn_unreadable_record, names)
    if values is None:
        return None
    panels, layers = {}, values["layers_0"]
    for layer in np.unique(layers):
        for kind in KINDS:
            ranks = values[f"{kind}_0"][:, layers == layer]
            panels[f"layer {layer}, {NAMES_OF_RANKS[kind]}"] = ranks
    return figures.ecdf_differences(panels, uniform_bands(record.n, record.band_level or 0.95))


def _gradient_figure(_: Path, record: Record) -> Figure:
    curves, powers = gradient_signal_curves(record.rows), gradient_signal_powers(record.slopes)
    return figures.signal_to_noise(curves, powers, power_from=record.slope_from)

"""Figures of the calibration records of a run."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from iwae.evaluation.bands import uniform_bands
from iwae.evaluation.calibration import KINDS
from iwae.reports import figures
from iwae.results.reading import read_records, report_damage
from iwae.results.schema import Method, Record
from iwae.results.store import read_arrays
from iwae.results.text import NAMES_OF_RANKS


def draw_calibration(run: Path) -> list[Path]:
    """Draw the ranks of the first replicate of each record of `iwae calibrate` beside it."""
    written = []
    for path, record in read_records(Path(run), (Method.CALIBRATION,)):
        if (figure := _figure(path, record)) is not None:
            written.append(path.with_suffix(".png"))
            figures.save_figure(figure, written[-1])
    return written


def calibration_figure(run: Path, weights: str) -> Figure | None:
    """The ranks of the first replicate, of the record of most examples; None without one."""
    found = [
        (path, record)
        for path, record in read_records(run, (Method.CALIBRATION,))
        if (record.weights, record.pruned) == (weights, False)
    ]
    return _figure(*max(found, key=lambda pair: pair[1].n)) if found else None


def _figure(path: Path, record: Record) -> Figure | None:
    """A panel for each layer and kind of rank; None if the values are damaged."""
    values = read_arrays(path, report_damage, [f"{name}_0" for name in (*KINDS, "layers")])
    if values is None:
        return None
    panels, layers = {}, values["layers_0"]
    for layer in np.unique(layers):
        for kind in KINDS:
            ranks = values[f"{kind}_0"][:, layers == layer]
            panels[f"layer {layer}, {NAMES_OF_RANKS[kind]}"] = ranks
    return figures.ecdf_differences(panels, uniform_bands(record.n, record.band_level or 0.95))

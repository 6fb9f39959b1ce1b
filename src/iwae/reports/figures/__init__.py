"""Figures: functions from NumPy arrays to a matplotlib figure, and two functions that save.

Figures use matplotlib's object interface and explicit styles: `pyplot` is never imported, and
drawing changes no global setting, so it works in threads and without a display. Invalid input (NaN,
a wrong rank, nothing to draw) raises `UserError`.
"""

from iwae.reports.figures.charts import (
    density_1d,
    log_variance_histogram,
    marginals,
    scatter_2d,
    training_curves,
)
from iwae.reports.figures.error_bars import (
    bounds_against_budget,
    ecdf_differences,
    rate_distortion_curve,
    signal_to_noise,
)
from iwae.reports.figures.images import (
    filters,
    image_grid,
    labelled_rows,
    reconstructions,
    samples,
    training_frames,
    training_strip,
)
from iwae.reports.figures.latents import latent_map, posterior_panels, prior_panel
from iwae.reports.figures.saving import save_animation, save_figure

__all__ = [
    "bounds_against_budget",
    "density_1d",
    "ecdf_differences",
    "filters",
    "image_grid",
    "labelled_rows",
    "latent_map",
    "log_variance_histogram",
    "marginals",
    "posterior_panels",
    "prior_panel",
    "rate_distortion_curve",
    "reconstructions",
    "samples",
    "save_animation",
    "save_figure",
    "scatter_2d",
    "signal_to_noise",
    "training_curves",
    "training_frames",
    "training_strip",
]

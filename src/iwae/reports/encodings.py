"""Where test examples lie among the latents."""

import logging
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from iwae.config.experiment import TrainConfig
from iwae.data import Dataset
from iwae.data.load import has_labels
from iwae.errors import UserError
from iwae.evaluation.likelihood import log_likelihoods
from iwae.evaluation.units import ActiveUnits, posterior_means
from iwae.models.conditional import ConditionalVAE, Model
from iwae.reports import figures
from iwae.reports.figures.style import minus
from iwae.runs.setup import load_config_dataset, split_examples

log = logging.getLogger(__name__)

MOST = 2000
"""Test examples in the figure, from all over the split."""

SAMPLES = 50
"""Importance samples of each example, to find the unlikely ones."""

FENCE = 3
"""A likelihood so many interquartile ranges below the lower quartile is an outlier (Tukey)."""


def latents_figure(
    model: Model,
    dataset: Dataset,
    units: ActiveUnits,
    labels: tuple[np.ndarray, tuple[str, ...]] | None = None,
) -> Figure:
    """The posterior means of test examples, in the plane of two latents or of two components.

    The layer is the highest with two active units, or else with one. Two units are drawn as they
    are, the two most active if no more than two are. More active units are drawn by the first two
    principal components of their means; a single latent is drawn against the log-likelihood.
    Examples have the colours of their labels. A ring marks a log-likelihood, by importance
    sampling, that lies more than three interquartile ranges below the lower quartile, which Tukey
    (1977) calls far out: likelihoods have a long lower tail.

    Args:
        units: of the model, on all test examples.
        labels: of each test example an index into the names of the labels, and these.
    """
    test, (key, bound_key) = split_examples(dataset, "test"), jax.random.split(jax.random.key(0))
    chosen = np.unique(np.linspace(0, len(test) - 1, min(MOST, len(test))).astype(int))
    layer = max(range(len(units.counts)), key=lambda i: (min(units.counts[i], 2), i))
    means = posterior_means(model, test[chosen], key)[layer]
    bounds = log_likelihoods(model, test[chosen], bound_key, k=SAMPLES)
    what = "log p(x|y)" if isinstance(model, ConditionalVAE) else "log p(x)"
    if means.shape[1] == 1:
        points, names = np.column_stack([means, bounds]), ("unit 1", f"{what} (nats)")
    else:
        points, names = _plane(means, units.variances[layer], units.masks[layer])
    of_layer = f" of layer {layer + 1}" if len(units.counts) > 1 else ""
    limit = _fence(bounds)
    known, classes = labels or (None, ())
    return figures.latent_map(
        points,
        names,
        labels=None if known is None else known[chosen],
        classes=classes,
        outliers=bounds < limit,
        outlier_name=minus(f"unlikely: {what} below {limit:.1f} nats"),
        title=f"posterior means{of_layer}, {units.counts[layer]} active units of {means.shape[1]}",
    )


def _plane(
    means: Float[np.ndarray, "n d"],
    variances: Float[np.ndarray, " d"],
    active: Bool[np.ndarray, " d"],
) -> tuple[Float[np.ndarray, "n 2"], tuple[str, str]]:
    """Two coordinates of each example, and their names."""
    if active.sum() <= 2:
        pair = np.sort(np.argsort(-variances, kind="stable")[:2])
        first, second = (f"unit {i + 1}" for i in pair)
        return means[:, pair], (first, second)
    centred = (means - means.mean(axis=0))[:, active]
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    # An axis has no direction of its own: its largest coefficient is made positive.
    largest = np.abs(axes).argmax(axis=1, keepdims=True)
    axes = axes * np.sign(np.take_along_axis(axes, largest, axis=1))
    first, second, *_ = (
        f"principal component {i} ({share:.0%} of the variance)"
        for i, share in enumerate(spread**2 / (spread**2).sum(), 1)
    )
    return centred @ axes[:2].T, (first, second)


def _fence(values: Float[np.ndarray, " n"]) -> float:
    """The value below which values are outliers."""
    lower, upper = np.quantile(np.maximum(values, np.finfo(np.float32).min), (0.25, 0.75))
    return float(lower - FENCE * (upper - lower))


def known_labels(
    config: TrainConfig, dataset: Dataset, data_dir: Path | None
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """The label of each test example and the names of labels; None if there are none here.

    A model that was trained without labels is drawn with those that its data have, if these are
    on this machine.
    """
    if not dataset.classes:
        if not has_labels(config.dataset, data_dir):
            return None
        try:
            with_labels = config.model_copy(update={"conditional": True})
            dataset = load_config_dataset(with_labels, data_dir)
        except UserError as error:
            log.warning("the figure of latents is without labels: %s", error)
            return None
    return dataset.labels("test"), dataset.classes

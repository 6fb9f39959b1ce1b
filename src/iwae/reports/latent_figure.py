"""The figure of test examples in the space of the latents, and the labels that colour it."""

import logging
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from iwae.config.experiment import TrainConfig
from iwae.data import Dataset
from iwae.data.coding import decode_cells
from iwae.data.labels import MissingLabelError
from iwae.data.load import can_load_labels
from iwae.errors import UserError
from iwae.evaluation.likelihood import log_likelihoods
from iwae.evaluation.units import ActiveUnits, unit_means
from iwae.models.conditional import ConditionalVAE, Model
from iwae.reports import figures
from iwae.reports.figures.latents import NAMED
from iwae.results.formatting import format_minus
from iwae.runs.jobs import load_job_dataset
from iwae.runs.split_examples import split_examples

log = logging.getLogger(__name__)

MOST = 2000
"""Maximum number of test examples in the figure, evenly spread over the split."""

SAMPLES = 50
"""Importance samples per example, to find unlikely examples."""

FENCE = 3
"""Interquartile ranges below the lower quartile from which a likelihood is an outlier (Tukey)."""


class Labelled(NamedTuple):
    """Labels of test examples.

    Attributes:
        places: index into `names` of each example, `[n]`.
        names: names of the labels.
        column: the column of a table that holds them; otherwise empty.
    """

    places: np.ndarray
    names: tuple[str, ...]
    column: str = ""


def latents_figure(
    model: Model, dataset: Dataset, units: ActiveUnits, labels: Labelled | None = None
) -> Figure:
    """The posterior means of test examples in the plane of two latents or principal components.

    The layer is the highest with two active units, or otherwise with one. Up to two active units
    are drawn directly, as the two most active units; more by the first two principal components of
    their means; a single latent against the log-likelihood. Colours are labels. A ring marks a
    log-likelihood, by importance sampling, more than three interquartile ranges below the lower
    quartile, which Tukey (1977) calls far out: likelihoods have a long lower tail.

    Args:
        model: the model.
        dataset: its data.
        units: activity of its units on all test examples.
        labels: labels of the test examples.
    """
    test, (key, bound_key) = split_examples(dataset, "test"), jax.random.split(jax.random.key(0))
    chosen = np.unique(np.linspace(0, len(test) - 1, min(MOST, len(test))).astype(int))
    layer = max(range(len(units.counts)), key=lambda i: (min(units.counts[i], 2), i))
    means = unit_means(model, test[chosen], key)[layer]
    bounds = log_likelihoods(model, test[chosen], bound_key, k=SAMPLES)
    density = "log p(x|y)" if isinstance(model, ConditionalVAE) else "log p(x)"
    if means.shape[1] == 1:
        points, names = np.column_stack([means, bounds]), ("unit 1", f"{density} (nats)")
    else:
        points, names = _plane(means, units.variances[layer], units.masks[layer])
    of_layer = f" of layer {layer + 1}" if len(units.counts) > 1 else ""
    limit = _fence(bounds)
    return figures.latent_map(
        points,
        names,
        labels=None if labels is None else labels.places[chosen],
        classes=() if labels is None else labels.names,
        label_name="" if labels is None else labels.column,
        outliers=bounds < limit,
        outlier_name=format_minus(f"unlikely: {density} below {limit:.1f} nats"),
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
    # The sign of an axis is arbitrary: its largest coefficient is made positive.
    largest = np.abs(axes).argmax(axis=1, keepdims=True)
    axes = axes * np.sign(np.take_along_axis(axes, largest, axis=1))
    first, second, *_ = (
        f"principal component {i} ({share:.0%} of the variance)"
        for i, share in enumerate(spread**2 / (spread**2).sum(), 1)
    )
    return centred @ axes[:2].T, (first, second)


def _fence(values: Float[np.ndarray, " n"]) -> float:
    """The limit below which values are outliers."""
    lower, upper = np.quantile(np.maximum(values, np.finfo(np.float32).min), (0.25, 0.75))
    return float(lower - FENCE * (upper - lower))


def latent_figure_labels(
    config: TrainConfig, dataset: Dataset, data_dir: Path | None
) -> Labelled | None:
    """The label of each test example; None if none are available.

    For a model trained without labels, they are the labels of its data, if these are on this
    machine. For a table, they are a column carried through with few different values, or otherwise
    its only column of categories.
    """
    if not dataset.classes:
        if config.id or not can_load_labels(config.dataset, data_dir):
            return _carried_column(config, dataset, data_dir) or _only_category(dataset)
        try:
            with_labels = config.model_copy(update={"conditional": True})
            dataset = load_job_dataset(with_labels, data_dir)
        except UserError as error:
            log.warning("the figure of latents is without labels: %s", error)
            return None
    return Labelled(dataset.labels("test"), dataset.classes, config.label or "")


def _carried_column(
    config: TrainConfig, dataset: Dataset, data_dir: Path | None
) -> Labelled | None:
    """The first column carried through that can be a label."""
    for name in () if dataset.is_streamed else config.id or ():
        with_label = config.model_copy(update={"conditional": True, "label": name})
        try:
            found = load_job_dataset(with_label, data_dir)
        except MissingLabelError as error:
            log.warning("latents.png is without the colours of %s: %s", name, error)
            continue
        except UserError:
            continue  # as most ids, it identifies rows
        if len(found.classes) <= NAMED:
            return Labelled(found.labels("test"), found.classes, name)
    return None


def _only_category(dataset: Dataset) -> Labelled | None:
    """The only column of categories, with missing values as another category."""
    kinds = [column.kind.partition(":")[0] for column in dataset.columns]
    places = [j for j, kind in enumerate(kinds) if kind in ("bernoulli", "categorical")]
    if len(places) != 1:
        return None
    column = dataset.columns[places[0]]
    values = dataset.outwards(np.asarray(dataset.test))[:, places]
    cells = decode_cells(values, [column])[column.name]
    gaps = np.isnan(values[:, 0])
    words = ["missing" if gap else str(one) for gap, one in zip(gaps, cells, strict=True)]
    levels = [one for one in column.levels if one in words]
    names = [*levels, *sorted({*words} - {*levels})]
    return Labelled(np.array([names.index(word) for word in words]), tuple(names), column.name)

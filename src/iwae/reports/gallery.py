"""The figures of a run, drawn from its models, metrics and frames."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from iwae.data import KINDS, Dataset, Kind
from iwae.data.arrays import read_arrays
from iwae.data.kinds import is_discrete_kind
from iwae.data.rows import rows_in_memory
from iwae.data.sampling import sample
from iwae.data.scaling import Scaling, scaling_from
from iwae.errors import UserError
from iwae.evaluation.posterior import aggregate_posterior_grid, posterior_grid
from iwae.evaluation.scores import marginal_scores
from iwae.evaluation.units import active_units
from iwae.models.conditional import ConditionalVAE, Model, unconditional_model
from iwae.models.layers import Dense
from iwae.models.likelihoods.masking import SIGNS
from iwae.models.priors import VampPrior
from iwae.precision import float32
from iwae.reports import figures
from iwae.reports.latent_figure import Labelled, latent_figure_labels, latents_figure
from iwae.reports.recorded_figures import (
    recorded_bounds_figure,
    recorded_calibration_figure,
    recorded_rate_distortion_figure,
)
from iwae.results.formatting import format_minus
from iwae.runs.folder import folder_config
from iwae.runs.jobs import load_job_dataset
from iwae.runs.metrics import read_metrics
from iwae.runs.split_examples import split_examples
from iwae.runs.trained import trained_model_for

log = logging.getLogger("iwae")

SHOWN = 64
"""Prior samples in a picture."""

DRAWN = 2000
"""Prior samples in a histogram."""

OF_CLASS = 12
"""Prior samples of each label."""

MOST_CLASSES = 64
"""Maximum number of labels in a picture."""

VARIANCES, LEAST_VARIANCE = 5000, 0.05
"""Training examples to find pixels that vary; their least variance, as a share of the largest."""

EXAMPLES = 20
"""Test examples in the figure of reconstructions."""

POSTERIORS = 4
"""Test examples in the figure of posteriors, for models of one or two latents."""


@float32
def draw_gallery(run: Path, *, weights: str = "final", data_dir: Path | None = None) -> list[Path]:
    """Draw all figures of the first replicate of a run into `RUN/figures`.

    Returns:
        The files written.

    Raises:
        UserError: if there is no trained model, or the data are unavailable.
    """
    folder = Path(run) / "figures"
    subject = _subject(Path(run), weights, data_dir)
    written = []
    for name, figure in _figures(subject):
        written.append(folder / f"{name}.png")
        figures.save_figure(figure, written[-1])
    pictures = gallery_shows_pictures(subject.dataset)
    courses = _courses(subject.run, subject.dataset) if pictures else {}
    for name, course in courses.items():
        written.append(folder / f"training_{name}.gif")
        figures.save_animation(figures.training_frames(**course._asdict()), written[-1])
    return written


def gallery_figures(
    run: Path, *, weights: str = "final", data_dir: Path | None = None
) -> Iterator[tuple[str, Figure]]:
    """The figures of `draw_gallery` with their names; nothing is written.

    Raises:
        UserError: if there is no trained model, or the data are unavailable.
    """
    yield from _figures(_subject(Path(run), weights, data_dir))


class _Subject(NamedTuple):
    """The first replicate of a run, its data, and the labels of the test examples."""

    run: Path
    weights: str
    model: Model
    dataset: Dataset
    labels: Labelled | None


def _subject(run: Path, weights: str, data_dir: Path | None) -> _Subject:
    config = folder_config(run)
    dataset = _in_memory(load_job_dataset(config, data_dir))
    model = trained_model_for(run, weights, 0, dataset)
    return _Subject(run, weights, model, dataset, latent_figure_labels(config, dataset, data_dir))


def _in_memory(dataset: Dataset) -> Dataset:
    """The data in memory; for streamed data, a fixed random sample of each split."""
    if not dataset.is_streamed:
        return dataset
    names = ("train", "validation", "test", *["grey_test"] * (dataset.grey_test is not None))
    samples: dict[str, Any] = {
        name: rows_in_memory(sample(getattr(dataset, name))) for name in names
    }
    log.warning("figures show a fixed random sample of %d test examples", len(samples["test"]))
    return replace(dataset, **samples)


def _figures(subject: _Subject) -> Iterator[tuple[str, Figure]]:
    run, weights, model, dataset, labels = subject
    if rows := read_metrics(run):
        yield "training_curves", figures.training_curves(rows)
    test = np.asarray(split_examples(dataset, "test"))
    units = active_units(model, test, jax.random.key(0))
    yield "log_variances", figures.log_variance_histogram(list(units.variances), units.threshold)
    yield "latents", latents_figure(model, dataset, units, labels)
    has_density = not is_discrete_kind(dataset.kind)
    if gallery_shows_pictures(dataset):
        yield from _image_figures(subject, test)
    elif dataset.shape == (1,) and has_density:
        yield "density", _density_figure(model, dataset)
    elif dataset.shape == (2,) and has_density:
        samples = _prior_samples(model, len(test))[1]
        whole = [rows[~np.isnan(rows).any(axis=1)] for rows in (test[:, :2], samples)]
        yield "scatter", figures.scatter_2d(*(_outwards(rows, dataset) for rows in whole))
    else:
        yield "marginals", _marginals_figure(model, test[:, : dataset.n_values], dataset)
    if sum(model.latent_sizes) <= 2 and not unconditional_model(model).has_discrete:
        yield "posterior", _posterior_figure(model, test)
    yield from _prior_figures(model, dataset, test)
    for name, draw in _RECORDED.items():
        if figure := draw(run, weights):
            yield name, figure


_RECORDED = {
    "bounds": recorded_bounds_figure,
    "rate_distortion": recorded_rate_distortion_figure,
    "calibration": recorded_calibration_figure,
}


def _prior_figures(
    model: Model, dataset: Dataset, test: np.ndarray
) -> Iterator[tuple[str, Figure]]:
    """The pseudo-inputs of a VampPrior, and a learned prior of two units beside draws of q."""
    vae = unconditional_model(model)
    if isinstance(vae.top, VampPrior) and gallery_shows_pictures(dataset):
        inputs = np.asarray(vae.top.inputs[:SHOWN, : dataset.n_values])  # without a mask
        if vae.n_inputs != dataset.n_values or dataset.kind.name != "bernoulli":  # standardised
            inputs = (inputs - inputs.min()) / max(np.ptp(inputs), np.finfo(np.float32).tiny)
        pictures = np.clip(inputs, 0, 1).reshape(-1, *dataset.shape)
        yield "pseudo_inputs", figures.image_grid(pictures, title="pseudo-inputs")
    if vae is model and vae.prior_name.name != "normal" and vae.latent_sizes[-1] == 2:
        grid = aggregate_posterior_grid(vae, test, jax.random.key(0))
        title = f"prior {vae.prior_name} and the aggregate posterior"
        yield "prior", figures.prior_panel(*grid, title=title)


class Layout(NamedTuple):
    """The layout of examples in a picture, with the names of labels and the units of the data."""

    shape: tuple[int, ...]
    kind: Kind
    classes: tuple[str, ...] = ()
    scaling: Scaling | None = None


def gallery_layout(model: Model, about: Mapping[str, Any]) -> Layout:
    """The layout of a model's data, from the description stored with it; flat by default."""
    data, vae = about.get("dataset", {}), unconditional_model(model)
    classes = data.get("classes", [])
    if isinstance(model, ConditionalVAE) and not classes:
        classes = [f"label {y}" for y in range(model.n_classes)]
    scaling = scaling_from(data["scaling"], vae.n_data) if "scaling" in data else None
    return Layout(tuple(data.get("shape", [vae.n_data])), vae.kind, tuple(classes), scaling)


def gallery_shows_pictures(dataset: Dataset | Layout) -> bool:
    """Whether examples are grey images, or colour images `[h, w, 3]`."""
    shape = dataset.shape
    flat = len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3)
    return flat and KINDS[dataset.kind.name].white is not None


def gallery_samples_figure(model: Model, layout: Layout) -> Figure:
    """Samples of a model without its data: pictures, or otherwise histograms of columns.

    For a conditional model, pictures are means, a row for each label.
    """
    # If missingness depends on the values, samples have missing values too.
    gaps = unconditional_model(model).missing in SIGNS
    if gallery_shows_pictures(layout) and not gaps:
        if isinstance(model, ConditionalVAE):
            return _classes_figure(model, layout)
        means, draws = _prior_samples(model, SHOWN)
        return figures.samples(_images(means, layout), _images(draws, layout))
    return figures.marginals(_outwards(_sample_rows(model), layout), gaps=gaps)


def _sample_rows(model: Model) -> np.ndarray:
    """Samples `[DRAWN, d]`, without labels."""
    return _map_keys(lambda key: model.condition(model.sample(key)[1])[1], DRAWN)


def _map_keys(draw: Callable[..., Any], count: int, *arrays: Any) -> Any:
    """Map `draw(*rows, key)` over `count` keys and the rows of arrays."""
    keys = jax.random.split(jax.random.key(0), count)
    return jax.tree.map(np.asarray, jax.vmap(draw)(*arrays, keys))


def _marginals_figure(model: Model, test: np.ndarray, dataset: Dataset) -> Figure:
    """Histograms of samples over test examples, column by column."""
    names = [column.name for column in dataset.columns]
    levels = [column.levels for column in dataset.columns]
    draws, data = _outwards(_sample_rows(model), dataset), _outwards(test, dataset)
    gaps = "missing" in dataset.identity
    return figures.marginals(draws, data=data, gaps=gaps, names=names, levels=levels)


def _classes_figure(model: ConditionalVAE, layout: Layout | Dataset) -> Figure:
    """Means of p(x|z, y) for draws z ~ p(z|y), a row for each of the first labels y."""

    def one(y: jax.Array, key: jax.Array) -> jax.Array:
        given = model.given(y)
        return given.decode(given.sample(key)[0]).mean

    keys = jax.random.split(jax.random.key(0), OF_CLASS)  # the same noise for all labels
    rows = jax.vmap(lambda y: jax.vmap(lambda key: one(y, key))(jax.random.clone(keys)))
    means = np.asarray(rows(jnp.eye(model.n_classes)[:MOST_CLASSES]))
    pictures = np.stack([_images(each, layout) for each in means])
    return figures.labelled_rows(pictures, layout.classes[:MOST_CLASSES])


def _image_figures(subject: _Subject, test: np.ndarray) -> Iterator[tuple[str, Figure]]:
    run, _, model, dataset, _ = subject
    values, grey = test[:, : dataset.n_values], dataset.grey_test

    def originals(places: np.ndarray) -> np.ndarray:
        if grey is None:
            return _images(values[places], dataset)
        pixels = grey[places]  # bytes, or brightness from 0 to 1
        return _images(pixels / np.float32(255) if pixels.dtype == np.uint8 else pixels, dataset)

    yield "data", figures.image_grid(originals(_spread_indices(len(test), SHOWN)))
    means, draws = _prior_samples(model, SHOWN)
    yield "samples", figures.samples(_images(means, dataset), _images(draws, dataset))
    if isinstance(model, ConditionalVAE):
        yield "samples_of_classes", _classes_figure(model, dataset)
    chosen = _spread_indices(len(test), EXAMPLES)
    made = _images(_reconstructions(model, test[chosen]), dataset)
    inputs = None if grey is None else _images(values[chosen], dataset)
    yield "reconstructions", figures.reconstructions(originals(chosen), made, inputs=inputs)
    varying = _varying(dataset)
    for name, weights in _filters(model, dataset):
        shaped, title = weights.reshape(-1, *dataset.shape), name.replace("_", " ")
        figure = figures.filters(shaped, title=title, varying=varying, most=SHOWN)
        yield f"filters_{name}", figure
    for name, course in _courses(run, dataset).items():
        few = np.unique(np.linspace(0, len(course.epochs) - 1, 8).astype(int))
        data = None if course.data is None else course.data[:12]
        frames = course.frames[few][:, :12]
        yield f"training_{name}", figures.training_strip(frames, course.epochs[few], data=data)


def _varying(dataset: Dataset) -> np.ndarray:
    """The pixels `[h, w]` that vary in the training data; those at a border may not."""
    rows = dataset.train[_spread_indices(len(dataset.train), VARIANCES), : dataset.n_values]
    variances = np.ma.masked_invalid(_outwards(rows, dataset)).var(axis=0).filled(0)
    return (variances > LEAST_VARIANCE * variances.max()).reshape(dataset.shape)


def _filters(model: Model, dataset: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Weights `[n, d]` of units connected to a whole image, which those of convolutions are not."""
    if len(dataset.shape) != 2:  # colours show the sign of a weight, so an image must be grey
        return
    vae = unconditional_model(model)
    if vae.encoder[0].features is None:
        first = (*vae.encoder[0].hidden.layers, *vae.encoder[0].outputs)[0]
        yield "first_layer", np.asarray(first.weight).T
    if isinstance(vae.output, Dense):
        yield "last_layer", np.asarray(vae.output.weight)[:, : dataset.n_values]


class _Course(NamedTuple):
    """Images `[t, n, h, w]` at epochs `[t]`, and the data `[n, h, w]` of reconstructions."""

    frames: np.ndarray
    epochs: np.ndarray
    data: np.ndarray | None


def _courses(run: Path, dataset: Dataset) -> dict[str, _Course]:
    """The frames recorded during training, by name; empty if there are none."""
    paths = sorted(path for path in (run / "frames").glob("[0-9]*.npz") if path.stem.isdigit())
    if not paths:
        return {}
    epochs = np.asarray([int(path.stem) for path in paths])
    loaded = [_read_frame(path, dataset) for path in paths]
    for path, frame in zip(paths, loaded, strict=True):
        if [*map(len, frame.values())] != [*map(len, loaded[-1].values())]:
            raise UserError(f"{path} holds other images than {paths[-1].name}: remove one of them")
    data = _images(loaded[-1]["examples"], dataset)
    return {
        name: _Course(np.stack([_images(frame[name], dataset) for frame in loaded]), epochs, rows)
        for name, rows in (("samples", None), ("reconstructions", data))
    }


def _read_frame(path: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """The arrays of a frame, without labels; UserError if it is damaged."""
    arrays, d = read_arrays(path), dataset.n_values
    widths = {"samples": d, "reconstructions": d, "examples": d + len(dataset.classes)}
    for name, width in widths.items():
        if name not in arrays or arrays[name].shape[1:] != (width,):
            raise UserError(f"{path} holds no frame of {dataset.name}: remove it")
    return {name: arrays[name][:, :d] for name in widths}


def _images(flat: np.ndarray, dataset: Dataset | Layout) -> np.ndarray:
    """Values of a model as brightness from 0 to 1; missing ones are grey."""
    white = np.float32(KINDS[dataset.kind.name].white)
    with np.errstate(invalid="ignore"):  # a signalling NaN of a damaged file
        brightness = np.asarray(_outwards(flat, dataset), np.float32) / white
    brightness = np.where(np.isnan(brightness), np.float32(0.5), np.clip(brightness, 0, 1))
    return brightness.reshape(-1, *dataset.shape)


def _outwards(rows: np.ndarray, dataset: Dataset | Layout) -> np.ndarray:
    """Rows of a model's values in the units of the data."""
    return rows if dataset.scaling is None else dataset.scaling.outwards(rows)


def _spread_indices(n: int, count: int) -> np.ndarray:
    """Evenly spread indices of examples: files are often sorted by class."""
    return np.arange(0, n, max(1, n // count))[:count]


def _prior_samples(model: Model, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of p(x|z) for draws z ~ p(z), and a draw x from each, `[count, d]`."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, x = model.sample(key)
        given, x = model.condition(x)
        return given.decode(z).mean, x

    return _map_keys(one, count)


def _reconstructions(model: Model, examples: np.ndarray) -> np.ndarray:
    """Means of p(x|z) for one draw z ~ q(z|x) of each example, `[n, d]`."""

    def one(x: jax.Array, key: jax.Array) -> jax.Array:
        given, x = model.condition(x)
        return given.decode(given.posterior(x).sample(key)).mean

    return _map_keys(one, len(examples), jnp.asarray(examples, jnp.float32))


def _density_figure(model: Model, dataset: Dataset) -> Figure:
    """The true density and the model's on a line."""
    test = np.asarray(dataset.test, np.float64)[:, 0]
    margin = 0.25 * np.ptp(test)
    grid = np.linspace(test.min() - margin, test.max() + margin, 400)
    x, data = (_outwards(one[:, None], dataset) for one in (grid, test))
    curves = {}
    if dataset.log_density is not None:
        curves["truth"] = np.exp(dataset.log_density(x))
    curves["model"] = np.exp(marginal_scores(model, grid[:, None]))
    return figures.density_1d(x[:, 0], curves, data=data[:, 0])


def _posterior_figure(model: Model, test: np.ndarray) -> Figure:
    """p(z|x) beside q(z|x) for a few test examples, with one or two latents."""
    chosen, key = _spread_indices(len(test), POSTERIORS), jax.random.key(0)
    grids = [
        posterior_grid(model, jnp.asarray(test[i], jnp.float32), jax.random.fold_in(key, int(i)))
        for i in chosen
    ]
    evidence = "p(x|y)" if isinstance(model, ConditionalVAE) else "p(x)"
    titles = [
        format_minus(f"test example {i}: log {evidence} = {grid.log_evidence:.2f}")
        for i, grid in zip(chosen, grids, strict=True)
    ]
    return figures.posterior_panels(grids, titles=titles)

"""The pictures of a run, drawn from its models, metrics and frames."""

import math
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from iwae.data import KINDS, Dataset, Kind
from iwae.data.arrays import read_arrays
from iwae.data.kinds import is_discrete
from iwae.errors import UserError
from iwae.evaluation.posterior import model_density, posterior_grid, prior_grid
from iwae.evaluation.units import active_units
from iwae.models.conditional import ConditionalVAE, Model, without_labels
from iwae.models.likelihoods import SIGNS
from iwae.models.networks import Dense
from iwae.models.priors import VampPrior
from iwae.models.vae import VAE
from iwae.precision import float32
from iwae.reports import figures
from iwae.reports.estimates import means_by_budget
from iwae.reports.figures.style import minus
from iwae.results.reading import Known, known_bounds, read_records, report_damage
from iwae.results.schema import Method
from iwae.results.signal import signal_curves
from iwae.results.store import read_arrays as read_record_arrays
from iwae.results.text import path_words
from iwae.runs.folder import run_config
from iwae.runs.metrics import read_metrics
from iwae.runs.setup import load_config_dataset, run_model, split_examples

SHOWN = 64
"""Prior samples in a picture."""

DRAWN = 2000
"""Prior samples in a histogram."""

OF_CLASS = 12
"""Prior samples of each label."""

MOST_CLASSES = 64
"""Labels in a picture."""

EXAMPLES = 20
"""Test examples whose reconstructions are shown."""

POSTERIORS = 4
"""Test examples whose posteriors are shown, if they have one or two latents."""


@float32
def draw_run(run: Path, *, weights: str = "final", data_dir: Path | None = None) -> list[Path]:
    """Draw everything there is to see of the first replicate of a run into `RUN/figures`.

    Returns:
        The files written.

    Raises:
        UserError: if there is no trained model, or the data cannot be had.
    """
    run = Path(run)
    model, dataset = _subject(run, weights, data_dir)
    written = []
    for name, figure in _figures(run, model, dataset, weights):
        path = run / "figures" / f"{name}.png"
        figures.save_figure(figure, path)
        written.append(path)
    return written + _animations(run, dataset)


def draw_gradients(run: Path) -> list[Path]:
    """Draw the signal-to-noise ratios of each record of `iwae gradients` beside it."""
    written = []
    for record_file, record in read_records(Path(run), (Method.GRADIENTS,)):
        written.append(record_file.with_suffix(".png"))
        figures.save_figure(figures.signal_to_noise(signal_curves(record.rows)), written[-1])
    return written


def run_figures(
    run: Path, *, weights: str = "final", data_dir: Path | None = None
) -> Iterator[tuple[str, Figure]]:
    """The pictures that `draw_run` writes, with their names; nothing is written.

    Raises:
        UserError: if there is no trained model, or the data cannot be had.
    """
    model, dataset = _subject(Path(run), weights, data_dir)
    yield from _figures(Path(run), model, dataset, weights)


def _subject(run: Path, weights: str, data_dir: Path | None) -> tuple[Model, Dataset]:
    """The first replicate of a run, and its data."""
    dataset = load_config_dataset(run_config(run), data_dir)
    return run_model(run, weights, 0, dataset), dataset


def _figures(
    run: Path, model: Model, dataset: Dataset, weights: str
) -> Iterator[tuple[str, Figure]]:
    if rows := read_metrics(run):
        yield "training_curves", figures.training_curves(rows)
    test = split_examples(dataset, "test")
    units = active_units(model, test, jax.random.key(0))
    yield "log_variances", figures.log_variance_histogram(list(units.variances), units.threshold)
    has_density = not is_discrete(dataset.kind)
    if are_pictures(dataset):
        yield from _image_figures(run, model, dataset, test)
    elif dataset.shape == (1,) and has_density:
        yield "density", _density(model, dataset)
    elif dataset.shape == (2,) and has_density:
        samples = _prior_samples(model, len(test))[1]
        yield "scatter", figures.scatter_2d(_whole(test[:, :2]), _whole(samples))
    if sum(model.latent_sizes) <= 2:
        yield "posterior", _posteriors(model, test)
    yield from _prior_figures(model, dataset, test)
    if figure := bounds_figure(run, weights):
        yield "bounds", figure
    if figure := _rate_distortion(run, weights):
        yield "rate_distortion", figure


def _prior_figures(
    model: Model, dataset: Dataset, test: np.ndarray
) -> Iterator[tuple[str, Figure]]:
    """The pseudo-inputs of a VampPrior, and any learned prior of two units beside draws of q."""
    vae = without_labels(model)
    if isinstance(vae.top, VampPrior) and are_pictures(dataset):
        shown = np.asarray(vae.top.inputs[:SHOWN, : dataset.n_values])  # without a mask
        if vae.n_inputs != dataset.n_values or dataset.kind.name != "bernoulli":  # standardised
            shown = (shown - shown.min()) / max(np.ptp(shown), np.finfo(np.float32).tiny)
        pictures = np.clip(shown, 0, 1).reshape(-1, *dataset.shape)
        yield "pseudo_inputs", figures.image_grid(pictures, title="pseudo-inputs")
    if isinstance(model, VAE) and model.top is not None and model.latent_sizes[-1] == 2:
        grid = prior_grid(model, test, jax.random.key(0))
        title = f"prior {model.prior_name} and the aggregate posterior"
        yield "prior", figures.prior_panel(*grid, title=title)


class Layout(NamedTuple):
    """Facts about data that a picture needs: the shape of an example, the kind, names of labels."""

    shape: tuple[int, ...]
    kind: Kind
    classes: tuple[str, ...] = ()


def layout_of(model: Model, about: Mapping[str, Any]) -> Layout:
    """The data layout that a model alone tells; examples are flat if nothing says more."""
    data, vae = about.get("dataset", {}), without_labels(model)
    classes = data.get("classes", [])
    if isinstance(model, ConditionalVAE) and not classes:
        classes = [f"label {y}" for y in range(model.n_classes)]
    return Layout(tuple(data.get("shape", [vae.n_data])), vae.kind, tuple(classes))


def _whole(rows: np.ndarray) -> np.ndarray:
    """The rows of which nothing is missing."""
    return rows[~np.isnan(rows).any(axis=1)]


def are_pictures(dataset: Dataset | Layout) -> bool:
    """Whether examples are grey images, or colour images `[h, w, 3]`."""
    shape = dataset.shape
    flat = len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3)
    return flat and KINDS[dataset.kind.name].white is not None


def samples_figure(model: Model, layout: Layout) -> Figure:
    """Samples of a model, without its data: pictures, or else histograms of columns.

    Pictures of a conditional model are means, a row for each label.
    """
    # Where values go missing for what they are, samples have missing values too.
    gaps = without_labels(model).missing in SIGNS
    if are_pictures(layout) and not gaps:
        if isinstance(model, ConditionalVAE):
            return _classes_figure(model, layout)
        means, draws = _prior_samples(model, SHOWN)
        return figures.samples(_images(means, layout), _images(draws, layout))
    keys = jax.random.split(jax.random.key(0), DRAWN)
    draws = np.asarray(jax.vmap(lambda key: model.condition(model.sample(key)[1])[1])(keys))
    return figures.marginals(draws, gaps=gaps)


def _classes_figure(model: ConditionalVAE, layout: Layout | Dataset) -> Figure:
    """Samples of the first labels, a row for each."""
    rows = [_images(means, layout) for means in _class_samples(model)]
    return figures.labelled_rows(np.stack(rows), layout.classes[:MOST_CLASSES])


def _image_figures(
    run: Path, model: Model, dataset: Dataset, test: np.ndarray
) -> Iterator[tuple[str, Figure]]:
    means, draws = _prior_samples(model, SHOWN)
    yield "samples", figures.samples(_images(means, dataset), _images(draws, dataset))
    if isinstance(model, ConditionalVAE):
        yield "samples_of_classes", _classes_figure(model, dataset)
    chosen = test[_spread(len(test), EXAMPLES)]
    yield (
        "reconstructions",
        figures.reconstructions(
            _images(chosen[:, : dataset.n_values], dataset),
            _images(_reconstructions(model, chosen), dataset),
        ),
    )
    for name, weights in _filters(model, dataset):
        shaped = weights[:SHOWN].reshape(-1, *dataset.shape)
        yield f"filters_{name}", figures.filters(shaped, title=name.replace("_", " "))
    for name, (frames, epochs) in _frames(run, dataset).items():
        few = np.unique(np.linspace(0, len(epochs) - 1, 8).astype(int))
        yield f"training_{name}", figures.training_strip(frames[few][:, :12], epochs[few])


def _filters(model: Model, dataset: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Weights of units that see or make a whole image, `[n, d]`; a convolution's see a corner."""
    if len(dataset.shape) != 2:  # a filter has a sign, which leaves no room for colours
        return
    vae = without_labels(model)
    if vae.encoder[0].features is None:
        first = (*vae.encoder[0].hidden.layers, vae.encoder[0].loc)[0]
        yield "first_layer", np.asarray(first.weight).T
    if isinstance(vae.output, Dense):
        yield "last_layer", np.asarray(vae.output.weight)[:, : dataset.n_values]


def _animations(run: Path, dataset: Dataset) -> list[Path]:
    if not are_pictures(dataset):
        return []
    written = []
    for name, (frames, epochs) in _frames(run, dataset).items():
        path = run / "figures" / f"training_{name}.gif"
        figures.save_animation(figures.training_frames(frames, epochs), path)
        written.append(path)
    return written


def _frames(run: Path, dataset: Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> images `[t, n, h, w]` and epochs `[t]`; empty if no frame was taken."""
    paths = sorted(path for path in (run / "frames").glob("[0-9]*.npz") if path.stem.isdigit())
    if not paths:
        return {}
    epochs = np.asarray([int(path.stem) for path in paths])
    loaded = [_frame(path, dataset) for path in paths]
    return {
        name: (np.stack([_images(frame[name], dataset) for frame in loaded]), epochs)
        for name in ("samples", "reconstructions")
    }


def _frame(path: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """The arrays of a frame; UserError if it is damaged."""
    arrays = read_arrays(path)
    for name in ("samples", "reconstructions"):
        if name not in arrays or arrays[name].shape[1:] != (math.prod(dataset.shape),):
            raise UserError(f"{path} holds no frame of {dataset.name}: remove it")
    return arrays


def _images(flat: np.ndarray, dataset: Dataset | Layout) -> np.ndarray:
    """Values as brightness from 0 to 1; what is missing is grey."""
    brightness = np.asarray(flat, np.float32) / np.float32(KINDS[dataset.kind.name].white)
    brightness = np.where(np.isnan(brightness), np.float32(0.5), np.clip(brightness, 0, 1))
    return brightness.reshape(-1, *dataset.shape)


def _spread(n: int, count: int) -> np.ndarray:
    """Indices of examples from all over the split: files are often sorted by class."""
    return np.arange(0, n, max(1, n // count))[:count]


def _prior_samples(model: Model, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of p(x|z) for draws z ~ p(z), and a draw x from each, `[count, d]`."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, x = model.sample(key)
        given, x = model.condition(x)
        return given.decode(z).mean, x

    means, draws = jax.vmap(one)(jax.random.split(jax.random.key(0), count))
    return np.asarray(means), np.asarray(draws)


def _class_samples(model: ConditionalVAE) -> np.ndarray:
    """Means of p(x|z, y) for draws z ~ p(z|y), each row of another label by the same noise."""

    def one(y: jax.Array, key: jax.Array) -> jax.Array:
        given = model.given(y)
        return given.decode(given.sample(key)[0]).mean

    keys = jax.random.split(jax.random.key(0), OF_CLASS)
    rows = jax.vmap(lambda y: jax.vmap(lambda key: one(y, key))(jax.random.clone(keys)))
    return np.asarray(rows(jnp.eye(model.n_classes)[:MOST_CLASSES]))


def _reconstructions(model: Model, examples: np.ndarray) -> np.ndarray:
    """Means of p(x|z) for one draw z ~ q(z|x) of each example, `[n, d]`."""

    def one(x: jax.Array, key: jax.Array) -> jax.Array:
        given, x = model.condition(x)
        return given.decode(given.posterior(x).sample(key)).mean

    keys = jax.random.split(jax.random.key(0), len(examples))
    return np.asarray(jax.vmap(one)(jnp.asarray(examples, jnp.float32), keys))


def _density(model: Model, dataset: Dataset) -> Figure:
    """True against model density on a line."""
    test = np.asarray(dataset.test, np.float64)[:, 0]
    margin = 0.25 * np.ptp(test)
    grid = np.linspace(test.min() - margin, test.max() + margin, 400)
    curves = {}
    if dataset.log_density is not None:
        curves["truth"] = np.exp(dataset.log_density(grid[:, None]))
    curves["model"] = np.exp(model_density(model, grid[:, None]))
    return figures.density_1d(grid, curves, data=test)


def _posteriors(model: Model, test: np.ndarray) -> Figure:
    """p(z|x) beside q(z|x) of a few test examples with one or two latents."""
    chosen, key = _spread(len(test), POSTERIORS), jax.random.key(0)
    grids = [
        posterior_grid(model, jnp.asarray(test[i], jnp.float32), jax.random.fold_in(key, int(i)))
        for i in chosen
    ]
    what = "p(x|y)" if isinstance(model, ConditionalVAE) else "p(x)"
    titles = [
        minus(f"test example {i}: log {what} = {grid.log_evidence:.2f}")
        for i, grid in zip(chosen, grids, strict=True)
    ]
    return figures.posterior_panels(grids, titles=titles)


def _rate_distortion(run: Path, weights: str) -> Figure | None:
    """The last curve of test examples by name, of the first replicate."""
    found = [
        path
        for path, record in read_records(run, (Method.CURVE,))
        if (record.split, record.weights, record.pruned) == ("test", weights, False)
    ]
    names = ("betas", "rate", "distortion")
    curve = read_record_arrays(found[-1], report_damage, names) if found else None
    if curve is None:
        return None
    return figures.rate_distortion_curve(curve["betas"], curve["rate"][0], curve["distortion"][0])


# --- bounds from records --------------------------------------------------------------------


def bounds_figure(run: Path, weights: str = "final") -> Figure | None:
    """The mean bounds on log p(x) that the records of a run hold, against their budgets.

    All are of the same models and the same test examples, those that all records share: bounds of
    different examples must not be compared. Replicates are averaged.

    Args:
        run: its folder.
        weights: which models, "final" or "best".

    Returns:
        The figure, or None if the records hold fewer than two bounds on common examples.
    """
    known = known_bounds(run, split="test", weights=weights, pruned=False)
    known = [one for one in known if one.record.digests == known[-1].record.digests]
    if len(known) < 2:
        return None
    places = reduce(np.intersect1d, [one.places for one in known])
    if len(places) < 2:
        return None
    curves: dict[str, list[Known]] = {}
    for one in known:
        curves.setdefault(_curve_name(one, len(places)), []).append(one)
    return figures.bounds_against_budget(
        {name: means_by_budget(bounds, places) for name, bounds in curves.items()}
    )


def _curve_name(known: Known, n: int) -> str:
    """The name of the curve that a bound belongs to."""
    how = known.record.annealing
    if how is None:
        return f"importance sampling, {n:,} examples"
    return f"annealing {path_words(how)}, the same examples"

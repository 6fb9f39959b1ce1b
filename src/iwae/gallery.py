"""The pictures of a run, drawn from its models, metrics and frames."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from iwae import figures
from iwae._types import UserError
from iwae.config import read_config
from iwae.data import Dataset
from iwae.evaluate import active_units
from iwae.jobs import load_config_dataset, run_model, split_examples
from iwae.model import VAE
from iwae.posterior import model_density
from iwae.runs import read_metrics

SHOWN = 64
"""Prior samples in a picture."""

EXAMPLES = 20
"""Test examples whose reconstructions are shown."""


def draw_run(run: Path, *, weights: str = "final", data_dir: Path | None = None) -> list[Path]:
    """Draw everything there is to see of the first replicate of a run into `RUN/figures`.

    Returns:
        The files written.

    Raises:
        UserError: if there is no trained model, or the data cannot be had.
    """
    run = Path(run)
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} holds no run: config.toml is missing")
    dataset = load_config_dataset(read_config(run / "config.toml"), data_dir)
    model = run_model(run, weights, 0, dataset)
    written = []
    for name, figure in _figures(run, model, dataset):
        path = run / "figures" / f"{name}.png"
        figures.save_figure(figure, path)
        written.append(path)
    return written + _animations(run, dataset)


def _figures(run: Path, model: VAE, dataset: Dataset) -> Iterator[tuple[str, Figure]]:
    if rows := read_metrics(run):
        yield "training_curves", figures.training_curves(rows)
    test = split_examples(dataset, "test")
    units = active_units(model, test, jax.random.key(0))
    yield "log_variances", figures.log_variance_histogram(list(units.variances), units.threshold)
    if len(dataset.shape) == 2:
        yield from _image_figures(run, model, dataset, test)
    elif dataset.shape == (1,):
        yield "density", _density(model, dataset)
    elif dataset.shape == (2,):
        yield "scatter", figures.scatter_2d(test, _prior_samples(model, len(test))[1])


def _image_figures(
    run: Path, model: VAE, dataset: Dataset, test: np.ndarray
) -> Iterator[tuple[str, Figure]]:
    means, draws = _prior_samples(model, SHOWN)
    yield "samples", figures.samples(_images(means, dataset), _images(draws, dataset))
    chosen = _spread(test)
    yield (
        "reconstructions",
        figures.reconstructions(
            _images(chosen, dataset), _images(_reconstructions(model, chosen), dataset)
        ),
    )
    first = (*model.encoder[0].hidden.layers, model.encoder[0].loc)[0]
    encoder = np.asarray(first.weight).T
    decoder = np.asarray(model.output.weight)[:, : dataset.train.shape[1]]
    for name, weights in (("first_layer", encoder), ("last_layer", decoder)):
        shaped = weights[:SHOWN].reshape(-1, *dataset.shape)
        yield f"filters_{name}", figures.filters(shaped, title=name.replace("_", " "))
    for name, (frames, epochs) in _frames(run, dataset).items():
        few = np.unique(np.linspace(0, len(epochs) - 1, 8).astype(int))
        yield f"training_{name}", figures.training_strip(frames[few][:, :12], epochs[few])


def _animations(run: Path, dataset: Dataset) -> list[Path]:
    if len(dataset.shape) != 2:
        return []
    written = []
    for name, (frames, epochs) in _frames(run, dataset).items():
        path = run / "figures" / f"training_{name}.gif"
        figures.save_animation(figures.training_frames(frames, epochs), path)
        written.append(path)
    return written


def _frames(run: Path, dataset: Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> images `[t, n, h, w]` and epochs `[t]`; empty if no frame was taken."""
    paths = sorted((run / "frames").glob("*.npz"))
    if not paths:
        return {}
    epochs = np.asarray([int(path.stem) for path in paths])
    loaded = [np.load(path, allow_pickle=False) for path in paths]
    return {
        name: (np.stack([_images(frame[name], dataset) for frame in loaded]), epochs)
        for name in ("samples", "reconstructions")
    }


def _images(flat: np.ndarray, dataset: Dataset) -> np.ndarray:
    return np.clip(np.asarray(flat, np.float32), 0, 1).reshape(-1, *dataset.shape)


def _spread(test: np.ndarray) -> np.ndarray:
    """Examples from all over the split: files are often sorted by class."""
    return test[:: max(1, len(test) // EXAMPLES)][:EXAMPLES]


def _prior_samples(model: VAE, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of p(x|z) for draws z ~ p(z), and a draw x from each, `[count, d]`."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, x = model.sample(key)
        return model.decode(z).mean, x

    means, draws = jax.vmap(one)(jax.random.split(jax.random.key(0), count))
    return np.asarray(means), np.asarray(draws)


def _reconstructions(model: VAE, examples: np.ndarray) -> np.ndarray:
    """Means of p(x|z) for one draw z ~ q(z|x) of each example, `[n, d]`."""

    def one(x: jax.Array, key: jax.Array) -> jax.Array:
        return model.decode(model.posterior(x).sample(key)).mean

    keys = jax.random.split(jax.random.key(0), len(examples))
    return np.asarray(jax.vmap(one)(jnp.asarray(examples, jnp.float32), keys))


def _density(model: VAE, dataset: Dataset) -> Figure:
    """True against model density on a line."""
    test = np.asarray(dataset.test, np.float64)[:, 0]
    margin = 0.25 * np.ptp(test)
    grid = np.linspace(test.min() - margin, test.max() + margin, 400)
    curves = {}
    if dataset.log_density is not None:
        curves["truth"] = np.exp(dataset.log_density(grid[:, None]))
    curves["model"] = np.exp(model_density(model, grid[:, None]))
    return figures.density_1d(grid, curves, data=test)

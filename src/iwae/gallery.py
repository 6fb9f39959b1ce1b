"""The pictures of a run, drawn from its models, metrics and frames."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

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
from iwae.posterior import model_density, posterior_grid
from iwae.runs import read_metrics

SHOWN = 64
"""Prior samples in a picture."""

EXAMPLES = 20
"""Test examples whose reconstructions are shown."""

POSTERIORS = 4
"""Test examples whose posteriors are shown, if they have one or two latents."""


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
    for name, figure in _figures(run, model, dataset, weights):
        path = run / "figures" / f"{name}.png"
        figures.save_figure(figure, path)
        written.append(path)
    return written + _animations(run, dataset)


def _figures(run: Path, model: VAE, dataset: Dataset, weights: str) -> Iterator[tuple[str, Figure]]:
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
    if sum(model.latent_sizes) <= 2:
        yield "posterior", _posteriors(model, test)
    if figure := bounds_figure(run, weights):
        yield "bounds", figure
    if curves := _rate_distortion_files(run, weights):
        yield "rate_distortion", _rate_distortion(curves[-1])


def _image_figures(
    run: Path, model: VAE, dataset: Dataset, test: np.ndarray
) -> Iterator[tuple[str, Figure]]:
    means, draws = _prior_samples(model, SHOWN)
    yield "samples", figures.samples(_images(means, dataset), _images(draws, dataset))
    chosen = test[_spread(len(test), EXAMPLES)]
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


def _spread(n: int, count: int) -> np.ndarray:
    """Indices of examples from all over the split: files are often sorted by class."""
    return np.arange(0, n, max(1, n // count))[:count]


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


def _posteriors(model: VAE, test: np.ndarray) -> Figure:
    """p(z|x) beside q(z|x) of a few test examples with one or two latents."""
    chosen, key = _spread(len(test), POSTERIORS), jax.random.key(0)
    grids = [
        posterior_grid(model, jnp.asarray(test[i], jnp.float32), jax.random.fold_in(key, int(i)))
        for i in chosen
    ]
    titles = [
        f"test example {i}: log p(x) = {grid.log_evidence:.2f}".replace("-", "\N{MINUS SIGN}")
        for i, grid in zip(chosen, grids, strict=True)
    ]
    return figures.posterior_panels(grids, titles=titles)


def _rate_distortion_files(run: Path, weights: str) -> list[Path]:
    """Curves of test examples, by name; without a record beside it, a curve is what it says."""
    found = []
    for path in sorted((run / "evaluations").glob("*rate-distortion.npz")):
        record = path.with_suffix(".json")
        if not record.is_file() or _is_of(_read_record(record), weights):
            found.append(path)
    return found


def _rate_distortion(path: Path) -> Figure:
    """The curve of the first replicate, from the values behind a record."""
    with np.load(path, allow_pickle=False) as file:
        return figures.rate_distortion_curve(file["betas"], file["rate"][0], file["distortion"][0])


# --- bounds from records --------------------------------------------------------------------

# Method -> its name in the picture, the rows of its records, and what they count.
_METHODS = {
    "importance sampling": ("importance sampling", "by_k", "k"),
    "annealed importance sampling": ("annealing", "by_temperatures", "temperatures"),
}
# What makes two records of annealing different curves, in words.
_SETTINGS = {
    "start": "from the {}",
    "schedule": "{} schedule",
    "chains": "{} chains",
    "leapfrog": "{} leapfrog steps",
}


class _Points(NamedTuple):
    """What one record adds to a curve."""

    method: str
    examples: tuple[int, Any, str]  # how many, the seed of the subset if it is one, checksum
    settings: tuple[str, ...]
    points: list[tuple[float, float, float]]  # budget, mean, standard error


def bounds_figure(run: Path, weights: str = "final") -> Figure | None:
    """The mean bounds on log p(x) of test examples that the records of a run hold, by budget.

    Each method has a curve: importance samples k, or temperatures T of annealing. Records of
    other examples, or of annealing with other settings, are other curves, and the legend says in
    what they differ. Of several replicates the first is drawn; pruned models are not.

    Args:
        run: its folder; the records are `RUN/evaluations/*.json`.
        weights: which models, "final" or "best".

    Returns:
        The figure, or None if the records hold fewer than two points.

    Raises:
        UserError: if a record cannot be read.
    """
    found = [
        points
        for path in sorted((Path(run) / "evaluations").glob("*.json"))
        if (points := _read_points(path, weights)) is not None
    ]
    found.sort(key=lambda one: (list(_METHODS).index(one.method), repr(one[1:3])))
    groups = [(what, list(ones)) for what, ones in groupby(found, key=lambda one: one[:3])]
    names = _names([ones[0] for _, ones in groups])
    curves = {name: _curve(ones) for name, (_, ones) in zip(names, groups, strict=True)}
    if sum(len(budget) for budget, *_ in curves.values()) < 2:
        return None
    return figures.bounds_against_budget(curves)


def _read_record(path: Path) -> dict[str, Any]:
    """A record; empty if the file holds something else, UserError if it is not JSON."""
    try:
        record = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path} is not a record: it is not JSON; move it away") from None
    return record if isinstance(record, dict) else {}


def _is_of(record: Mapping[str, Any], weights: str) -> bool:
    """Whether a record is about test examples and the models drawn, with all their units."""
    mine = record.get("split") == "test" and record.get("weights") == weights
    return mine and not record.get("pruned")


def _read_points(path: Path, weights: str) -> _Points | None:
    """The bounds in a record; None if it is about something else."""
    record = _read_record(path)
    if record.get("method") not in _METHODS or not _is_of(record, weights):
        return None
    _, rows, budget = _METHODS[record["method"]]
    first = record["replicates"][0] if record.get("replicates") else record
    points = [
        (float(row[budget]), float(row["log_likelihood"]), float(row["stderr"]))
        for row in first.get(rows, ())
        if row["log_likelihood"] is not None and row["stderr"] is not None
    ]
    subset = record.get("subset")
    seed = None if subset is None else subset.get("seed")
    examples = record["n"], seed, str(record.get("examples_sha256"))
    settings = _settings(record.get("annealing", {}))
    return _Points(record["method"], examples, settings, points) if points else None


def _settings(annealing: Mapping[str, Any]) -> tuple[str, ...]:
    """How a record annealed, in words: always as many, empty if it does not say."""
    values = {name: annealing.get(name, "") for name in _SETTINGS}
    if isinstance(values["schedule"], list):
        values["schedule"] = f"given ({zlib.crc32(repr(values['schedule']).encode()):08x})"
    return tuple(
        words.format(values[name]) if values[name] != "" else ""
        for name, words in _SETTINGS.items()
    )


def _curve(ones: Sequence[_Points]) -> tuple[list[float], list[float], list[float]]:
    """The points of records of the same thing; of two at one budget, the first counts."""
    points: dict[float, tuple[float, float, float]] = {}
    for point in (point for one in ones for point in one.points):
        points.setdefault(point[0], point)
    budget, mean, stderr = zip(*points.values(), strict=True)
    return [*budget], [*mean], [*stderr]


def _names(curves: Sequence[_Points]) -> list[str]:
    """The method of each curve, and as much more as tells it from the others.

    Other examples are always named: bounds on different examples must not be compared unawares.
    """
    examples = _example_names({one.examples for one in curves})
    names = [", ".join((_METHODS[one.method][0], *examples[one.examples])) for one in curves]
    full = []
    for name, one in zip(names, curves, strict=True):
        alike = [other.settings for other, n in zip(curves, names, strict=True) if n == name]
        differ = [len(set(values)) > 1 for values in zip(*alike, strict=True)]
        words = (word for word, told in zip(one.settings, differ, strict=True) if told and word)
        full.append(", ".join((name, *words)))
    return full


def _example_names(sets: set[tuple[int, Any, str]]) -> Mapping[tuple, tuple[str, ...]]:
    """In what sets of examples differ: nothing if there is one; how many, from what seed, data."""
    if len(sets) < 2:
        return dict.fromkeys(sets, ())
    several_seeds = len({one[:2] for one in sets}) > len({one[0] for one in sets})
    several_data = len(sets) > len({one[:2] for one in sets})
    return {
        (n, seed, data): (
            f"{n:,} examples",
            *([f"chosen by seed {seed}" if seed is not None else "all"] if several_seeds else []),
            *([f"data {data[:8]}"] if several_data else []),
        )
        for n, seed, data in sets
    }

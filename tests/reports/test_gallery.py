"""The gallery of a run: the figures of each kind of data, and what they show."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import small
from iwae.data import load_dataset
from iwae.errors import UserError
from iwae.evaluation.likelihood import log_likelihoods
from iwae.models.vae import VAE
from iwae.reports import gallery
from iwae.reports.gallery import _density_figure as density  # the figure behind density.png
from iwae.reports.gallery import draw_gallery
from iwae.reports.recorded_figures import recorded_bounds_figure
from iwae.runs.model_files import load_model
from iwae.runs.split_examples import split_examples
from small import finished

ALWAYS = {"training_curves.png", "log_variances.png", "latents.png", "posterior.png"}  # of two


def names(paths):
    return {path.name for path in paths}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_gallery(small.unmeasured(finished(), tmp_path_factory.mktemp("drawn") / "run"))


def test_image_data_have_all_figures(drawn):
    strips = {f"training_{what}" for what in ("samples", "reconstructions")}
    assert names(drawn) == ALWAYS | {
        *("data.png", "samples.png", "reconstructions.png", "filters_first_layer.png"),
        "filters_last_layer.png",
        *(f"{strip}.png" for strip in strips),
        *(f"{strip}.gif" for strip in strips),
    }
    (folder,) = {path.parent for path in drawn}
    assert folder.name == "figures"
    assert set(folder.iterdir()) == set(drawn)
    for path in drawn:
        with Image.open(path) as image:
            assert min(image.size) > 50
            assert len(np.unique(np.asarray(image.convert("L")))) > 3  # not blank
            if path.suffix == ".gif":
                assert image.n_frames == 5  # before the first epoch, and after each of four


@pytest.mark.slow
def test_learned_prior_is_drawn_with_its_pseudo_inputs(drawn, tmp_path):
    run = finished(prior="vamp:5", posterior="flow:2")
    more = names(draw_gallery(small.unmeasured(run, tmp_path / "run"))) - names(drawn)
    assert more == {"pseudo_inputs.png", "prior.png"}


def test_training_frames_use_the_same_draws_and_test_examples():
    frames = []
    for path in sorted((finished() / "frames").iterdir()):
        with np.load(path) as file:
            frames.append(dict(file))
    test = load_dataset(small.pictures(), validation=50).test
    assert len(frames) == 5
    for frame in frames:
        np.testing.assert_array_equal(frame["examples"], test[::3][:16])
        assert frame["samples"].shape == frame["reconstructions"].shape == (16, 16)
    errors = [np.abs(frame["reconstructions"] - frame["examples"]).mean() for frame in frames]
    assert errors[-1] < errors[0] - 0.03  # they improve during training


@pytest.mark.slow
def test_same_weights_give_the_same_figures_and_others_do_not(drawn, tmp_path):
    before = {path.name: path.read_bytes() for path in drawn}
    assert {path.name: path.read_bytes() for path in draw_gallery(drawn[0].parents[1])} == before
    run = small.unmeasured(finished(**small.PATIENT), tmp_path / "run")
    final, best = (
        {path.name: path.read_bytes() for path in draw_gallery(run, weights=weights)}
        for weights in ("final", "best")
    )
    same = {name for name in final if final[name] == best[name]}
    assert same == {"data.png", *(name for name in final if name.startswith("training_"))}


def untrained_run(run, dataset, dimensions, **options):
    """A run of an untrained Gaussian model."""
    options = {"latent_sizes": (1,), "hidden_sizes": ((5,),), "validation": None, **options}
    sizes = {name: options[name] for name in ("latent_sizes", "hidden_sizes")}
    model = VAE(dimensions, **sizes, observation="gaussian", key=jax.random.key(0))
    options["layers"] = len(sizes["latent_sizes"])
    return small.run_from_models(run, [model], dataset=dataset, **options)


@pytest.mark.slow
def test_one_dimensional_density_is_drawn_beside_the_true_one(tmp_path):
    run = untrained_run(tmp_path / "run", "camel", 1)
    expected = {"log_variances.png", "latents.png", "density.png", "posterior.png"}
    assert names(draw_gallery(run)) == expected  # no metrics, no frames
    dataset = load_dataset("camel")
    (axes,) = density(load_model(run / "models" / "final-0"), dataset).axes
    lines = {line.get_label(): line.get_data() for line in axes.get_lines()}
    x, truth = lines["truth"]
    camel = sum(0.5 * np.exp(-2 * (x - m) ** 2) / np.sqrt(0.5 * np.pi) for m in (-1, 1))
    assert truth == pytest.approx(camel, rel=1e-6)
    x, modelled = lines["model"]
    assert np.trapezoid(modelled, x) == pytest.approx(1, abs=0.1)  # wider than the plot
    assert np.abs(modelled - truth).max() > 0.1


@pytest.mark.slow
def test_two_dimensional_data_are_drawn_beside_samples(tmp_path):
    assert names(draw_gallery(untrained_run(tmp_path / "run", "circle", 2))) == {
        *("log_variances.png", "latents.png", "scatter.png", "posterior.png")
    }


@pytest.mark.slow
def test_other_data_have_only_the_applicable_figures(tmp_path):
    np.save(tmp_path / "own.npy", np.random.default_rng(0).normal(size=(50, 3)) * 3)
    sizes = {"latent_sizes": (2, 1), "hidden_sizes": ((5,), (4,))}  # three latents are too many
    run = untrained_run(tmp_path / "run", str(tmp_path / "own.npy"), 3, **sizes)
    assert names(draw_gallery(run)) == {"log_variances.png", "latents.png", "marginals.png"}


def test_broken_model_raises_an_error(tmp_path):
    """An error is better than a blank figure."""
    model = load_model(finished() / "models" / "final-0")
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), model)
    with pytest.raises(UserError):
        draw_gallery(small.run_from_models(tmp_path / "run", [broken]))


def test_missing_parts_of_a_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        draw_gallery(tmp_path)
    with pytest.raises(UserError, match="has no best weights"):
        draw_gallery(small.unvalidated(), weights="best")


# Posteriors


@pytest.mark.slow
def test_posteriors_are_of_four_examples_from_across_the_split(monkeypatch):
    drawn_arguments = []
    original = gallery.figures.posterior_panels

    def panels(grids, *, titles):
        drawn_arguments.append((grids, titles))
        return original(grids, titles=titles)

    monkeypatch.setattr(gallery.figures, "posterior_panels", panels)
    draw_gallery(finished())
    ((grids, titles),) = drawn_arguments
    assert [title.split(":")[0] for title in titles] == [
        f"test example {i}" for i in (0, 12, 24, 36)
    ]
    dataset = load_dataset(small.pictures(), validation=50)
    model = load_model(finished() / "models" / "final-0")
    for i, grid, title in zip((0, 12, 24, 36), grids, titles, strict=True):
        x = jnp.asarray(split_examples(dataset, "test")[i], jnp.float32)
        bound = log_likelihoods(model, np.asarray(x)[None], jax.random.key(1), k=5000)[0]
        assert grid.log_evidence == pytest.approx(bound, abs=0.1)
        assert title.endswith(f"log p(x) = {grid.log_evidence:.2f}".replace("-", "\N{MINUS SIGN}"))


# Bounds and curves from records


def write_bounds(run, name, bounds, places, temperatures=False, model="a", **changes):
    """Write a record of mean bounds by budget; the values of an example are offset by its index."""
    column = "temperatures" if temperatures else "k"
    record = {
        "method": "annealed importance sampling" if temperatures else "importance sampling",
        "split": "test",
        "weights": "final",
        "pruned": False,
        "n": len(places),
        "subset": None,
        "test_sha256": "t",
        "model_sha256": model,
        "dataset": "circle",
        "active_units": [],
        "by_temperatures" if temperatures else "by_k": [],
        **({"annealing": ANNEALING, "verdict": {"word": "converged"}} if temperatures else {}),
        **changes,
    }
    folder = run / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record))
    places = np.asarray(places)
    values = np.asarray([[mean + places for mean in bounds.values()]], np.float64)
    arrays = {column: np.asarray(list(bounds)), "index": places, "log_likelihood": values}
    np.savez(folder / f"{name}.npz", **arrays)


ANNEALING = {"chains": 16, "leapfrog": 10, "schedule": "sigmoid", "start": "posterior"}


def drawn_bounds(run, **options):
    """Label -> budgets and means of each curve; {} without a figure."""
    figure = recorded_bounds_figure(run, **options)
    if figure is None:
        return {}
    (axes,) = figure.axes
    lines = [container.lines[0] for container in axes.containers]
    return {line.get_label(): line.get_xydata().tolist() for line in lines}


def test_bounds_are_paired_on_shared_examples(tmp_path):
    write_bounds(tmp_path, "a", {1: -9.0, 50: -7.0}, range(10))
    write_bounds(tmp_path, "b", {5: -6.0, 50: -5.0}, [2, 4, 12], temperatures=True)
    (axes,) = recorded_bounds_figure(tmp_path).axes
    assert axes.get_ylabel().startswith("difference to AIS_50")
    assert axes.get_legend().get_texts()[0].get_text() == "AIS_50 = −2.00 ± 1.00 nats"
    for bars in axes.containers:  # differences between examples cancel
        assert np.ptp([one[:, 1] for one in bars.lines[2][0].get_segments()], axis=1).max() == 0
    curves = drawn_bounds(tmp_path)
    assert curves.pop("importance sampling, 2 examples") == [[1, -4], [50, -2]]
    ((name, annealing),) = curves.items()
    assert annealing == [[5, -1], [50, 0]]
    assert name.startswith("annealing from the posterior, 16 chains, 10 leapfrog steps, sigmoid")


def test_each_annealing_setting_has_its_own_curve(tmp_path):
    write_bounds(tmp_path, "a", {5: -6.0, 50: -5.0}, range(4), temperatures=True)
    given = {**ANNEALING, "chains": 4, "schedule": [0.0, 1.0]}
    write_bounds(tmp_path, "b", {7: -8.0}, range(4), temperatures=True, annealing=given)
    curves = drawn_bounds(tmp_path)
    assert sorted(len(points) for points in curves.values()) == [1, 2]
    assert any("4 chains" in name and "given schedule" in name for name in curves)


def test_only_comparable_bounds_are_drawn(tmp_path):
    write_bounds(tmp_path, "a", {50: -7.0}, range(4))
    for name, changes in {
        "validation": {"split": "validation"},
        "pruned": {"pruned": True},
        "best": {"weights": "best"},
    }.items():
        write_bounds(tmp_path, name, {1: -9.0, 2: -8.0}, range(4), **changes)
    write_bounds(tmp_path, "other", {1: -9.0}, range(4), model="b")
    assert recorded_bounds_figure(tmp_path) is None  # one point makes no curve
    assert len(drawn_bounds(tmp_path, weights="best")) == 1
    write_bounds(tmp_path, "elsewhere", {5: -9.0}, [7, 8, 9])
    assert recorded_bounds_figure(tmp_path) is None  # no examples in common
    assert recorded_bounds_figure(tmp_path / "nothing") is None


@pytest.mark.slow
def test_gallery_includes_recorded_curves_and_bounds(tmp_path, monkeypatch):
    run = untrained_run(tmp_path / "run", "circle", 2)
    write_bounds(run, "test-final-k50", {1: -9.0, 50: -7.0}, range(6))
    drawn_arguments = []
    original = gallery.figures.rate_distortion_curve

    def curve(*arrays):
        drawn_arguments.append(arrays)
        return original(*arrays)

    monkeypatch.setattr(gallery.figures, "rate_distortion_curve", curve)
    betas = np.linspace(0, 1, 5)
    values = np.random.default_rng(0).random((3, 2, 6, 5))  # of three files and two replicates
    for name, rate in zip(("T1", "T2", "T3"), values, strict=True):
        np.savez(
            run / "evaluations" / f"{name}-rate-distortion.npz",
            betas=betas,
            rate=rate,
            distortion=2 * rate,
        )
        weights = "best" if name == "T3" else "final"
        method = "rate-distortion"
        record = {"method": method, "split": "test", "weights": weights, "pruned": False}
        record |= {"dataset": "circle", "n": 6, "annealing": {"chains": 2}, "acceptance_mean": 0.9}
        record |= {"log_likelihood": -9.0, "stderr": 0.1}
        (run / "evaluations" / f"{name}-rate-distortion.json").write_text(json.dumps(record))
    assert names(draw_gallery(run)) == {
        *("log_variances.png", "latents.png", "scatter.png", "posterior.png", "bounds.png"),
        "rate_distortion.png",
    }
    ((got_betas, rate, distortion),) = drawn_arguments
    assert np.array_equal(got_betas, betas)
    assert np.array_equal(rate, values[1, 0])  # the last by name with these weights
    assert np.array_equal(distortion, 2 * values[1, 0])

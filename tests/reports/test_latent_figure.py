"""The latent figure: its layer, its coordinates, its labels and its outliers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import small
from iwae.config.experiment import make_config
from iwae.data import load_dataset
from iwae.data.load import can_load_labels
from iwae.evaluation.likelihood import log_likelihoods
from iwae.evaluation.units import ActiveUnits, active_units, unit_means
from iwae.models.vae import VAE
from iwae.reports import latent_figure
from iwae.reports.latent_figure import Labelled, latent_figure_labels, latents_figure
from iwae.reports.latent_figure import _fence as fence
from iwae.reports.latent_figure import _plane as plane
from iwae.runs.jobs import load_job_dataset

RNG = np.random.default_rng(0)


def test_many_units_are_projected_on_principal_components():
    """Only active units count: an inactive one may vary by noise."""
    turn = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    scores = RNG.normal(size=(500, 3))
    scores = np.linalg.qr(scores - scores.mean(axis=0))[0] * [6.0, 3.0, 2.0]
    means = np.insert(5 + scores @ turn.T, 1, 100 * RNG.normal(size=500), axis=1)
    points, names = plane(means, np.ones(4), np.array([True, False, True, True]))
    signs = np.sign(turn[np.abs(turn).argmax(axis=0), range(3)])[:2]
    assert np.allclose(points, scores[:, :2] * signs)
    assert names == (
        "principal component 1 (73% of the variance)",
        "principal component 2 (18% of the variance)",
    )


@pytest.mark.parametrize("active", [[2, 4], [4], []])
def test_few_units_are_drawn_by_the_two_most_active(active):
    means, variances = RNG.normal(size=(9, 5)), np.array([1e-3, 1e-4, 0.5, 1e-5, 0.9])
    points, names = plane(means, variances, np.isin(range(5), active))
    assert np.array_equal(points, means[:, [2, 4]])
    assert names == ("unit 3", "unit 5")


def test_fence_is_three_interquartile_ranges_below_the_quartile():
    assert fence(np.arange(101.0)) == 25 - 3 * 50
    assert fence(np.append(np.arange(101.0), [-np.inf, 101.0])) == 24.5 - 3 * 51


def test_table_is_coloured_by_its_carried_or_only_categorical_column(tmp_path, caplog):
    """An id names rows, a column of few words may be carried through, and gaps have a colour."""
    kinds = np.array(["b", "c", "a"])[np.arange(80) % 3]
    lines = [f"p{i},{i / 7},{kind}" for i, kind in enumerate(kinds)]
    lines[0] = "p0,0.0,"
    (tmp_path / "own.csv").write_text("\n".join(["name,size,kind", *lines]) + "\n")

    def figure_labels(file="own.csv", **options):
        values = {**small.OPTIONS, "validation": 0, "dataset": str(tmp_path / file), **options}
        config = make_config(values, "test")
        data = load_job_dataset(config)
        test = np.round(data.outwards(data.test)[:, 0] * 7).astype(int)
        return test, latent_figure_labels(config, data, None)

    rows, (labels, names, column) = figure_labels(id=("name",), missing="at-random")
    assert column == "kind"
    words = ["missing" if i == 0 else kinds[i] for i in rows]
    assert [names[one] for one in labels] == words
    complete = (tmp_path / "own.csv").read_text().replace("p0,0.0,", "p0,0.0,b")
    (tmp_path / "whole.csv").write_text(complete)
    rows, (labels, names, column) = figure_labels("whole.csv", drop=("name",), id=("kind",))
    assert (column, names) == ("kind", ("a", "b", "c"))
    assert [names[one] for one in labels] == [kinds[i] for i in rows]
    twice = [f"{line},{line.rpartition(',')[2]}2" for line in complete.splitlines()]
    (tmp_path / "two.csv").write_text("\n".join(twice) + "\n")
    assert figure_labels("two.csv", id=("name",))[1] is None
    assert caplog.messages == []
    assert figure_labels(id=("name", "kind"))[1] is None
    (message,) = caplog.messages
    assert message.startswith("latents.png is without the colours of kind: ")


def drawn(counts, sizes, monkeypatch):
    """A model with layers of these sizes, its dataset, and the arguments of its latent map."""
    model = VAE(16, sizes, tuple((5,) for _ in sizes), key=jax.random.key(0))
    variances = tuple(
        np.arange(d, 0, -1) * np.repeat([1.0, 1e-6], [n, d - n])
        for n, d in zip(counts, sizes, strict=True)
    )
    units = ActiveUnits(variances, variances, 50, 16, 0.01)
    arguments = {}
    monkeypatch.setattr(
        latent_figure.figures,
        "latent_map",
        lambda points, names, **rest: (
            arguments.update(points=points, names=names, **rest) or Figure()
        ),
    )
    dataset = load_dataset(small.pictures(), validation=50)
    latents_figure(model, dataset, units, Labelled(np.arange(50) % 3, ("a", "b", "c")))
    return model, dataset, arguments


@pytest.mark.parametrize(
    ("counts", "layer"), [((3, 2), 2), ((3, 1), 1), ((1, 1), 2), ((0, 0), 2), ((2, 0), 1)]
)
def test_highest_layer_in_use_is_drawn(counts, layer, monkeypatch):
    model, dataset, arguments = drawn(counts, (3, 2), monkeypatch)
    active = counts[layer - 1]
    assert (
        arguments["title"]
        == f"posterior means of layer {layer}, {active} active units of {4 - layer}"
    )
    key, _ = jax.random.split(jax.random.key(0))
    means = unit_means(model, dataset.test, key)[layer - 1]
    if active == 2:
        assert np.array_equal(arguments["points"], means[:, :2])
    assert np.array_equal(arguments["labels"], np.arange(50) % 3)


def test_single_latent_is_drawn_against_the_likelihood(monkeypatch):
    model, dataset, arguments = drawn((1,), (1,), monkeypatch)
    bounds = log_likelihoods(model, dataset.test, jax.random.key(3), k=5000)
    assert arguments["names"] == ("unit 1", "log p(x) (nats)")
    np.testing.assert_allclose(arguments["points"][:, 1], bounds, atol=1)
    assert np.array_equal(
        arguments["outliers"], arguments["points"][:, 1] < fence(arguments["points"][:, 1])
    )


def test_unit_means_match_the_variances_of_active_units():
    model = VAE(16, (3, 2), ((5,), (5,)), key=jax.random.key(0))
    test = load_dataset(small.pictures(), validation=50).test
    means = unit_means(model, test, jax.random.key(1))
    assert [layer.shape for layer in means] == [(50, 3), (50, 2)]
    exact = jax.vmap(lambda x: model.posterior(x).first.mean)(jnp.asarray(test, jnp.float32))
    np.testing.assert_allclose(means[0], exact, atol=1e-6)
    variances = active_units(model, test, jax.random.key(1)).variances
    np.testing.assert_allclose(means[0].var(axis=0), variances[0], rtol=1e-5)
    # The variances are corrected for the noise of draws.
    assert (means[1].var(axis=0) >= variances[1]).all()


# Labels


def labels_of(dataset, **options):
    config = make_config({"dataset": str(dataset), **small.OPTIONS, **options}, "test")
    data = load_dataset(config.dataset, validation=config.validation)
    return latent_figure_labels(config, data, None)


def test_unconditional_models_use_the_labels_of_their_data(tmp_path):
    labels, classes, _ = labels_of("digits")
    expected = load_dataset("digits", validation=50, labels=True)
    assert np.array_equal(labels, expected.labels("test"))
    assert classes == expected.classes
    own = {"train": small.grey()[:350], "test": small.grey()[350:]}
    words = np.array(["left", "right"])[np.arange(400) % 2]
    np.savez(tmp_path / "own.npz", **own, train_labels=words[:350], test_labels=words[350:])
    labels, classes, _ = labels_of(tmp_path / "own.npz")
    assert labels.tolist() == [0, 1] * 25
    assert classes == ("left", "right")


def test_data_without_labels_are_drawn_unlabelled(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert labels_of(small.pictures()) is None
    np.savetxt(tmp_path / "a.csv", RNG.normal(size=(80, 2)), delimiter=",")
    assert not can_load_labels(tmp_path / "a.csv")
    assert not can_load_labels("mnist", tmp_path)  # nothing is downloaded for a figure
    assert not can_load_labels("circle")
    assert not caplog.text
    np.savez(tmp_path / "b.npz", data=RNG.normal(size=(80, 2)), labels=RNG.normal(size=80))
    assert labels_of(tmp_path / "b.npz") is None
    assert "must hold a whole number or a word" in caplog.text

"""Conditional models from the data to the folder for others: shared, classifying, of tables."""

import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import small
from iwae import figures, from_pretrained, load_model, push_to_hub
from iwae._types import UserError
from iwae.checkpoint import read_about, save_model
from iwae.conditional import ConditionalVAE
from iwae.config import config_values, write_config
from iwae.gallery import draw_run, layout_of, samples_figure
from iwae.jobs import make_job, model_folder
from iwae.measure import (
    evaluate_run,
)
from iwae.model import VAE
from iwae.sharing import export_run
from test_conditional import noisy, two_halves
from test_sharing import FakeHub, card_of, front, refused

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHARES = np.float32([0.25, 0.75])


def conditional(
    n_data=16, n_classes=2, *, size=0.5, seed=0, learned_prior=True, latent=2, **options
):
    """A model that tells labels apart, though nothing has trained it."""
    vae = VAE(n_data, (latent,), ((5,),), **options, key=jax.random.key(seed))
    shares = SHARES if n_classes == 2 else None
    model = ConditionalVAE(vae, n_classes, learned_prior=learned_prior, frequencies=shares)
    return noisy(model, size=size)


def as_run(run, models, **options):
    """A run of these models as training would leave it."""
    job = make_job(small.config(replicates=len(models), **options))
    write_config(job.config, run / "config.toml")
    for replicate, model in enumerate(models):
        about = {"dataset": job.dataset.identity, "config": config_values(job.config)}
        folder = model_folder(run, "final", replicate)
        save_model(model, folder, replicate=replicate, epoch=6, **about)
    return run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two models of pictures with the labels a and b, and a record of them."""
    folder = tmp_path_factory.mktemp("labels")
    options = two_halves(folder / "halves.npz")
    models = [conditional(seed=seed) for seed in (0, 1)]
    run = as_run(folder / "run", models, label_prior=True, **options)
    evaluate_run(run, ks=(20,))
    return run


@pytest.fixture(scope="module")
def shared(measured, tmp_path_factory):
    return export_run(measured, tmp_path_factory.mktemp("shared") / "model", replicate=1)


@pytest.fixture
def copy(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "copy")


# --- for others -------------------------------------------------------------------------------


def test_the_card_says_that_likelihoods_are_given_the_label(measured, shared):
    matter, body = front(card_of(shared))
    record = json.loads((measured / "evaluations" / "test-final-k20.json").read_text())
    one = record["replicates"][1]
    (metric,) = matter["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == one["log_likelihood"]
    assert metric["name"].startswith("L_20 of x given its label, nats per example, 50 test")
    assert "conditional" in matter["tags"]
    assert "pipeline_tag" not in matter
    assert "Mean log p(x|y) of a test example x given its own label y" in body
    assert "labels y | 2: `a` 25.0%, `b` 75.0% (shares of the training data)" in body
    assert "| p(z given y) | a Gaussian for each label, learned |" in body
    assert "are not comparable with those of a model of x alone" in body
    number = f"{one['log_likelihood']:.3f} ± {one['stderr']:.3f}".replace("-", "\N{MINUS SIGN}")
    assert number in body


def test_the_code_on_the_card_makes_a_sample_of_a_label(shared):
    (code,) = re.findall(r"```python\n(.*?)```", card_of(shared), re.DOTALL)
    namespace = {}
    exec(code.replace("PATH", str(shared)), namespace)  # noqa: S102
    given = load_model(shared).given(jax.numpy.eye(2)[0])
    z, x = given.sample(jax.random.key(0))
    np.testing.assert_array_equal(namespace["x"], x)
    np.testing.assert_array_equal(namespace["z"][0], z[0])
    assert namespace["x"].shape == (16,)


def test_the_picture_has_a_row_for_each_label(shared, tmp_path):
    model = load_model(shared)
    layout = layout_of(model, read_about(shared))
    assert (layout.shape, layout.classes) == ((4, 4), ("a", "b"))
    figures.save_figure(samples_figure(model, layout), tmp_path / "again.png")
    with Image.open(tmp_path / "again.png") as ours, Image.open(shared / "samples.png") as theirs:
        np.testing.assert_array_equal(ours, theirs)
    assert layout_of(model, {}).classes == ("label 0", "label 1")


def test_a_conditional_model_goes_to_the_hub_and_comes_back(
    measured, shared, tmp_path, monkeypatch
):
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", hub.errors)
    push_to_hub(shared, "me/labels")
    found = from_pretrained("me/labels")
    assert isinstance(found, ConditionalVAE)
    assert small.bits(found) == small.bits(load_model(model_folder(measured, "final", 1)))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "shifts[0]",
            lambda a: a[:, :-1],
            r"shifts\[0\] is float32\(2, 4\) there",
        ),
        ("tops", lambda a: a[:1], r"tops is float32\(1, 2, 2\) there"),
        ("frequencies", lambda a: a[:1], r"frequencies is float32\(1,\) there"),
        ("frequencies", lambda a: 2 * a, "shares that add up to 1; these begin at 0.5 and add up"),
        ("frequencies", lambda a: a - 0.5, "shares that add up to 1; these begin at -0.25"),
        ("frequencies", lambda a: a * np.nan, "frequencies has numbers that are not finite"),
        ("tops", lambda _: None, r"tops is in only one of them"),
    ],
)
def test_arrays_of_labels_that_do_not_fit_are_refused(copy, name, change, words):
    arrays = load_file(copy / "model.safetensors")
    changed = change(arrays.pop(name))
    save_file(arrays if changed is None else {**arrays, name: changed}, copy / "model.safetensors")
    refused(copy, words)


@pytest.mark.parametrize(
    ("names", "words"),
    [(["a"], "other names"), (["a", "a"], "other names"), (3, "other names"), ([1, 2], "names")],
)
def test_names_of_other_labels_are_refused(copy, names, words):
    description = json.loads((copy / "model.json").read_text())
    description["about"]["dataset"]["classes"] = names
    (copy / "model.json").write_text(json.dumps(description))
    refused(copy, words)


def test_frequencies_are_shares():
    for wrong in (np.array([0.5, 0.6]), np.array([1.5, -0.5]), np.array([np.nan, 1])):
        with pytest.raises(UserError, match="shares that add up to 1"):
            ConditionalVAE(VAE(4, (2,), ((3,),), key=jax.random.key(0)), 2, frequencies=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 3])
def test_tables_with_labels_have_pictures(width, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, width))
    np.savez(tmp_path / "rows.npz", data=rows, labels=np.arange(40) % 2)
    options = {"dataset": str(tmp_path / "rows.npz"), "validation": None, "conditional": True}
    model = conditional(width, observation="gaussian", learned_prior=False)
    run = as_run(tmp_path / "run", [model], **options)
    drawn = {path.stem for path in draw_run(run)}
    assert {1: "density", 2: "scatter", 3: "posterior"}[width] in drawn
    body = card_of(export_run(run, tmp_path / "shared"))
    assert "![What the model makes by itself](samples.png)" in body
    assert "N(0, I) for all labels" in body
    draws = samples_figure(model, layout_of(model, read_about(tmp_path / "shared")))
    assert len(draws.axes) == width

"""Conditional models: sharing, classification, tables and two-sided bounds."""

import json
import re
import shutil
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.special import logsumexp
from scipy.stats import norm

import small
from iwae import bdmc, from_pretrained, load_model, push_to_hub
from iwae.cli import main
from iwae.config.toml import read_config, write_config
from iwae.data import load_dataset
from iwae.errors import UserError
from iwae.evaluation.classification import label_log_probabilities
from iwae.evaluation.scores import auroc
from iwae.inference.particles import particle_keys
from iwae.models.conditional import ConditionalVAE
from iwae.models.vae import VAE
from iwae.reports import figures
from iwae.reports.export import export_run
from iwae.reports.gallery import draw_gallery, gallery_layout, gallery_samples_figure
from iwae.results.ais import Annealing, anneal_run
from iwae.results.bdmc import bdmc_run
from iwae.results.classification import classify_run
from iwae.results.likelihood import evaluate_run
from iwae.runs.model_files import read_model_facts
from iwae.runs.trained import trained_model_folder
from result_tables.experiments import labels_table
from shared_models import assert_refused, read_card, split_card
from small import LABEL_SHARES, conditional_model, two_halves


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two models of images with the labels a and b, and a record of them."""
    folder = tmp_path_factory.mktemp("labels")
    options = two_halves(folder / "halves.npz")
    models = [conditional_model(seed=seed) for seed in (0, 1)]
    run = small.run_from_models(folder / "run", models, label_prior=True, **options)
    evaluate_run(run, ks=(20,))
    return run


@pytest.fixture(scope="module")
def shared(measured, tmp_path_factory):
    return export_run(measured, tmp_path_factory.mktemp("shared") / "model", replicate=1)


@pytest.fixture
def copy(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "copy")


# --- sharing ----------------------------------------------------------------------------------


def test_card_states_that_likelihoods_condition_on_the_label(measured, shared):
    matter, body = split_card(read_card(shared))
    record = json.loads((measured / "evaluations" / "test-final-k20.json").read_text())
    one = record["replicates"][1]
    (metric,) = matter["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == one["log_likelihood"]
    assert metric["name"].startswith(
        "L_20 of x given its label, nats per example, test examples: 50"
    )
    assert "conditional" in matter["tags"]
    assert "pipeline_tag" not in matter
    assert "Mean log p(x|y) of a test example x given its own label y" in body
    assert "labels y | 2: `a` 25.0%, `b` 75.0% (shares of the training data)" in body
    assert "| p(z given y) | a Gaussian for each label, learned |" in body
    assert "are not comparable with those of a model of x alone" in body
    number = f"{one['log_likelihood']:.3f} ± {one['stderr']:.3f}".replace("-", "\N{MINUS SIGN}")
    assert number in body


def test_code_on_the_card_samples_from_a_label(shared):
    (code,) = re.findall(r"```python\n(.*?)```", read_card(shared), re.DOTALL)
    namespace = {}
    exec(code.replace("PATH", str(shared)), namespace)  # noqa: S102
    given = load_model(shared).given(jax.numpy.eye(2)[0])
    z, x = given.sample(jax.random.key(0))
    np.testing.assert_array_equal(namespace["x"], x)
    np.testing.assert_array_equal(namespace["z"][0], z[0])
    assert namespace["x"].shape == (16,)


def test_sample_figure_has_a_row_per_label(shared, tmp_path):
    model = load_model(shared)
    layout = gallery_layout(model, read_model_facts(shared))
    assert (layout.shape, layout.classes) == ((4, 4), ("a", "b"))
    figures.save_figure(gallery_samples_figure(model, layout), tmp_path / "again.png")
    with Image.open(tmp_path / "again.png") as ours, Image.open(shared / "samples.png") as theirs:
        np.testing.assert_array_equal(ours, theirs)
    assert gallery_layout(model, {}).classes == ("label 0", "label 1")


@pytest.mark.usefixtures("hub")
def test_conditional_model_round_trips_through_the_hub(measured, shared):
    push_to_hub(shared, "me/labels")
    loaded = from_pretrained("me/labels")
    assert isinstance(loaded, ConditionalVAE)
    assert small.bits(loaded) == small.bits(load_model(trained_model_folder(measured, "final", 1)))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "shifts[0]",
            lambda a: a[:, :-1],
            r"shifts\[0\] is float32\(2, 4\) there",
        ),
        ("tops", lambda a: a[:1], r"tops is float32\(1, 2, 2\) there"),
        ("frequencies", lambda a: a[:1], r"frequencies is float32\(1,\) there"),
        ("frequencies", lambda a: 2 * a, "shares that add up to 1; the smallest of these is 0.5"),
        ("frequencies", lambda a: a - 0.5, "add up to 1; the smallest of these is -0.25"),
        ("frequencies", lambda a: a * np.nan, "frequencies has numbers that are not finite"),
        ("tops", lambda _: None, r"tops is in only one of them"),
    ],
)
def test_mismatched_label_arrays_are_refused(copy, name, change, message):
    arrays = load_file(copy / "model.safetensors")
    changed = change(arrays.pop(name))
    save_file(arrays if changed is None else {**arrays, name: changed}, copy / "model.safetensors")
    assert_refused(copy, message)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a"], "names of"), (["a", "a"], "names of"), (3, "names of"), ([1, 2], "names")],
)
def test_mismatched_label_names_are_refused(copy, names, message):
    description = json.loads((copy / "model.json").read_text())
    description["about"]["dataset"]["classes"] = names
    (copy / "model.json").write_text(json.dumps(description))
    assert_refused(copy, message)


def test_invalid_label_frequencies_are_refused():
    for wrong in (np.array([0.5, 0.6]), np.array([1.5, -0.5]), np.array([np.nan, 1])):
        with pytest.raises(UserError, match="shares that add up to 1"):
            ConditionalVAE(VAE(4, (2,), ((3,),), key=jax.random.key(0)), 2, frequencies=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 3])
def test_labelled_tables_have_figures(width, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, width))
    np.savez(tmp_path / "rows.npz", data=rows, labels=np.arange(40) % 2)
    options = {"dataset": str(tmp_path / "rows.npz"), "validation": None, "conditional": True}
    model = conditional_model(width, observation="gaussian", learned_prior=False)
    run = small.run_from_models(tmp_path / "run", [model], **options)
    drawn = {path.stem for path in draw_gallery(run)}
    assert {1: "density", 2: "scatter", 3: "posterior"}[width] in drawn
    body = read_card(export_run(run, tmp_path / "shared"))
    assert "![What the model makes by itself](samples.png)" in body
    assert "N(0, I) for all labels" in body
    draws = gallery_samples_figure(
        model, gallery_layout(model, read_model_facts(tmp_path / "shared"))
    )
    assert len(draws.axes) == width


# --- classification ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classified(measured, tmp_path_factory):
    """Both models as classifiers, against a file of other images: run, record and stored values."""
    run = shutil.copytree(measured, tmp_path_factory.mktemp("classified") / "run")
    np.save(run.parent / "others.npy", small.grey(3)[:100])
    others = str(run.parent / "others.npy")
    record = classify_run(run, k=20, against=others, examples=40)
    name = "test-final-classify-k20-against-others.npy-n40"
    with np.load(run / "evaluations" / f"{name}.npz") as values:
        return run, record, dict(values)


def reference_label_scores(model, x, key, k):
    """log p(x|y) of each label from k single weights, `[n, C]`; each example has its own key."""

    @jax.jit
    def weight(row, label, key):
        vae = model.given(label)
        q = vae.posterior(row)
        z = q.sample(key)
        return vae.log_joint(row, z) - q.log_prob(z)

    rows = []
    for i, row in enumerate(jax.numpy.float32(x)):
        keys = particle_keys(jax.random.fold_in(key, i), jax.numpy.arange(k))
        log_w = [
            [weight(row, label, jax.random.clone(key)) for key in keys]
            for label in jax.numpy.eye(model.n_classes)
        ]
        rows.append(logsumexp(np.float64(log_w), axis=1) - np.log(k))
    return np.array(rows)


def test_classification_record_matches_its_stored_values(classified):
    run, record, values = classified
    assert Path(read_config(run / "config.toml").dataset).is_absolute()
    assert record["config"]["dataset"] == Path(record["config"]["dataset"]).name
    data = load_dataset(_dataset(run), labels=True)
    assert record["data"]["classes"] == ["a", "b"]
    labels = data.labels("test")[values["index"]]
    np.testing.assert_array_equal(values["label"], labels)
    for replicate, one in enumerate(record["replicates"]):
        scores = values["log_likelihood"][replicate]
        joint = scores + np.log(np.float64(LABEL_SHARES))
        predicted = joint.argmax(axis=1)
        assert one["accuracy"] == np.mean(predicted == labels)
        expected = [[np.sum((labels == i) & (predicted == j)) for j in (0, 1)] for i in (0, 1)]
        assert one["confusion"] == expected
        log_p = joint - logsumexp(joint, axis=1, keepdims=True)
        own = np.arange(40), labels
        assert one["label_log_probability"] == pytest.approx(log_p[own].mean())
        assert one["log_likelihood"] == pytest.approx(scores[own].mean())
        assert one["stderr"] == pytest.approx(scores[own].std(ddof=1) / np.sqrt(40))
        np.testing.assert_allclose(values["marginal"][replicate], logsumexp(joint, axis=1))
        others = values["others_marginal"][replicate]
        assert others.shape == (20,)  # the test split, a fifth of the file
        wins = np.mean(values["marginal"][replicate][:, None] > others[None])
        assert one["auroc"] == pytest.approx(wins)
    assert record["others"] == "others.npy"
    assert "Nalisnick et al. 2019" in record["caution"]
    assert record["subset"] == {"examples": 40, "seed": 0, "stratified_by": "L_20"}


def _dataset(run):
    return read_config(run / "config.toml").dataset


def test_label_scores_match_weights_computed_one_by_one(classified):
    run, _, values = classified
    model = load_model(trained_model_folder(run, "final", 1))
    rows = load_dataset(_dataset(run), labels=True).test[values["index"][:3], :16]
    key = jax.random.fold_in(jax.random.key(0), 0)
    expected = reference_label_scores(model, rows, key, 20)
    np.testing.assert_allclose(values["log_likelihood"][1, :3], expected, rtol=1e-5)
    assert np.ptp(expected, axis=1).min() > 0.01


def test_batching_and_interruption_leave_results_unchanged(classified, tmp_path, monkeypatch):
    run, _, values = classified
    run = shutil.copytree(run, tmp_path / "run")
    others = str(classified[0].parent / "others.npy")

    def interrupted(slabs, total, label):  # noqa: ARG001
        for i, slab in enumerate(slabs):
            if (i, label) == (1, "replicate 1, 2 labels, k=20"):
                raise KeyboardInterrupt
            yield slab

    options = {"k": 20, "against": others, "examples": 40, "batch_size": 3}
    monkeypatch.setattr("iwae.evaluation.examples.SLAB_ROWS", 400)
    with pytest.raises(KeyboardInterrupt):
        classify_run(run, track=interrupted, **options)
    assert any((run / "evaluations" / "unfinished").iterdir())
    classify_run(run, **options)
    name = "test-final-classify-k20-against-others.npy-n40"
    with np.load(run / "evaluations" / f"{name}.npz") as again:
        assert again.keys() == values.keys()
        for key in values:
            np.testing.assert_allclose(again[key], values[key], rtol=1e-5, err_msg=key)
    assert not (run / "evaluations" / "unfinished").exists()


def test_card_reports_classification_accuracy(classified, tmp_path):
    run, record, _ = classified
    body = read_card(export_run(run, tmp_path / "shared"))
    one = record["replicates"][0]
    sentence = f"label of {one['accuracy']:.3f} ± {one['accuracy_stderr']:.3f} of 40 test\nexamples"
    assert sentence in body
    assert "with 20 importance samples for each label" in body


def test_card_states_that_accuracy_was_not_measured(shared):
    assert "Not measured. `iwae classify RUN` says how often it names the label" in read_card(
        shared
    )


def test_classify_command(measured, tmp_path, capsys):
    run = shutil.copytree(measured, tmp_path / "run")
    arguments = ["classify", str(run), "--k", "5", "--examples", "10", "--quiet"]
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    path = run / "evaluations" / "test-final-classify-k5-n10.json"
    assert record == json.loads(path.read_text())
    assert record["others"] is None
    assert main([*arguments, "--against", str(_other_images(tmp_path))]) == 0
    printed = capsys.readouterr().out
    one = record["replicates"][1]
    assert f"  replicate 1: accuracy {one['accuracy']:.3f} +- " in printed
    assert "L_5 of p(x|y), own label = " in printed
    assert "a weak test" in printed
    assert "taken for" in printed


def _other_images(folder, shape=(4, 4)):
    path = folder / "others.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (30, *shape)).astype(np.uint8))
    return path


def test_invalid_classification_requests_are_refused(measured, tmp_path, capsys):
    run = shutil.copytree(measured, tmp_path / "run")
    write_config(small.config(), tmp_path / "other" / "config.toml")
    assert main(["classify", str(tmp_path / "other")]) == 2
    assert "knows no labels: train with --conditional to classify" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"have the shape \[5, 5\], those of halves.npz \[4, 4\]"):
        classify_run(run, against=str(_other_images(tmp_path, (5, 5))))
    with np.load(_dataset(run)) as file:
        np.savez(tmp_path / "same.npz", train=file["train"], test=file["test"])
    with pytest.raises(UserError, match="these are the run's own data; name others"):
        classify_run(run, against=str(tmp_path / "same.npz"))
    with pytest.raises(UserError, match="k is 0"):
        classify_run(run, k=0)
    with pytest.raises(UserError, match="examples is 51; the test split has 50"):
        classify_run(run, examples=51)


def test_example_impossible_under_every_label_is_an_error():
    with pytest.raises(FloatingPointError, match="example 1 is impossible under every label"):
        label_log_probabilities(np.array([[0.0, -1.0], [-np.inf, -np.inf]]), LABEL_SHARES)


@pytest.mark.parametrize("distance", [0.0, 1.0])
def test_auroc_and_its_error_match_gaussian_scores(distance):
    """For N(d, 1) against N(0, 1) the area is Phi(d / sqrt 2); its error is the sd over repeats."""
    rng, areas, errors = np.random.default_rng(0), [], []
    for _ in range(300):
        area, error = auroc(rng.normal(distance, 1, 40), rng.normal(0, 1, 60))
        areas.append(area)
        errors.append(error)
    truth = norm.cdf(distance / np.sqrt(2))
    assert abs(np.mean(areas) - truth) < 4 * np.std(areas) / np.sqrt(300)
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.15)  # one standard error is 4%


def test_auroc_counts_ties_as_half():
    assert auroc(np.zeros(3), np.zeros(4)) == (0.5, 0.0)
    assert auroc(np.array([1.0, 2.0]), np.array([0.0, 1.0]))[0] == (0.5 + 1 + 1 + 1) / 4
    area, error = auroc(np.array([1.0]), np.array([0.0, 2.0]))
    assert area == 0.5
    assert np.isnan(error)


def test_labels_table_shows_classification_records(classified, tmp_path):
    run, record, _ = classified
    keep = tmp_path / "labels" / "pictures" / "now"
    shutil.copytree(run, keep, ignore=shutil.ignore_patterns("models"))
    lines = labels_table(tmp_path).splitlines()
    assert len(lines) == 3
    mean = np.mean([one["accuracy"] for one in record["replicates"]])
    assert f"{mean:.3f} ±" in lines[2]
    assert "AUROC against others.npy" in lines[0]
    assert "L_20 of p(x given y), nats" in lines[0]


# --- two-sided bounds -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("start", ["posterior", "prior"])
def test_two_sided_bounds_enclose_the_likelihood_given_the_label(start):
    """With one latent the true value is a sum; bounds under another label would miss it."""
    model = with_informative_labels(conditional_model(6, 3, size=0.3, latent=1))
    key, n = jax.random.key(2), 60
    bounds = bdmc(
        model,
        key,
        n_examples=n,
        chains=4,
        betas=np.linspace(0, 1, 60),
        step_size=0.3,
        n_leapfrog=3,
        start=start,
    )
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3)[0])
    drawn = np.asarray(jax.vmap(lambda key: model.sample(key)[1])(keys(jax.numpy.arange(n))))
    truth = grid_log_likelihood(model, drawn)
    tolerance = 4 * np.std(bounds.gap) / np.sqrt(n) + 1e-4
    assert np.mean(bounds.lower - truth) < tolerance
    assert np.mean(bounds.upper - truth) > -tolerance
    assert tolerance < 0.3
    others = np.concatenate([drawn[:, :6], np.roll(drawn[:, 6:], 1, axis=1)], axis=1)
    assert abs(np.mean(grid_log_likelihood(model, others) - truth)) > 5 * tolerance


def with_informative_labels(model):
    """The model with labels that say much about an example, and a wide q(z|x, y)."""
    tops = model.tops * np.float32([5, 1])[None, :, None]
    shifts = jax.tree.map(lambda leaf: 5 * leaf, model.shifts)
    model = eqx.tree_at(lambda m: (m.shifts, m.tops), model, (shifts, tops))
    net = model.vae.encoder[0]
    changed = jax.tree.map(jax.numpy.zeros_like, (net.loc, net.log_scale))
    model = eqx.tree_at(
        lambda m: (m.vae.encoder[0].loc, m.vae.encoder[0].log_scale), model, changed
    )
    wide = jax.numpy.full(1, 0.7)  # the log standard deviation
    return eqx.tree_at(lambda m: m.vae.encoder[0].log_scale.bias, model, wide)


def grid_log_likelihood(model, drawn):
    """log p(x|y) of examples with their labels, by summing over a grid of the one latent, `[n]`."""
    z = np.linspace(-12, 12, 4001, dtype=np.float32)
    joint = jax.jit(
        jax.vmap(lambda x: jax.vmap(lambda z: model.log_joint(x, (z[None],)))(jax.numpy.asarray(z)))
    )
    return logsumexp(np.float64(joint(drawn)), axis=1) + np.log(z[1] - z[0])


@pytest.mark.slow
def test_two_sided_bounds_of_a_conditional_run(measured, tmp_path):
    run = shutil.copytree(measured, tmp_path / "run")
    short = Annealing(temperatures=20, chains=2, leapfrog=1, start="prior")
    record = bdmc_run(run, annealing=short, examples=4, k=10)
    one = record["replicates"][1]
    assert one["gap"] == pytest.approx(one["upper"] - one["lower"])
    assert record["dataset"] == "drawn from the model of halves.npz"
    annealed = anneal_run(run, annealing=short, examples=4)
    assert annealed["replicates"][1]["verdict"]["bdmc_gap"] == one["mixed_gap"]

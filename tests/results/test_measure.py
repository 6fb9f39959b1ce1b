"""Records of likelihoods: numbers match the stored values, and these match the library."""

import json
import shutil
import subprocess
from importlib.metadata import version
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small
from iwae import evaluate_run
from iwae.data import load_dataset, test_sha256
from iwae.errors import UserError
from iwae.evaluation.likelihood import log_likelihoods
from iwae.evaluation.units import active_units, authors_active_units
from iwae.models.vae import VAE
from iwae.results import provenance
from iwae.results.summaries import summarise_means
from iwae.runs.model_files import load_model, save_model
from iwae.runs.split_examples import split_examples
from small import PATIENT, finished


def dataset():
    return load_dataset(small.pictures(), validation=50)


def values_of(run, name):
    with np.load(run / "evaluations" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def record():
    return evaluate_run(finished(), ks=[5, 1, 5])


# Numbers


def test_record_has_mean_and_standard_error_of_its_values(record):
    model = load_model(finished() / "models" / "final-0")
    values = values_of(finished(), "test-final-k5")
    assert values["k"].tolist() == [1, 5]
    assert values["index"].tolist() == list(range(50))
    assert values["log_likelihood"].shape == values["ess"].shape == (1, 2, 50)
    assert values["log_likelihood"].dtype == values["ess"].dtype == np.float64
    for i, k in enumerate((1, 5)):
        expected = log_likelihoods(model, dataset().test, jax.random.key(0), k=k)
        np.testing.assert_array_equal(values["log_likelihood"][0, i], expected)
        row = record["by_k"][i]
        assert row["k"] == k
        assert row["log_likelihood"] == pytest.approx(expected.mean(), rel=1e-12)
        assert row["stderr"] == pytest.approx(expected.std(ddof=1) / np.sqrt(50), rel=1e-12)
        assert row["ess_mean"] == pytest.approx(values["ess"][0, i].mean())
    assert record["by_k"][0]["ess_mean"] == 1.0
    assert 1 < record["by_k"][1]["ess_mean"] < 5
    for name in ("k", "log_likelihood", "stderr"):
        assert record[name] == record["by_k"][-1][name]


def test_record_states_everything_its_numbers_depend_on(record):
    data = dataset()
    assert record["dataset"] == "pictures.npz"
    assert (record["split"], record["n"], record["subset"]) == ("test", 50, None)
    assert record["test_sha256"] == test_sha256(data.test) == record["examples_sha256"]
    assert record["data"] == data.identity
    assert record["config"]["latent_sizes"] == [2]
    assert (record["config"]["k"], record["config"]["seed"]) == (2, 0)
    assert record["method"] == "importance sampling"
    assert (record["unit"], record["dtype"], record["seed"]) == ("nats", "float32", 0)
    assert (record["device"], record["devices"]) == ("cpu", 2)
    assert (
        record["versions"] | {"iwae": version("iwae"), "jax": jax.__version__} == record["versions"]
    )
    assert (record["weights"], record["pruned"], record["epoch"]) == ("final", False, 4)


def test_record_is_stored_as_plain_json(record):
    text = (finished() / "evaluations" / "test-final-k5.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == json.loads(json.dumps(record))


def test_active_units_are_counted_by_both_definitions(record):
    model, data = load_model(finished() / "models" / "final-0"), dataset()
    units = active_units(model, data.test, jax.random.key(0))
    assert record["active_units"] == list(units.counts) == [2]
    np.testing.assert_array_equal(
        values_of(finished(), "test-final-k5")["variances_0_1"], units.variances[0]
    )
    train = split_examples(data, "train")[:500]
    authors = authors_active_units(model, train, jax.random.key(0))
    assert record["active_units_authors"] == list(authors.counts)
    assert record["threshold"] == 0.01


@pytest.mark.slow
def test_record_has_an_entry_per_replicate():
    run = finished(replicates=2, **PATIENT)
    record = evaluate_run(run, ks=[5], weights="best")
    values = values_of(run, "test-best-k5")["log_likelihood"]
    means = values[:, 0].mean(axis=1)
    assert means[0] != means[1]
    assert record["log_likelihood"] == pytest.approx(means.mean())
    assert record["between_replicates_sd"] == pytest.approx(means.std(ddof=1))
    (row,) = record["by_k"]
    assert {name: record[name] for name in row} == row
    assert record["stderr"] == pytest.approx(values[:, 0].mean(axis=0).std(ddof=1) / np.sqrt(50))
    for replicate, one in enumerate(record["replicates"]):
        assert one["log_likelihood"] == pytest.approx(means[replicate])
        assert one["replicate"] == replicate
        expected = {name: record[name] for name in ("k", "n", "split", "dataset", "test_sha256")}
        assert {name: one[name] for name in expected} == expected
        assert one["stderr"] > 0
        assert np.shape(one["active_units"]) == (1,)
        alone = evaluate_run(finished(seed=replicate, **PATIENT), ks=[5], weights="best")
        assert one["log_likelihood"] == alone["log_likelihood"]
        assert one["epoch"] == alone["epoch"]


@pytest.mark.slow
def test_final_and_best_weights_are_measured_separately():
    run = finished(replicates=2, **PATIENT)
    final, best = (evaluate_run(run, ks=[5], weights=weights) for weights in ("final", "best"))
    assert final["log_likelihood"] != best["log_likelihood"]
    assert [one["epoch"] for one in final["replicates"]] != [
        one["epoch"] for one in best["replicates"]
    ]
    assert values_of(run, "test-final-k5")["log_likelihood"].shape == (2, 1, 50)


def test_draws_depend_on_the_seed_not_on_the_batch_size():
    plain, other, batched = (
        evaluate_run(finished(), ks=[5], **options)
        for options in ({}, {"seed": 1}, {"batch_size": 7})
    )
    assert plain["log_likelihood"] != other["log_likelihood"]
    assert batched["log_likelihood"] == pytest.approx(plain["log_likelihood"], rel=1e-6)


# Splits


def test_training_pixels_are_binarised_once():
    grey = dataset().train
    drawn, again = (split_examples(dataset(), "train") for _ in range(2))
    np.testing.assert_array_equal(drawn, again)
    assert drawn.dtype == np.uint8
    assert set(np.unique(drawn)) == {0, 1}
    errors = (drawn - grey / 255).mean(axis=0) / np.sqrt(0.25 / len(grey))
    assert np.abs(errors).max() < 5
    assert (drawn[grey == 0] == 0).all()
    assert (drawn[grey == 255] == 1).all()
    assert (drawn != grey // 128).any()  # draws, not a threshold


def test_each_split_is_measured_on_its_own_examples():
    records = {
        split: evaluate_run(finished(), ks=[5], split=split)
        for split in ("train", "validation", "test")
    }
    assert [record["n"] for record in records.values()] == [300, 50, 50]
    assert len({record["log_likelihood"] for record in records.values()}) == 3
    assert len({record["examples_sha256"] for record in records.values()}) == 3
    assert len({record["test_sha256"] for record in records.values()}) == 1
    assert records["train"]["examples_sha256"] == test_sha256(split_examples(dataset(), "train"))


def test_seed_determines_a_subset_from_across_the_split():
    index = {}
    for seed in (0, 0, 1):
        record = evaluate_run(finished(), ks=[5], examples=20, seed=seed)
        name = "test-final-k5-n20" + ("" if seed == 0 else "-seed1")
        chosen = values_of(finished(), name)["index"]
        assert index.setdefault(seed, chosen).tolist() == chosen.tolist()
        assert record["subset"].items() >= {"examples": 20, "seed": seed}.items()
        assert record["n"] == len(chosen) == len(set(chosen.tolist())) == 20
        assert all(a < b for a, b in pairwise(chosen))
        assert chosen.max() > 30
        assert record["examples_sha256"] == test_sha256(dataset().test[chosen])
    assert index[0].tolist() != index[1].tolist()


def test_undefined_numbers_are_null():
    record = evaluate_run(finished(), ks=[5], examples=1)
    assert record["stderr"] is None
    json.dumps(record, allow_nan=False)
    assert summarise_means(log_likelihood=np.array([-np.inf, 1.0])) == {
        "log_likelihood": None,
        "stderr": None,
    }
    assert summarise_means(log_likelihood=np.array([1.0, 3.0])) == {
        "log_likelihood": 2.0,
        "stderr": 1.0,
    }


# Pruning


def with_idle_unit(model):
    """The model with its second unit cut off: q(z_2|x) = p(z_2), and the decoder ignores z_2."""
    places = lambda m: (  # noqa: E731
        m.encoder[0].loc.weight,
        m.encoder[0].log_scale.weight,
        m.decoder_hidden.layers[0].weight,
    )
    loc, scale, decoder = places(model)
    cut = loc.at[:, 1].set(0), scale.at[:, 1].set(0), decoder.at[1].set(0)
    return eqx.tree_at(places, model, cut)


@pytest.mark.slow
def test_pruned_model_matches_the_unpruned_one(tmp_path):
    """One replicate loses an idle unit, the other keeps both."""
    model = load_model(finished() / "models" / "final-0")
    run = small.run_from_models(tmp_path / "run", [with_idle_unit(model), model])
    before, after = (evaluate_run(run, ks=[500], pruned=pruned) for pruned in (False, True))
    assert (before["pruned"], after["pruned"]) == (False, True)
    assert [one["active_units"] for one in before["replicates"]] == [[1], [2]]
    assert before["active_units"] == after["active_units"] == [1.5]
    values = values_of(run, "test-final-pruned-k500")
    assert [values[f"variances_{replicate}_1"].size for replicate in (0, 1)] == [1, 2]
    unpruned = values_of(run, "test-final-k500")
    assert [unpruned[f"variances_{replicate}_1"].size for replicate in (0, 1)] == [2, 2]
    gaps = values["log_likelihood"][:, 0] - unpruned["log_likelihood"][:, 0]
    assert not gaps[1].any()
    noise = np.sqrt(1 / values["ess"][0, 0] + 1 / unpruned["ess"][0, 0])  # of log mean w
    assert np.abs(gaps[0] / noise).max() < 5
    assert noise.max() < 0.2
    assert load_model(run / "models" / "final-0").latent_sizes == (2,)  # as stored


@pytest.mark.slow
def test_pruning_removes_a_whole_layer_of_one_replicate(tmp_path):
    """The mean of q(z_2|z_1) is constant in one model, so its second layer is inactive."""
    sizes = {"latent_sizes": (2, 2), "hidden_sizes": ((5,), (3,))}
    model = VAE(16, **sizes, key=jax.random.key(0))
    constant_mean = eqx.tree_at(
        lambda m: (m.encoder[1].loc.weight, m.encoder[1].loc.bias),
        model,
        (jnp.zeros((3, 2)), jnp.zeros(2)),
    )
    run = small.run_from_models(tmp_path / "run", [constant_mean, model], **sizes)
    record = evaluate_run(run, ks=[5], pruned=True)
    assert [len(one["active_units"]) for one in record["replicates"]] == [1, 2]
    top = record["replicates"][1]["active_units"][1]
    assert record["active_units"][1] == top / 2 > 0


# Invalid requests


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": []}, "name at least one k"),
        ({"ks": [0]}, "k is 0; it must be at least 1"),
        ({"ks": [5, -3]}, "k is -3"),
        ({"seed": -1}, "seed is -1; it must be between 0 and"),
        ({"seed": 2**31}, "seed is 2147483648"),
        ({"examples": 0}, "examples is 0; the test split has 50"),
        ({"examples": 51}, "examples is 51"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"split": "tests"}, "no split 'tests'; known: train, validation, test"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        evaluate_run(finished(), **{"ks": [5], **options})


def test_missing_parts_of_a_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        evaluate_run(tmp_path)
    with pytest.raises(UserError, match="has no best weights: nothing was held out"):
        evaluate_run(small.unvalidated(), weights="best")
    with pytest.raises(UserError, match=r"the validation split of unvalidated\.npz is empty"):
        evaluate_run(small.unvalidated(), split="validation")
    run = small.run_from_models(tmp_path / "run", [load_model(finished() / "models" / "final-0")])
    shutil.rmtree(run / "models")
    with pytest.raises(UserError, match="no model in"):
        evaluate_run(run)


def test_data_of_another_width_are_refused(tmp_path):
    options = small.own_data(tmp_path / "own.npz")
    model = VAE(16, (2,), ((5,),), key=jax.random.key(0))
    run = small.run_from_models(tmp_path / "run", [model], **options)
    # Models of older versions do not say which data they were trained on.
    save_model(model, run / "models" / "final-0", replicate=0, epoch=0)
    nine = small.grey().reshape(400, 16)[:, :9]
    np.savez(tmp_path / "own.npz", train=nine, test=nine)
    with pytest.raises(
        UserError, match=r"examples of own\.npz have 9 values, .* trained on have 16"
    ):
        evaluate_run(run)


def test_other_data_of_the_same_width_are_refused(tmp_path):
    options = small.own_data(tmp_path / "own.npz")
    small.train_in(tmp_path / "run", **options)
    evaluate_run(tmp_path / "run", ks=[1])
    small.own_data(tmp_path / "own.npz", seed=1)
    with pytest.raises(UserError, match=r"not those that .* was trained with"):
        evaluate_run(tmp_path / "run", ks=[1])


def test_non_finite_model_is_an_error(tmp_path):
    model = load_model(finished() / "models" / "final-0")
    broken = eqx.tree_at(lambda m: m.encoder[0].log_scale.bias, model, jnp.full(2, 1e3))
    with pytest.raises(FloatingPointError, match="example 0 is not a number"):
        evaluate_run(small.run_from_models(tmp_path / "run", [broken]), ks=[5])


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_record_notes_uncommitted_code_but_not_uncommitted_results(tmp_path, monkeypatch):
    def git(*arguments):
        done = subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)
        return done.stdout.decode().strip()

    module = tmp_path / "src" / "iwae" / "measure" / "records.py"
    module.parent.mkdir(parents=True)
    module.write_text("a = 1")
    git("init", "-q")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a")
    monkeypatch.setattr(provenance, "__file__", str(module))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.md").write_text("new")
    commit_facts = provenance._commit.__wrapped__  # without its cache
    assert commit_facts() == {"commit": git("rev-parse", "HEAD"), "changed": False}
    module.write_text("a = 2")
    assert commit_facts()["changed"]

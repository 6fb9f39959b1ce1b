"""Records of annealing, two-sided bounds and rate-distortion curves; comparisons of runs."""

import json
import logging
import shutil
from functools import partial

import jax
import numpy as np
import pytest

import small
from iwae import anneal_run, bdmc_run, compare, evaluate_run, information_run, rate_distortion_run
from iwae.data import load_dataset
from iwae.errors import UserError
from iwae.evaluation.examples import gather_examples
from iwae.evaluation.likelihood import annealed_log_likelihood_slabs
from iwae.inference.temperatures import linear_schedule, sigmoid_schedule
from iwae.results import ais, unfinished
from iwae.results.ais import Annealing, ais_keys
from iwae.results.description import comparison_description
from iwae.runs.model_files import load_model
from iwae.runs.split_examples import split_examples
from small import PATIENT, finished

SHORT = Annealing(temperatures=20, chains=4, leapfrog=2)
NAME = "test-final-ais-T20-c4-l2-sigmoid-posterior-n20"


def values_of(run, name):
    with np.load(run / "evaluations" / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def copy_of(run, folder):
    return shutil.copytree(run, folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of this module's own, annealed first, since a record affects later ones."""
    folder = small.unmeasured(finished(), tmp_path_factory.mktemp("annealing") / "run")
    anneal_run(folder, annealing=SHORT, examples=20)
    return folder


@pytest.fixture(scope="module")
def record(run):
    return json.loads((run / "evaluations" / f"{NAME}.json").read_text())


# Annealed importance sampling


def test_record_has_the_values_of_both_lengths(run, record):
    values = values_of(run, NAME)
    assert values["temperatures"].tolist() == [2, 20]
    assert values["log_likelihood"].shape == values["acceptance"].shape == (1, 2, 20)
    for i, (row, length) in enumerate(zip(record["by_temperatures"], (2, 20), strict=True)):
        mine = values["log_likelihood"][0, i]
        assert row["temperatures"] == length
        assert row["log_likelihood"] == pytest.approx(mine.mean(), rel=1e-12)
        assert row["stderr"] == pytest.approx(mine.std(ddof=1) / np.sqrt(20), rel=1e-12)
        assert row["ess_mean"] == pytest.approx(values["ess"][0, i].mean())
        assert row["monte_carlo_error"] > 0
        assert row["pareto_k_unreliable"] is None  # 4 chains have no tail
    for name in ("log_likelihood", "stderr", "temperatures"):
        assert record[name] == record["by_temperatures"][-1][name]
    assert record["k"] == 4
    difference = values["log_likelihood"][0, 1] - values["log_likelihood"][0, 0]
    assert record["verdict"]["difference"] == pytest.approx(difference.mean())


def test_values_match_the_library_at_the_stored_step_sizes(run, record):
    values = values_of(run, NAME)
    model = load_model(run / "models" / "final-0")
    data = load_dataset(small.pictures(), validation=50).test[values["index"]]
    slabs = annealed_log_likelihood_slabs(
        model,
        data,
        ais_keys(0, 20)[1],
        chains=4,
        betas=sigmoid_schedule(20),
        step_size=values["step_sizes_0_20"],
        n_leapfrog=2,
        batch_size=7,
    )
    mine = gather_examples(slabs)["log_likelihood"]
    np.testing.assert_allclose(mine, values["log_likelihood"][0, 1], rtol=1e-5)
    assert record["subset"] == {"examples": 20, "seed": 0}


def test_step_sizes_are_tuned_on_training_examples_with_another_key(run, record, monkeypatch):
    seen = {}

    def tune(model, examples, key, **options):  # noqa: ARG001
        seen[options["betas"].size] = examples, jax.random.key_data(key).tolist()
        return np.full(options["betas"].size - 1, 0.3, np.float32)

    monkeypatch.setattr(ais, "tune_step_size", tune)
    measured = anneal_run(run, annealing=SHORT, examples=20, seed=1)
    train = split_examples(load_dataset(small.pictures(), validation=50), "train")
    for length, (examples, key) in seen.items():
        assert len(examples) == 32
        rows = {row.tobytes() for row in train}
        assert all(row.tobytes() in rows for row in examples)
        assert key != jax.random.key_data(ais_keys(1, length)[1]).tolist()
    assert measured["by_temperatures"][-1]["step_size_max"] == pytest.approx(0.3)
    assert record["pilot"]["split"] == "train"


@pytest.mark.slow
def test_pilot_for_the_training_split_uses_validation_examples(run, tmp_path):
    assert anneal_run(run, annealing=SHORT, split="train", examples=4)["pilot"]["split"] == (
        "validation"
    )
    alone = small.unmeasured(small.unvalidated(), tmp_path / "run")
    with pytest.raises(UserError, match="hold out a validation split"):
        anneal_run(alone, annealing=SHORT, split="train", examples=4)


@pytest.mark.slow
def test_annealing_agrees_with_importance_sampling(run):
    longer = Annealing(temperatures=100, chains=8, leapfrog=4)
    record = anneal_run(run, annealing=longer)
    evaluate_run(run, ks=[2000])
    a = values_of(run, "test-final-ais-T100-c8-l4-sigmoid-posterior")["log_likelihood"][0, 1]
    b = values_of(run, "test-final-k2000")["log_likelihood"][0, 0]
    error = np.hypot(record["monte_carlo_error"], 1e-3)
    assert abs((a - b).mean()) < 5 * error
    assert record["verdict"]["word"] == "converged"
    assert record["ordering"]["violations"] == []


def test_given_temperatures_are_thinned_for_the_shorter_run():
    betas = tuple((np.linspace(0, 1, 40) ** 2).tolist())
    given = Annealing(temperatures=40, schedule=betas)
    given.check()
    np.testing.assert_allclose(given.betas(40), betas)
    thin = given.betas(4)
    assert (thin[0], thin[-1], len(thin)) == (0, 1, 4)
    assert thin[1] == pytest.approx(betas[13])
    linear = Annealing(schedule="linear").betas(7)
    np.testing.assert_array_equal(linear, linear_schedule(7))


# Interrupted evaluations


def interrupt_after(slabs):
    """A `track` that raises KeyboardInterrupt after this many slabs of the longer run."""

    def track(items, total, label):  # noqa: ARG001
        for i, item in enumerate(items):
            if label.endswith("20 temperatures") and i == slabs:
                raise KeyboardInterrupt
            yield item

    return track


@pytest.mark.slow
def test_stopped_evaluation_resumes_where_it_stopped(record, tmp_path, monkeypatch):
    run, starts = small.unmeasured(finished(), tmp_path / "run"), []
    options = {"annealing": SHORT, "examples": 20, "batch_size": 2}
    with pytest.raises(KeyboardInterrupt):
        anneal_run(run, **options, track=interrupt_after(2))
    kept = sorted((run / "evaluations" / "unfinished").iterdir())
    assert len(kept) == 5  # the subset, step sizes and values of two lengths

    def slabs(*arguments, first, **more):
        starts.append(first)
        return annealed_log_likelihood_slabs(*arguments, first=first, **more)

    monkeypatch.setattr(ais, "annealed_log_likelihood_slabs", slabs)
    monkeypatch.setattr(ais, "tune_step_size", pytest.fail)
    again = anneal_run(run, **options)
    batch = 2 * jax.device_count()
    assert starts == [20, 3 * batch]
    assert not (run / "evaluations" / "unfinished").exists()
    assert again["log_likelihood"] == pytest.approx(record["log_likelihood"], rel=1e-6)


@pytest.mark.slow
def test_resumed_evaluation_matches_an_uninterrupted_one(tmp_path):
    options = {"annealing": SHORT, "examples": 20, "batch_size": 2}
    first, second = (small.unmeasured(finished(), tmp_path / name / "run") for name in ("a", "b"))
    anneal_run(first, **options)
    with pytest.raises(KeyboardInterrupt):
        anneal_run(second, **options, track=interrupt_after(1))
    anneal_run(second, **options)
    expected, result = values_of(first, NAME), values_of(second, NAME)
    for name in expected:
        np.testing.assert_array_equal(result[name], expected[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "label"),
    [
        (partial(bdmc_run, annealing=SHORT, k=20), "20 samples"),
        (partial(information_run, k=4), "mutual information"),
    ],
)
def test_second_half_of_a_measurement_resumes(measure, label, tmp_path, monkeypatch):
    monkeypatch.setattr("iwae.evaluation.examples.SLAB_ROWS", 40)
    measure = partial(measure, examples=20, batch_size=2)
    one, other = (small.unmeasured(finished(), tmp_path / name / "run") for name in ("a", "b"))
    measure(one)

    def interrupted(slabs, total, description):  # noqa: ARG001
        for i, slab in enumerate(slabs):
            if label in description and i == 2:
                raise KeyboardInterrupt
            yield slab

    seen = []

    def counted(slabs, total, description):
        slabs = list(slabs)
        seen.append(
            (label in description, total, [len(next(iter(slab.values()))) for slab in slabs])
        )
        return slabs

    with pytest.raises(KeyboardInterrupt):
        measure(other, track=interrupted)
    measure(other, track=counted)
    assert seen[0] == (False, 20, [20])  # all of it was kept
    assert seen[1][:2] == (True, 20)
    assert seen[1][2][0] == 3 * 2 * jax.device_count()
    assert sum(seen[1][2]) == 20
    (name,) = (path.stem for path in (one / "evaluations").glob("*.json"))
    expected, result = values_of(one, name), values_of(other, name)
    for key in expected:
        np.testing.assert_array_equal(result[key], expected[key])
    assert not (other / "evaluations" / "unfinished").exists()


def test_another_seed_or_model_does_not_resume(tmp_path):
    kept = unfinished.Unfinished(tmp_path)
    settings = {"seed": 0, "model": "a"}
    slab = {"x": np.arange(3.0)}
    assert len(list(kept.slabs(settings, lambda first: iter([slab][first:])))) == 1
    for change in ({}, {"seed": 1}, {"model": "b"}):
        starts = []

        def make(first, starts=starts):
            starts.append(first)
            return iter(())

        list(unfinished.Unfinished(tmp_path).slabs({**settings, **change}, make))
        assert starts == [3 if not change else 0]
    kept.forget()
    assert not kept.folder.exists()


def test_damaged_partial_results_are_reported(tmp_path, caplog):
    kept = unfinished.Unfinished(tmp_path)
    list(kept.slabs({}, lambda first: iter([{"x": np.arange(3.0)}][first:])))
    kept.used[0].write_bytes(kept.used[0].read_bytes()[:40])
    starts = []
    list(unfinished.Unfinished(tmp_path).slabs({}, lambda first: iter(starts.append(first) or ())))
    assert starts == [0]
    assert "is damaged" in caplog.text


# Two-sided bounds


@pytest.mark.slow
def test_two_sided_bounds_are_summarised_and_used_by_the_verdict(run):
    both = bdmc_run(run, annealing=SHORT, examples=30, k=200)
    values = values_of(run, "simulated-final-bdmc-T20-c4-l2-sigmoid-posterior-k200-n30")
    for name in ("lower", "upper", "mixed_upper"):
        assert both[name] == pytest.approx(values[name][0].mean())
    for name in ("lower", "upper"):
        assert both["importance"][name] == pytest.approx(values[f"importance_{name}"][0].mean())
    gap = values["upper"][0] - values["lower"][0]
    assert both["gap"] == pytest.approx(gap.mean())
    assert both["gap_stderr"] == pytest.approx(gap.std(ddof=1) / np.sqrt(30))
    assert (both["n"], both["split"], both["importance"]["k"]) == (30, "simulated", 200)
    # Both are of the same examples, so their values correlate.
    assert np.corrcoef(values["lower"][0], values["importance_lower"][0])[0, 1] > 0.9
    verdict = anneal_run(run, annealing=SHORT, examples=20)["verdict"]
    mixed = values["mixed_upper"][0] - values["lower"][0]
    assert both["mixed_gap"] == verdict["bdmc_gap"] == pytest.approx(mixed.mean())
    other = Annealing(temperatures=20, chains=4, leapfrog=2, schedule="linear")
    assert anneal_run(run, annealing=other, examples=20)["verdict"]["bdmc_gap"] is None


# Ordering


def test_bounds_out_of_order_are_reported(tmp_path, caplog):
    run = small.unmeasured(finished(), tmp_path / "run")
    assert evaluate_run(run, ks=[1, 50])["ordering"] == {
        "checked": ["L_1", "L_50"],
        "violations": [],
    }
    path = run / "evaluations" / "test-final-k50.npz"
    values = values_of(run, "test-final-k50")
    values["log_likelihood"] = values["log_likelihood"] + 10
    np.savez(path, **values)
    with caplog.at_level(logging.WARNING):
        ordering = anneal_run(run, annealing=SHORT, examples=20)["ordering"]
    assert ordering["checked"] == ["L_1", "L_50", "AIS_20"]
    assert len(ordering["violations"]) == 2
    assert all("below L_" in violation for violation in ordering["violations"])
    assert caplog.text.count("NOT IN ORDER") == 2


@pytest.mark.slow
def test_bounds_of_another_model_are_not_compared(tmp_path):
    run = small.unmeasured(finished(), tmp_path / "run")
    evaluate_run(run, ks=[1, 50])
    shutil.rmtree(run / "models")
    shutil.copytree(finished(seed=1, **PATIENT) / "models", run / "models")
    assert anneal_run(run, annealing=SHORT, examples=20)["ordering"]["checked"] == []


# Comparing runs


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two runs on the same data and one on other data."""
    folder = tmp_path_factory.mktemp("compared")
    runs = [
        small.unmeasured(finished(), folder / "a"),
        small.unmeasured(finished(replicates=2, **PATIENT), folder / "b"),
        small.unmeasured(finished(**small.own_data(folder / "others.npz", seed=1)), folder / "c"),
    ]
    for run in runs:
        evaluate_run(run, ks=[1, 20])
    return runs


def test_comparison_is_paired(measured):
    a, b, _ = measured
    record = compare([a, b])
    first = values_of(a, "test-final-k20")["log_likelihood"][0, 1]
    second = values_of(b, "test-final-k20")["log_likelihood"][:, 1]
    difference = second.mean(axis=0) - first
    row = record["runs"][1]
    assert (record["estimator"], record["n"]) == ("L_20", 50)
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["difference_stderr"] == pytest.approx(difference.std(ddof=1) / np.sqrt(50))
    assert row["between_replicates_sd"] == pytest.approx(second.mean(axis=1).std(ddof=1))
    assert record["runs"][0]["log_likelihood"] == pytest.approx(first.mean())
    assert record["runs"][0]["difference"] is None
    assert len(compare([a, b, a])["runs"]) == 3
    assert compare([a, b], estimator="L_1")["estimator"] == "L_1"
    json.dumps(record, allow_nan=False)


def test_subset_is_compared_on_shared_examples(measured, tmp_path):
    a, b, _ = measured
    part = copy_of(a, tmp_path)
    for path in (part / "evaluations").iterdir():
        path.unlink()
    evaluate_run(part, ks=[20], examples=30)
    record = compare([b, part])
    index = values_of(part, "test-final-k20-n30")["index"]
    full = values_of(b, "test-final-k20")["log_likelihood"][:, 1].mean(axis=0)[index]
    mine = values_of(part, "test-final-k20-n30")["log_likelihood"][0, 0]
    assert record["n"] == 30
    assert record["runs"][1]["difference"] == pytest.approx((mine - full).mean())


def test_incomparable_runs_are_refused(measured, tmp_path):
    a, b, c = measured
    with pytest.raises(UserError, match="different test sets"):
        compare([a, c])
    with pytest.raises(UserError, match="at least two runs"):
        compare([a])
    with pytest.raises(UserError, match=r"has no L_7; it has L_1, L_20"):
        compare([a, b], estimator="L_7")
    with pytest.raises(UserError, match=r"b has not been measured: iwae evaluate .*b$"):
        compare([a, small.unmeasured(a, tmp_path / "b")])
    with pytest.raises(UserError, match="a was measured with final weights: add --weights final"):
        compare([a, b], weights="best")
    with pytest.raises(UserError, match="weights are final or best or both, not 'last'"):
        compare([a, b], weights="last")
    with pytest.raises(UserError, match="holds no run"):
        compare([a, tmp_path])


def test_best_and_final_weights_of_a_run_are_compared(tmp_path):
    run = small.unmeasured(finished(replicates=2, **PATIENT), tmp_path / "run")
    each = [evaluate_run(run, ks=[20], weights=weights) for weights in ("final", "best")]
    record = compare([run], weights="both")
    assert [row["weights"] for row in record["runs"]] == ["final", "best"]
    means = [row["log_likelihood"] for row in record["runs"]]
    assert means == pytest.approx([one["log_likelihood"] for one in each])
    assert record["runs"][1]["difference"] == pytest.approx(means[1] - means[0])
    head, final, best = comparison_description(record).splitlines()
    assert "final and best weights" in head
    assert f"{run}, final  {means[0]:.3f} +- " in final
    assert f"{run}, best   {means[1]:.3f} +- " in best


@pytest.mark.slow
def test_comparison_needs_the_same_splits_and_annealing(measured, tmp_path):
    a, b, _ = measured
    runs = [copy_of(one, tmp_path / name) for one, name in ((a, "a"), (b, "b"))]
    for run, chosen in zip(runs, (SHORT, Annealing(20, 4, 3)), strict=True):
        anneal_run(run, annealing=chosen, examples=6)
    assert compare(runs)["estimator"] == "L_20"  # six examples are too few to be preferred
    with pytest.raises(UserError, match="were not annealed alike"):
        compare(runs, estimator="AIS_20")
    for run in runs:
        evaluate_run(run, ks=[1], split="validation")
    record = json.loads((runs[1] / "evaluations" / "validation-final-k1.json").read_text())
    assert compare(runs, split="validation")["n"] == 50
    record["data"] = {**record["data"], "validation": 49}
    (runs[1] / "evaluations" / "validation-final-k1.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="different validation sets"):
        compare(runs, split="validation")


@pytest.mark.parametrize("content", ["{", "[]", '{"method": 3}', "null"])
def test_invalid_records_are_skipped_with_a_warning(measured, tmp_path, caplog, content):
    run = copy_of(measured[0], tmp_path)
    (run / "evaluations" / "notes.json").write_text(content)
    assert compare([run, measured[1]])["n"] == 50
    assert ("notes.json cannot be read as a record" in caplog.text) == (content != '{"method": 3}')
    (run / "evaluations" / "test-final-k20.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="has not been measured"):
        compare([run, measured[1]])
    assert "cannot be read" in caplog.text


# Curves


@pytest.mark.slow
def test_rate_distortion_curve_passes_through_the_likelihood(run):
    record = rate_distortion_run(run, temperatures=60, chains=8, leapfrog=3, examples=20)
    values = values_of(run, "test-final-T60-c8-l3-n20-rate-distortion")
    betas = values["betas"]
    assert (betas[0], betas[-1]) == (0, pytest.approx(4))
    assert values["rate"].shape == values["distortion"].shape == (1, 20, len(betas))
    one = int(np.flatnonzero(betas == 1)[0])
    at_one = -(values["rate"] + values["distortion"])[0, :, one]
    assert record["log_likelihood"] == pytest.approx(at_one.mean())
    evaluate_run(run, ks=[2000], examples=20)
    exact = values_of(run, "test-final-k2000-n20")["log_likelihood"][0, 0]
    assert abs((at_one - exact).mean()) < 0.2
    rate, distortion = (values[name][0].mean(axis=0) for name in ("rate", "distortion"))
    assert 0 == rate[0] < rate[one] < rate[-1]
    assert distortion[0] > distortion[one] > distortion[-1]


# Invalid requests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperatures": 19}, "temperatures is 19; a tenth of them"),
        ({"chains": 0}, "chains is 0"),
        ({"leapfrog": 0}, "n_leapfrog is 0"),
        ({"schedule": "cubic"}, "no schedule 'cubic'; known: sigmoid, linear"),
        ({"start": "nowhere"}, "no start 'nowhere'; known: posterior, prior"),
        ({"schedule": (0.0, 1.0)}, "temperatures is 500, but 2 of them are given"),
        ({"schedule": (0.0, *[0.5] * 20, 1.0), "temperatures": 22}, "must increase"),
    ],
)
def test_invalid_annealing_settings_are_refused(run, change, message):
    with pytest.raises(UserError, match=message):
        anneal_run(run, annealing=Annealing(**change))


def test_invalid_options_are_refused(run):
    with pytest.raises(UserError, match="tolerance is 0"):
        anneal_run(run, annealing=SHORT, tolerance=0.0)
    with pytest.raises(UserError, match="examples is 0"):
        bdmc_run(run, annealing=SHORT, examples=0)
    with pytest.raises(UserError, match="k is 1; the true latent"):
        bdmc_run(run, annealing=SHORT, k=1)
    with pytest.raises(UserError, match="temperatures is 1; a curve"):
        rate_distortion_run(run, temperatures=1)

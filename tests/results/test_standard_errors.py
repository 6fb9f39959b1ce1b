"""Errors of a likelihood: of pixel draws, subsets and particles, and how they are described."""

import json
import re
import zipfile

import jax
import numpy as np
import pytest

import small
from iwae import evaluate_run
from iwae.data import choose, load_dataset
from iwae.data.binarisation import redraw_binarisation
from iwae.errors import UserError
from iwae.evaluation.likelihood import log_likelihoods
from iwae.experiments import cell_means
from iwae.experiments.cell_means import (
    cell_mean_errors,
    cell_mean_gap,
    cell_mean_gap_of_run,
    cell_mean_over_draws,
)
from iwae.experiments.cell_results import Cell
from iwae.results import extrapolation
from iwae.results.compare import compare
from iwae.results.description import comparison_description, describe
from iwae.results.extrapolation import _over, difference_estimate, read_extrapolated_records
from iwae.results.formatting import format_errors
from iwae.results.frame import results
from iwae.results.likelihood import importance_key
from iwae.results.reading import Estimate, Known, read_bounds, read_estimates
from iwae.results.record_files import read_record_arrays, write_record_files
from iwae.results.schema import Binarizations, Record, SampledRow, Whole
from iwae.results.subsets import STRATA, stratified_subset, subset_facts, subset_places
from iwae.results.summaries import summarise_draws, summarise_means, summarise_weights
from iwae.runs.model_files import load_model
from iwae.wording import count_in_words
from small import finished

# Pixel draws


def test_binarisation_seed_determines_the_draw():
    data = load_dataset(small.pictures(), validation=50, binarization_seed=3)
    assert redraw_binarisation(data, 0) is data
    other = load_dataset(small.pictures(), validation=50, binarization_seed=5)
    again = redraw_binarisation(data, 2)
    np.testing.assert_array_equal(again.test, other.test)
    assert again.identity == {
        **other.identity,
        "validation_sha256": data.identity["validation_sha256"],
    }
    assert (again.test != data.test).any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"binarization": "static"}, "it is binarised once, for training and testing"),
        ({"binarization": "threshold"}, "it is binarised by a threshold, not by chance"),
        ({"observation": "gaussian"}, "its values are measured as they are stored"),
    ],
)
def test_redrawing_a_fixed_test_set_is_refused_with_the_reason(options, reason):
    data = load_dataset(small.pictures(), **options)
    with pytest.raises(UserError, match=f"pictures.npz has no other draws: {reason}"):
        redraw_binarisation(data, 0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    run = small.unmeasured(finished(), tmp_path_factory.mktemp("drawn") / "run")
    return run, evaluate_run(run, ks=[1, 5], binarizations=3)


def test_record_has_the_mean_over_draws_beside_the_default_draw(drawn):
    run, record = drawn
    usual = evaluate_run(finished(), ks=[1, 5])
    values = read_record_arrays(run / "evaluations" / "test-final-k5-draws3.json")
    assert values["draws"].shape == (1, 2, 3, 50)
    np.testing.assert_array_equal(values["draws"][:, :, 0], values["log_likelihood"])
    model = load_model(run / "models" / "final-0")
    for i, k in enumerate((1, 5)):
        row, draws = record["by_k"][i], values["draws"][0, i]
        assert row["log_likelihood"] == usual["by_k"][i]["log_likelihood"]
        other = load_dataset(small.pictures(), validation=50, binarization_seed=2).test
        expected = log_likelihoods(model, other, importance_key(0, 2), k=k)
        np.testing.assert_array_equal(draws[2], expected)
        found = row["binarizations"]
        assert found["draws"] == 3
        assert found["log_likelihood"] == pytest.approx(draws.mean())
        assert found["stderr"] == pytest.approx(draws.mean(axis=0).std(ddof=1) / np.sqrt(50))
        one = np.sqrt(draws.var(axis=0, ddof=1).sum()) / 50
        assert found["one_draw_error"] == pytest.approx(one)
        assert found["draws_error"] == pytest.approx(one / np.sqrt(3))
    assert record["binarizations"] == record["by_k"][-1]["binarizations"]


def test_draw_error_matches_the_spread_of_repeats():
    """2,000 repeats of 4 draws of 30 examples, which differ far more than their draws."""
    rng = np.random.default_rng(0)
    examples, noise = rng.normal(-90, 20, 30), np.linspace(0.5, 3, 30)
    repeats = examples + noise * rng.normal(size=(2000, 4, 30))
    summaries = [summarise_draws(one) for one in repeats]
    assert np.std([one["log_likelihood"] for one in summaries]) == pytest.approx(
        np.sqrt(np.mean([one["draws_error"] ** 2 for one in summaries])), rel=0.06
    )
    assert np.std(repeats[:, 0].mean(axis=1)) == pytest.approx(
        np.sqrt(np.mean([one["one_draw_error"] ** 2 for one in summaries])), rel=0.06
    )
    impossible = np.where(np.arange(30) == 7, -np.inf, repeats[0])
    assert summarise_draws(impossible)["log_likelihood"] is None


@pytest.mark.slow
def test_replicates_share_the_draws(tmp_path):
    run = small.unmeasured(finished(replicates=2, **small.PATIENT), tmp_path / "run")
    record = evaluate_run(run, ks=[5], binarizations=2)
    draws = read_record_arrays(run / "evaluations" / "test-final-k5-draws2.json")["draws"]
    assert draws.shape == (2, 1, 2, 50)
    assert record["binarizations"]["log_likelihood"] == pytest.approx(draws.mean())
    spread = draws.mean(axis=0)[0].var(axis=0, ddof=1)
    assert record["binarizations"]["one_draw_error"] == pytest.approx(np.sqrt(spread.sum()) / 50)
    errors = [one["monte_carlo_error"] for one in record["replicates"]]
    assert record["monte_carlo_error"] == pytest.approx(np.mean(errors))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binarizations": 1}, "binarizations is 1; their spread needs at least 2"),
        ({"binarizations": 2, "split": "train"}, "draws of the test split, not of train"),
    ],
)
def test_invalid_draws_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        evaluate_run(finished(), ks=[1], **options)


def test_each_draw_has_its_own_particles():
    keys = {jax.random.key_data(importance_key(0, draw)).tobytes() for draw in range(4)}
    assert len(keys) == 4
    assert jax.random.key_data(importance_key(5, 0)).tolist() == [0, 5]
    children = [jax.random.fold_in(importance_key(0, 0), i) for i in range(4)]  # of examples
    assert not keys & {jax.random.key_data(key).tobytes() for key in children}


# Subsets


def test_subset_is_extrapolated_by_the_difference_estimator():
    control = np.array([-90.0, -80.0, -70.0, -100.0])
    places = np.array([1, 2])
    found = difference_estimate(control[places] + [1.0, 3.0], control, places, "L_5")
    assert (found.n, found.by, found.log_likelihood) == (4, "L_5", -85.0 + 2.0)
    assert found.subset_error == pytest.approx(np.sqrt(2 / 2 * (1 - 2 / 4)))  # sd sqrt(2), m = 2
    assert found.stderr == pytest.approx(12 / 10 * control.std(ddof=1) / 2)
    whole = difference_estimate(control + 1, control, np.arange(4), "L_5")
    assert (whole.log_likelihood, whole.subset_error) == (-84.0, 0.0)
    impossible = np.append(control, -np.inf)
    assert difference_estimate(control[places], impossible, places, "L_5").stderr is None


def test_subset_error_matches_the_spread_around_the_full_mean():
    """Subsets of half of 200 examples, whose plain means are off by 20 times the error."""
    rng = np.random.default_rng(0)
    control = rng.normal(-90, 25, 200)
    bound = control + rng.gamma(2, 0.4, 200)
    off = []
    for seed in range(1000):
        places = choose(200, 100, seed=seed)
        found = difference_estimate(bound[places], control, places, "L_5")
        off.append((found.log_likelihood - bound.mean()) / found.subset_error)
    assert np.std(off) == pytest.approx(1, abs=0.09)  # 4 standard errors
    assert abs(np.mean(off)) < 0.13


def test_stratified_subset_samples_each_tenth_equally():
    rng = np.random.default_rng(0)
    values = rng.normal(-90, 25, 1000)
    places = stratified_subset(values, 100, 0)
    tenth = np.argsort(np.argsort(values))[places] // (1000 // STRATA)
    assert np.bincount(tenth).tolist() == [10] * STRATA
    assert sorted(set(places.tolist())) == places.tolist()
    other = stratified_subset(values + rng.normal(0, 1, 1000), 100, 0)  # another, similar model
    assert np.isin(places, other).mean() > 0.9
    assert np.isin(places, choose(1000, 100)).mean() > 0.7  # overlaps with plain subsets too
    assert stratified_subset(values, 100, 1).tolist() != places.tolist()
    assert stratified_subset(values, 1000, 0).tolist() == list(range(1000))
    # Every example is equally likely where the tenths cannot have equal shares.
    counts = np.zeros(60)
    for seed in range(2000):
        counts[stratified_subset(values[:60], 15, seed)] += 1
    assert np.abs(counts / 500 - 1).max() < 0.2  # 5 standard errors


def write_record(run, name, by_k, subset=None, **more):
    """Write a record of 100 examples, or of a subset; `by_k` has the bounds of all by k."""
    index = np.arange(100) if subset is None else subset
    values = np.stack([np.asarray(bound)[index] for bound in by_k.values()])[None]
    more = {"ess_mean": 2.0, **more}
    rows = [
        {"k": k, **summarise_means(log_likelihood=v), **more}
        for k, v in zip(by_k, values[0], strict=True)
    ]
    document = {
        "method": "importance sampling",
        "dataset": "mnist",
        "split": "test",
        "weights": "final",
        "pruned": False,
        "n": len(index),
        "k": max(by_k),
        "subset": None if subset is None else {"examples": len(index), "seed": 0},
        "test_sha256": "t",
        "model_sha256": "m",
        "active_units": [2],
        "data": {"binarization": "dynamic"},
        **rows[-1],
        "by_k": rows,
    }
    arrays = {"k": np.array(list(by_k)), "index": index, "log_likelihood": values}
    path = run / "evaluations" / f"{name}.json"
    write_record_files(path, json.loads(json.dumps(document)), arrays)
    return path


LOW = np.random.default_rng(0).normal(-90, 25, 100)
HIGH = LOW + np.random.default_rng(1).gamma(2, 0.2, 100)
SOME = choose(100, 20, seed=4)
DRAWS = {
    "draws": 8,
    "log_likelihood": LOW.mean() - 0.5,
    "stderr": 2.0,
    "draws_error": 0.03,
    "one_draw_error": 0.08,
}


def test_subset_bound_is_extrapolated_once_all_examples_are_measured(tmp_path):
    path = write_record(tmp_path, "some", {500: HIGH}, SOME)
    (_, alone), *_ = read_extrapolated_records(tmp_path)
    (estimate,) = read_estimates(alone)
    assert alone.by_k[0].whole is None
    assert estimate.quoted.mean == pytest.approx(HIGH[SOME].mean())
    assert estimate.examples == "20, a random subset"
    assert "L_500 = " in describe(alone)
    assert "(a random subset)" in describe(alone)

    write_record(tmp_path, "all", {50: LOW})
    found = dict(read_extrapolated_records(tmp_path))[path]
    (estimate,) = read_estimates(found)
    expected = LOW.mean() + (HIGH - LOW)[SOME].mean()
    assert estimate.quoted.mean == found.whole.log_likelihood == pytest.approx(expected)
    assert estimate.examples == "100, from 20 and L_50 of all"
    assert f"L_500 = {expected:.3f} +- " in describe(found)
    assert "for all 100 examples, subset error 0." in describe(found)
    row = next(one for one in results([tmp_path]) if one.subset)
    assert (row.whole_mean, row.mean) == (pytest.approx(expected), pytest.approx(HIGH[SOME].mean()))

    text = path.with_name("all.json").read_text()
    path.with_name("all.json").write_text(text.replace('"m"', '"another model"'))
    assert dict(read_extrapolated_records(tmp_path))[path].whole is None


SETTINGS = {"temperatures": 20, "chains": 4, "leapfrog": 2, "schedule": "sigmoid"}


def write_two_sided_record(run, name, lower, subset=None, **more):
    """Write a record of two-sided bounds whose upper side is 1 nat above the lower."""
    index = np.arange(len(lower)) if subset is None else subset
    mean, error = float(lower[index].mean()), 0.1
    sides = {"lower": mean, "upper": mean + 1, "gap": 1.0}
    sides |= {f"{side}_stderr": error for side in ("lower", "upper", "gap")}
    document = {
        "method": "sandwich",
        "dataset": "mnist",
        "split": "test",
        "weights": "final",
        "pruned": False,
        "n": len(index),
        "subset": None if subset is None else {"examples": len(index), "seed": 0},
        "test_sha256": "t",
        "model_sha256": "m",
        "annealing": SETTINGS,
        "acceptance_mean": 0.6,
        "ess_mean": 2.0,
        "verdict": {"word": "converged", "tolerance": 0.5},
        "importance": {"k": 50, "ess_mean": 2.0, **sides},
        **sides,
        **more,
    }
    values = {"lower": lower[index][None], "upper": lower[index][None] + 1}
    arrays = {"index": index, **values, **{f"importance_{s}": v for s, v in values.items()}}
    path = run / "evaluations" / f"{name}.json"
    write_record_files(path, document, arrays)
    return path


def test_two_sided_bounds_are_extrapolated_and_paired_with_simulated_ones(tmp_path):
    path = write_two_sided_record(tmp_path, "sandwich", HIGH, SOME)
    alone = dict(read_extrapolated_records(tmp_path))[path]
    assert alone.lower_whole is None
    assert "all examples" not in describe(alone)
    assert "simulated examples: not measured with these settings" in describe(alone)

    # Later records count as well.
    write_record(tmp_path, "all", {50: LOW})
    simulated = {"method": "bidirectional Monte Carlo", "split": "simulated"}
    write_two_sided_record(tmp_path, "simulated", LOW, **simulated)
    other = {**SETTINGS, "chains": 5}
    write_two_sided_record(tmp_path, "other", np.append(HIGH, HIGH), **simulated, annealing=other)
    found = dict(read_extrapolated_records(tmp_path))[path]
    expected = LOW.mean() + (HIGH - LOW)[SOME].mean()
    for part in (found, found.importance):
        assert part.lower_whole.log_likelihood == pytest.approx(expected)
        assert part.upper_whole.log_likelihood == pytest.approx(expected + 1)
        assert part.upper_whole.n == 100
    assert (found.simulated.n, found.simulated.lower) == (100, pytest.approx(LOW.mean()))
    assert found.simulated.importance.k == 50
    description = describe(found)
    assert re.search(rf"annealing, all examples: +between {expected:.3f} \+- ", description)
    assert "by L_50 of all 100" in description
    assert "not measured" not in description


def test_quoted_bits_are_extrapolated_to_all_examples():
    whole = Whole(n=50, by="L_5", log_likelihood=-90.0, stderr=1.0, subset_error=0.1)
    bits = {"bits_per_dimension": 1.0, "bits_per_dimension_stderr": 0.02}
    row = SampledRow(k=5, log_likelihood=-100.0, stderr=2.0, **bits)
    alone = Estimate("L_5", (0, 5), -100.0, 2.0, None, row, None)
    assert alone.quoted_bits == (1.0, 0.02)
    carried = alone._replace(row=row.model_copy(update={"whole": whole}))
    assert carried.quoted == (-90.0, 1.0)
    assert carried.quoted_bits == pytest.approx((0.9, 0.01))


def test_draws_of_another_bound_are_extrapolated(tmp_path):
    all_, some = (
        write_record(tmp_path, "all", {500: HIGH}),
        write_record(tmp_path, "some", {500: HIGH}, SOME),
    )
    assert "pixel draw error not measured" in describe(
        dict(read_extrapolated_records(tmp_path))[all_]
    )
    own = write_record(tmp_path, "drawn", {50: LOW}, binarizations=DRAWS, monte_carlo_error=0.04)
    found = dict(read_extrapolated_records(tmp_path))
    assert found[own].by_k[0].binarizations.by is None
    carried = found[all_].by_k[0].binarizations
    assert carried.by == "L_50"
    assert carried.log_likelihood == pytest.approx(HIGH.mean() - 0.5)
    assert carried.draws_error == pytest.approx(0.05)  # 3, 4, 5
    assert carried.one_draw_error == 0.08
    spread = HIGH.std() / LOW.std()  # L_500 varies more by the same factor over all draws
    assert carried.stderr == pytest.approx(2.0 * spread)
    assert "of one draw 0.080 (draws of L_50)" in describe(found[all_])
    whole = found[some].by_k[0]
    assert whole.binarizations.log_likelihood == pytest.approx(whole.whole.log_likelihood - 0.5)


def test_draws_of_a_bound_with_unknown_error_have_unknown_error(tmp_path):
    all_ = write_record(tmp_path, "all", {500: HIGH})
    write_record(tmp_path, "drawn", {1: LOW}, binarizations=DRAWS, monte_carlo_error=None)
    description = describe(dict(read_extrapolated_records(tmp_path))[all_])
    assert "error of the draws unknown, of one draw 0.080 (draws of L_1)" in description


def test_draws_of_a_subset_are_described_as_such(tmp_path):
    write_record(tmp_path, "all", {500: HIGH})
    some = write_record(tmp_path, "some", {50: LOW}, SOME, binarizations=DRAWS)
    assert "draws of the pixels of the subset" in describe(
        dict(read_extrapolated_records(tmp_path))[some]
    )


def test_one_example_is_not_extrapolated_to_all(tmp_path):
    write_record(tmp_path, "all", {50: LOW}, binarizations=DRAWS, monte_carlo_error=0.04)
    one = write_record(tmp_path, "one", {500: HIGH}, SOME[:1])
    (row,) = dict(read_extrapolated_records(tmp_path))[one].by_k
    assert (row.whole, row.binarizations) == (None, None)


def test_subset_is_extrapolated_by_the_bound_with_the_smallest_error(tmp_path):
    """L_1 of the same samples leaves no error; L_1 of others leaves more than a tight bound."""
    noisy = LOW - np.random.default_rng(5).gamma(2, 3, 100)
    write_record(tmp_path, "all", {1: noisy, 50: LOW})
    path = write_record(tmp_path, "some", {1: noisy, 500: HIGH}, SOME)
    rows = dict(read_extrapolated_records(tmp_path))[path].by_k
    assert [row.whole.by for row in rows] == ["L_1", "L_50"]
    assert rows[0].whole.subset_error == 0
    assert rows[0].whole.log_likelihood == pytest.approx(noisy.mean())
    other = LOW - np.random.default_rng(6).gamma(2, 1, 100)
    path = write_record(tmp_path, "some", {1: other, 500: HIGH}, SOME)
    rows = dict(read_extrapolated_records(tmp_path))[path].by_k
    assert [row.whole.by for row in rows] == ["L_50", "L_50"]


def with_fewer_values(values):
    return {**values, "log_likelihood": values["log_likelihood"][..., :-1]}


def with_shifted_index(values):
    return {**values, "index": values["index"] - 50}


def with_another_k(values):
    return {**values, "k": np.append(values["k"], 7)}


@pytest.mark.parametrize("damage", [with_fewer_values, with_shifted_index])
def test_mismatched_values_are_not_extrapolated(tmp_path, damage, caplog):
    write_record(tmp_path, "all", {50: LOW})
    path = write_record(tmp_path, "some", {500: HIGH}, SOME)
    with np.load(path.with_suffix(".npz")) as values:
        np.savez(path.with_suffix(".npz"), **damage(dict(values)))
    assert dict(read_extrapolated_records(tmp_path))[path].by_k[0].whole is None
    assert "some.json is not the record of its values: it is omitted" in caplog.text


def test_values_with_mismatched_budgets_are_skipped(tmp_path, caplog):
    path = write_record(tmp_path, "all", {50: LOW})
    with np.load(path.with_suffix(".npz")) as values:
        np.savez(path.with_suffix(".npz"), **with_another_k(dict(values)))
    assert read_bounds(tmp_path, split="test", weights="final", pruned=False) == []
    assert "all.json is not the record of its values" in caplog.text


def test_text_among_the_values_is_reported(tmp_path, caplog):
    path = write_record(tmp_path, "all", {50: LOW})
    with zipfile.ZipFile(path.with_suffix(".npz"), "a") as file:
        file.writestr("temperatures", "words")
    assert read_bounds(tmp_path, split="test", weights="final", pruned=False) == []
    assert "all.npz cannot be read" in caplog.text


def test_comparison_of_subsets_also_gives_extrapolated_bounds(tmp_path):
    for name, more in (("one", 0.0), ("other", 1.0)):
        (tmp_path / name).mkdir()
        small.write_config(tmp_path / name / "config.toml")
        write_record(tmp_path / name, "all", {50: LOW})
        write_record(tmp_path / name, "some", {500: HIGH + more}, SOME)
    found = compare([tmp_path / "one", tmp_path / "other"], estimator="L_500")
    assert [one["difference"] for one in found["runs"]] == [None, pytest.approx(1.0)]
    expected = LOW.mean() + (HIGH - LOW)[SOME].mean()
    for one, mean in zip(found["runs"], (expected, expected + 1), strict=True):
        assert one["whole"]["log_likelihood"] == pytest.approx(mean)
        assert one["log_likelihood"] == pytest.approx(HIGH[SOME].mean() + mean - expected)
    lines = comparison_description(found).splitlines()
    assert re.search(rf"\(all 100: {expected:.3f} \+- .*, subset error 0\.\d+, by L_50\)", lines[1])
    found = compare([tmp_path / "one", tmp_path / "other"], estimator="L_50")
    assert [one["whole"] for one in found["runs"]] == [None, None]


def test_count_in_words_uses_the_singular_for_one():
    assert [count_in_words(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert count_in_words(5000, "draw", ",") == "5,000 draws"


def test_draws_are_not_extrapolated_to_a_looser_bound(tmp_path):
    path = write_record(tmp_path, "all", {1: LOW - 9, 5: LOW, 64: HIGH})
    for name, ks in (("drawn", {5: LOW, 50: LOW}), ("more", {500: HIGH})):
        write_record(tmp_path, name, ks, binarizations=DRAWS, monte_carlo_error=0.04)
    found = [row.binarizations for row in dict(read_extrapolated_records(tmp_path))[path].by_k]
    assert [one and one.by for one in found] == [None, "L_5", "L_50"]


def test_replicates_do_not_reduce_the_monte_carlo_error():
    """Replicates are measured with the same keys, so a second one may add no information."""
    row = SampledRow(k=5, log_likelihood=-9.0, stderr=0.5, monte_carlo_error=0.1)
    assert _over(row, [row, row]).monte_carlo_error == pytest.approx(0.1)
    assert (
        cell_mean_errors([(row, 2), (row, 1)], RECORD, 3)
        == "Monte Carlo error 0.1000, k-hat unknown"
    )


RECORD = Record.model_construct(split="test", data={})


def row_over_draws(**more):
    row = SampledRow(k=5000, log_likelihood=-9.0, stderr=0.5, monte_carlo_error=0.1)
    return row.model_copy(update={"binarizations": Binarizations(**{**DRAWS, **more})})


def test_unknown_draw_error_is_described_as_unknown():
    rows = [(row_over_draws(), 1), (row_over_draws(draws_error=None), 1)]
    found = cell_mean_over_draws(rows)
    assert (found.draws_error, found.one_draw_error) == (None, 0.08)
    assert cell_mean_errors(rows, RECORD, 2).endswith("pixel draw error unknown (8 draws)")
    cell = Cell("", None, nll=9.0, draws=row_over_draws().binarizations, spread=0.1, seeds=2)
    assert cell.margin > 1
    assert cell._replace(draws=found).margin is None


def test_runs_with_different_draws_are_listed():
    rows = [(row_over_draws(draws_error=0.0), 3), (row_over_draws(draws=4, by="L_64"), 1)]
    assert cell_mean_errors(rows, RECORD, 4).endswith(
        "pixel draw error 0.0075 (8 draws; 4 draws, by L_64)"
    )
    exact = [(SampledRow(k=5, log_likelihood=-9.0, stderr=0.5, monte_carlo_error=0.0), 1)]
    assert cell_mean_errors(exact, RECORD, 2) == "Monte Carlo error 0.000, k-hat unknown"


def test_annealing_gap_of_each_run_is_extrapolated_by_its_own_bound():
    """Two runs annealed on different subsets; the second has two seeds."""
    found = []
    for places, seeds in ((SOME, 1), (choose(100, 20, seed=9), 2)):
        low = Known("L_5000", (0, 5000), False, np.arange(100), np.stack([LOW] * seeds), RECORD)
        high = np.stack([HIGH[places] + seeds] * seeds)
        found.append(cell_mean_gap_of_run(Known("AIS_9", (1, 9), False, places, high, RECORD), low))
    mean = cell_mean_gap(found)
    first, second = ((HIGH + seeds - LOW)[p] for p, seeds in ((SOME, 1), (places, 2)))
    assert mean.gap == pytest.approx((first.mean() + 2 * second.mean()) / 3)
    errors = [one.std(ddof=1) * np.sqrt(0.8 / 20) for one in (first, second)]
    assert mean.error == pytest.approx((errors[0] + 2 * errors[1]) / 3)
    assert (mean.estimator, mean.seeds) == ("AIS_9", 3)
    assert cell_mean_gap([]) is None
    assert cell_mean_gap([found[0], found[1]._replace(gap=None)]).gap is None


def test_format_errors():
    known = {"monte_carlo_error": 0.0123, "pareto_k_unreliable": 0.0}
    row = SampledRow(k=50, log_likelihood=-9.0, stderr=0.5, **known)
    assert format_errors(row) == ["Monte Carlo error 0.012"]
    heavy = row.model_copy(update={"pareto_k_unreliable": 0.1})
    assert format_errors(heavy, 4) == ["Monte Carlo error at least 0.0123"]
    assert format_errors(row.model_copy(update={"pareto_k_unreliable": 0.09})) == format_errors(row)
    small = row.model_copy(update={"monte_carlo_error": 0.00018})
    assert format_errors(small) == ["Monte Carlo error 2e-04"]
    few = row.model_copy(update={"pareto_k_unreliable": None})
    assert format_errors(few) == ["Monte Carlo error 0.012, k-hat unknown"]
    assert format_errors(SampledRow(k=1, log_likelihood=-9.0, stderr=0.5)) == []
    assert format_errors(SampledRow(k=2, log_likelihood=-9.0, stderr=0.5)) == [
        "Monte Carlo error unknown"
    ]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.0, 0.05), "Monte Carlo error 0.0"),
        ((0.0, 0.3), "Monte Carlo error at least 0.0"),
        ((None, 0.3), "Monte Carlo error at least 0.0"),
        ((0.0, None), ", k-hat unknown"),
    ],
)
def test_cell_has_the_k_hat_of_its_worst_run(shares, message):
    one = {"k": 50, "log_likelihood": -9.0, "stderr": 0.5, "monte_carlo_error": 0.01}
    rows = [(SampledRow(**one, pareto_k_unreliable=share), 1) for share in shares]
    assert message in cell_means._particle_errors(rows, 3)[0]


def test_infinite_error_of_an_example_is_reported():
    each = np.full(40, 0.5)
    values = {"log_likelihood": -each, "ess": each, "pareto_k": each, "monte_carlo_error": each}
    assert "monte_carlo_infinite" not in summarise_weights(values, 50)
    values["monte_carlo_error"] = np.append(each[1:], np.inf)
    row = SampledRow(k=50, **summarise_weights(values, 50))
    assert format_errors(row) == ["Monte Carlo error not finite (1 example)"]
    other = row.model_copy(update={"monte_carlo_infinite": 2})
    mean = extrapolation._over(row, [row, other])
    assert format_errors(mean) == ["Monte Carlo error not finite (3 examples)"]


def test_new_subset_is_stratified_and_an_existing_one_is_kept(tmp_path):
    how = {"weights": "final", "pruned": False}
    requested = subset_facts("test", 10, 0, "t")
    plain, by = subset_places(tmp_path, 100, requested, **how, digests=["m"])
    assert (plain.tolist(), by) == (choose(100, 10).tolist(), None)
    write_record(tmp_path, "old", {500: HIGH}, SOME)
    write_record(tmp_path, "all", {1: HIGH, 50: LOW})
    new, by = subset_places(tmp_path, 100, requested, **how, digests=["m"])
    assert (new.tolist(), by) == (stratified_subset(LOW, 10, 0).tolist(), "L_50")
    again, by = subset_places(tmp_path, 100, {**requested, "examples": 20}, **how, digests=["m"])
    assert (again.tolist(), by) == (SOME.tolist(), None)
    for other in (["another model"], None):
        plain, by = subset_places(tmp_path, 100, requested, **how, digests=other)
        assert (plain.tolist(), by) == (choose(100, 10).tolist(), None)
    for count in (10, 20):  # no bounds or subsets of another test set
        other = subset_facts("test", count, 0, "another test set")
        plain, by = subset_places(tmp_path, 100, other, **how, digests=["m"])
        assert (plain.tolist(), by) == (choose(100, count).tolist(), None)


def test_stopped_measurement_keeps_its_subset(tmp_path):
    """L_k of all examples is recorded meanwhile, and would stratify another subset."""
    run = small.unmeasured(finished(), tmp_path / "run")

    def stopped(items, *_):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, ks=[5], examples=10, batch_size=2, track=stopped)
    evaluate_run(run, ks=[2])
    record = evaluate_run(run, ks=[5], examples=10, batch_size=2)
    index = read_record_arrays(run / "evaluations" / "test-final-k5-n10.json")["index"]
    np.testing.assert_array_equal(index, choose(50, 10))
    assert record["subset"] == {"examples": 10, "seed": 0}
    assert not (run / "evaluations" / "unfinished").exists()


def test_subset_is_stratified_by_the_record_of_the_run(drawn):
    run, _ = drawn
    record = evaluate_run(run, ks=[5], examples=10)
    assert record["subset"] == {"examples": 10, "seed": 0, "stratified_by": "L_5"}
    whole = read_record_arrays(run / "evaluations" / "test-final-k5-draws3.json")
    some = read_record_arrays(run / "evaluations" / "test-final-k5-n10.json")
    expected = stratified_subset(whole["log_likelihood"][0, 1], 10, 0)
    np.testing.assert_array_equal(some["index"], expected)
    assert (record["whole"]["n"], record["whole"]["by"]) == (50, "L_5")

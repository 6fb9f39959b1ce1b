"""Result tables, which are functions of records."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import small
from figures import priors_figure
from iwae.config.presets import preset
from iwae.config.stages import stages_text
from iwae.config.toml import config_toml_values, read_config, write_config
from iwae.errors import UserError
from iwae.experiments.cell_results import read_cell_result
from iwae.experiments.cells import Wanted
from iwae.results.reading import read_records
from iwae.results.schema import Method
from result_tables.blocks import fill_blocks, run_cells_table
from result_tables.experiments import imputation_table, recipes_table
from result_tables.gradients import resampling_table
from result_tables.likelihoods import (
    estimates_table,
    largest_records,
    likelihood_table,
    published_nll,
)
from result_tables.objectives import objective_row, protocols_table
from result_tables.own_data import hide_table, own_densities_table, own_imputations_table
from result_tables.speed import costs_table, queue_table
from result_tables.tables import final_bounds, markdown

ROOT = Path(__file__).parents[2]


def record(k=5000, **changes):
    return {
        "method": "importance sampling",
        "log_likelihood": -86.5,
        "stderr": 0.25,
        "k": k,
        "n": 10000,
        "split": "test",
        "weights": "final",
        "dataset": "mnist",
        "pruned": False,
        "subset": None,
        "test_sha256": "t",
        "by_k": [],
        "by_temperatures": [],
        "active_units": [19],
        "epoch": 3280,
        "replicate": 0,
        "config": {**resolved("table1/mnist/1l/vae-k1"), "objective": "iwae"},
        **changes,
    }


def resolved(name):
    """A preset's configuration as a record has it."""
    config = preset(name).config()
    sizes = dict(zip(("latent_sizes", "hidden_sizes"), config.sizes(), strict=True))
    binarization = "none" if config.dataset == "mnist-static" else "dynamic"
    values = {
        **config_toml_values(config),
        "binarization": binarization,
        "init_from": None,
        **sizes,
    }
    return json.loads(json.dumps(values, default=str))


def write(folder, name, content):
    path = folder / "run" / "evaluations" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "run" / "config.toml").touch()
    path.write_text(json.dumps(content))


def table_lines(text):
    """The lines of a table without the spaces that align its columns."""
    return re.sub(" +", " ", text).splitlines()


def test_likelihood_table_uses_the_largest_k_on_the_full_test_set(tmp_path):
    write(tmp_path, "a", record(k=50, log_likelihood=-1.0))
    write(tmp_path, "b", record())
    write(tmp_path, "c", record(k=9999, subset={"examples": 3, "seed": 0}))
    write(tmp_path, "d", record(k=9999, split="train"))
    write(tmp_path, "e", record(k=9999, pruned=True))
    write(tmp_path, "f", record(k=9999, method="annealed importance sampling"))
    assert largest_records(tmp_path)["run"].k == 5000
    line = table_lines(likelihood_table(tmp_path))[2]
    assert "| 86.50 ± 0.25 |" in line
    assert "| 86.76 (19 active, 3,280 epochs) |" in line
    assert "| 3280 |" in line


def test_replicates_show_their_spread(tmp_path):
    each = [record(epoch=3), record(epoch=3)]
    write(tmp_path, "a", record(replicates=each, between_replicates_sd=0.125))
    assert "(sd of 2 seeds 0.12)" in likelihood_table(tmp_path)


@pytest.mark.parametrize("name", ["table1/mnist/1l/vae-k1", "table3/mnist-static/2l/iwae-k50"])
def test_published_number_comes_from_the_preset(name):
    assert published_nll(resolved(name)).startswith(f"{preset(name).nll:.2f} (")
    assert published_nll(resolved("miwae/m4-k16")) == "84.56 (3,280 epochs)"


def test_vae_and_iwae_are_one_cell_with_one_sample():
    values = resolved("table1/mnist/1l/vae-k1")
    assert published_nll({**values, "objective": "iwae"}).startswith("86.76")
    assert published_nll({**values, "objective": "iwae", "k": 7}) == "-"


@pytest.mark.parametrize(
    "change",
    [
        {"latent_sizes": [2]},
        {"hidden_sizes": [[200]]},
        {"binarization": "threshold"},
        {"optimizer": "authors"},
        {"learning_rate": 1e-2},
        {"init_from": "other"},
        {"gradient": "stl"},
        {"kl_warmup": 10},
    ],
)
def test_other_experiment_has_no_published_number(change):
    assert published_nll({**resolved("table1/mnist/1l/vae-k1"), **change}) == "-"


def test_only_marked_blocks_change(tmp_path):
    write(tmp_path, "a", record())
    text = "before\n<!-- results:likelihoods -->\nold\n<!-- /results:likelihoods -->\nafter\n"
    filled = fill_blocks(text, tmp_path)
    assert filled.startswith("before\n")
    assert filled.endswith("-->\nafter\n")
    assert "old" not in filled
    assert fill_blocks(filled, tmp_path) == filled
    with pytest.raises(UserError, match="likelihoods"):
        fill_blocks(text.replace("results:likelihoods", "results:other"), tmp_path)


def test_step_times_are_relative_to_an_undisturbed_baseline(tmp_path):
    path = tmp_path / "benchmarks" / "objective_step.json"
    path.parent.mkdir()
    results = {
        "iwae k=5": [[2.0, 1.9, 2.1, 3, 0.0], 10.0],
        "elbo k=5": [[3.0, 2.9, 3.1, 3, 0.0], None],
        "tvo k=5": [[4.0, 3.9, 4.1, 0, 0.5], 20.4],
    }
    path.write_text(json.dumps({"results": results}))
    table = costs_table(tmp_path)
    for cell in ("2.00 ms (1.00), 10 MiB", "3.00 ms (1.50) ", "4.00 ms (busy), 20 MiB"):
        assert cell in table
    results["iwae k=5"][0][3] = 0
    path.write_text(json.dumps({"results": results}))
    assert "3.00 ms (busy)" in costs_table(tmp_path)
    path.write_text(json.dumps({"results": {"elbo k=5": results["elbo k=5"]}}))
    with pytest.raises(UserError, match="has no 'iwae k=5': time it too"):
        costs_table(tmp_path)


def test_resampling_schemes_are_listed_by_gradient_and_k(tmp_path):
    def row(draw, count, relative):
        numbers = {"relative": relative, "relative_stderr": 0.01}
        return {"draw": draw, "backward": count, "variance_times_seconds": 0.5, **numbers}

    path = tmp_path / "benchmarks" / "resampling.json"
    with pytest.raises(UserError, match=r"python experiments/resampling.py"):
        resampling_table(tmp_path)
    path.parent.mkdir()
    rows = [row("systematic", 1, 0.4), row("largest exactly", 1, 0.3)]
    cells = [
        {"run": "a", "gradient": "dreg", "k": 5, "few": rows},
        {"run": "a", "gradient": "reparam", "k": 50, "few": [*rows, row("systematic", 8, 0.1)]},
        {"run": "a", "gradient": "reparam", "k": 5, "few": rows},
    ]
    path.write_text(json.dumps({"cells": cells}))
    lines = table_lines(resampling_table(tmp_path))
    assert lines[0] == "| model | gradient | k | draw | S = 1 | S = 8 |"
    assert [line.split(" | ")[1:3] for line in lines[2:]] == [
        [gradient, k]
        for gradient, k in (("reparam", "5"), ("reparam", "50"), ("dreg", "5"))
        for _ in rows
    ]
    assert lines[4] == (
        "| a | reparam | 50 | systematic | 0.400 ± 0.010 (0.50) | 0.100 ± 0.010 (0.50) |"
    )


def test_recipe_trials_are_described_by_their_stages(tmp_path):
    config = preset("fast/table1/mnist/1l/iwae-k50").config()
    for name, changes in (("one", {"stages": None, "epochs": 20, "k": 5}), ("two", {})):
        path = tmp_path / "recipes" / "k50" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = config_toml_values(config.model_copy(update=changes))
        record = {"trial": f"k50/{name}", "config": values, "k": 500, "n": 2000, "cores": 2}
        path.write_text(json.dumps({**record, "bound": -90.125, "stderr": 0.5, "seconds": 61.0}))
    one, two = recipes_table(tmp_path).strip().splitlines()[2:]
    assert (
        "k=5 gradient=None batch_size=400 optimizer=soap learning_rate=0.004 schedule=linear" in one
    )
    assert "-90.12 ± 0.50" in one
    assert "61 on 2 cores" in one
    assert stages_text(config.stages) in two


def test_cells_table_has_a_line_per_trained_cell(copied_vae):
    text = run_cells_table(copied_vae, "table1/mnist/1l,camel")
    _, _, *rows = text.strip().splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["table1/mnist/1l/vae-k1"]
    errors = r"Monte Carlo error at least 0\.003; pixel draw error 0\.02 \(8 draws, by L_50\)"
    assert re.search(
        rf"\| 86\.76 +\| 86\.25 ± 0\.22 +\| {errors} +\| 20 \(19\) +\| \d+ \w+ +\|", rows[0]
    )


@pytest.fixture
def copied_vae(tmp_path):
    name = Path("table1/mnist/1l/vae-k1/seed-0")
    skipped = shutil.ignore_patterns("*.png", "metrics.jsonl")
    shutil.copytree(ROOT / "results" / name, tmp_path / name, ignore=skipped)
    return tmp_path


def test_queue_overhead_is_compared_per_round(tmp_path):
    path = tmp_path / "benchmarks" / "queue_overhead.json"
    path.parent.mkdir()
    seconds = {"train and evaluate": [10, 20, 30], "sweep": [11, 26, 32]}
    path.write_text(json.dumps({"seconds": seconds}))
    assert "| sweep        | 3        | +2.0 (+1.0 to +6.0) | +0.3%" in queue_table(tmp_path)


def test_own_data_tables_compare_with_the_available_baselines(tmp_path):
    entry = lambda nats, lead: {"nats": nats, "lead": lead, "lead_stderr": 0.25}  # noqa: E731
    wine = {
        "iwae": entry(-18.0, 0.0),
        "estimator": entry(-17.9, -0.1),
        "Gaussian": entry(-19.0, 1.0),
    }
    mixed = {"iwae": entry(-28.5, 0.0), "independent": entry(-30.5, 2.0)}
    filled = {
        "iwae": {"error": 0.5, "change": 0.0, "change_stderr": 0.0},
        "random forests": {"error": 0.6, "change": -0.1, "change_stderr": 0.03},
    }
    table = {"rows": 1780, "columns": 13, "splits": 5, "imputations": filled}
    results = {
        name: {**table, "densities": densities}
        for name, densities in (("wine", wine), ("mixed", mixed))
    }
    path = tmp_path / "benchmarks" / "own_data.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"results": results}))
    rows = [re.split(r" *\| *", line) for line in own_densities_table(tmp_path).splitlines()[2:]]
    assert rows[0][2:6] == ["1,780 x 13", "5", "-18.00", "-0.10 ± 0.25"]
    assert rows[0][6] == "+1.00 ± 0.25 (a Gaussian)"
    assert rows[1][5:7] == ["", "+2.00 ± 0.25 (independent columns)"]
    assert "| wine    | 0.500  | 0.600 (-0.100 ± 0.030) |" in own_imputations_table(tmp_path)


def test_shares_of_hidden_values_are_compared_over_seeds(tmp_path):
    shares = lambda error, lead: {  # noqa: E731
        "0.0": {"error": 0.8, "lead": 0.0},
        "0.2": {"error": error, "lead": lead},
    }
    path = tmp_path / "benchmarks" / "hide.json"
    path.parent.mkdir()
    results = {"wine": {"0": shares(0.6, 0.25), "1": shares(0.7, 0.75)}}
    path.write_text(json.dumps({"results": results}))
    rows = [re.split(r" *\| *", line)[1:-1] for line in hide_table(tmp_path).splitlines()[2:]]
    assert rows[0] == ["wine", "0%", "2", "0.800", "", ""]
    assert rows[1] == ["wine", "20%", "2", "0.650", "-0.150 ± 0.050", "+0.50 ± 0.25"]


def test_protocols_are_compared_with_the_one_of_the_paper(tmp_path):
    there = ROOT / "results" / "objectives" / "protocols"
    ours = tmp_path / "objectives" / "protocols"
    small.unpacked(there / "seed", ours / "seed")
    with pytest.raises(UserError, match="has no paper"):
        protocols_table(tmp_path)
    shutil.copytree(there / "paper", ours / "paper")
    shutil.copytree(there / "paper", ours / "begun")
    shutil.rmtree(ours / "begun" / "evaluations")  # not measured yet
    *_, first, second = protocols_table(tmp_path).strip().split("\n")
    assert first.startswith("| nothing ")
    assert second.startswith("| seed = 1 ")
    means = [-float(line.split("|")[3].split("±")[0]) for line in (first, second)]
    difference = float(second.split("|")[4].split("±")[0])
    assert difference == pytest.approx(means[0] - means[1], abs=0.011)
    path = ours / "seed" / "evaluations" / "test-final-k5000.npz"
    with np.load(path, allow_pickle=False) as arrays:
        budgets = arrays["k"]
        changed = {name: array[..., :-1] for name, array in arrays.items()} | {"k": budgets}
    np.savez(path, **changed)
    with pytest.raises(UserError, match="have different bounds or examples"):
        protocols_table(tmp_path)


def test_estimates_use_the_examples_of_the_longest_annealing_run(tmp_path):
    run = tmp_path / "run"
    evaluations = run / "evaluations"
    evaluations.mkdir(parents=True)
    (run / "config.toml").touch()

    def bounds(name, column, values, places, **changes):
        content = {**record(), "weights": "final", "model_sha256": "a", **changes}
        (evaluations / f"{name}.json").write_text(json.dumps(content))
        places = np.asarray(places)
        table = np.asarray([[value + places for value in values.values()]], np.float64)
        arrays = {column: np.asarray(list(values)), "index": places, "log_likelihood": table}
        np.savez(evaluations / f"{name}.npz", **arrays)

    row = {"log_likelihood": -7.0, "stderr": 1.0, "pareto_k_unreliable": 0.5}
    rows = [{"k": k, "ess_mean": 2.5 * k, **row} for k in (1, 50)]
    bounds("is", "k", {1: -9.0, 50: -7.0}, range(10), by_k=rows)
    annealed = {"method": "annealed importance sampling", "verdict": {"word": "converged"}}
    for name, chains, lengths in (("short", 8, (5, 50)), ("long", 16, (50, 500))):
        more = {"annealing": {"chains": chains}, "n": 2, **annealed}
        bounds(name, "temperatures", dict(zip(lengths, (-6.0, -5.0), strict=True)), [2, 4], **more)
    gaps = {"gap": 0.25, "gap_stderr": 0.125, "importance": {"k": 50, "gap": 4, "gap_stderr": 1}}
    gaps |= {"lower": -7.0, "lower_stderr": 1.0, "upper": -6.75, "upper_stderr": 1.0}
    gaps |= {"dataset": "drawn", "acceptance_mean": 0.9}
    both = {"annealing": {"chains": 16}, "split": "simulated", "weights": "final", **gaps}
    both |= {"method": "bidirectional Monte Carlo", "model_sha256": "a", "n": 7}
    (evaluations / "x-bdmc.json").write_text(json.dumps({"pruned": False, **both}))
    heads, _, cells = (
        line.strip("| ").split(" | ") for line in table_lines(estimates_table(tmp_path))
    )
    row = dict(zip(heads, cells, strict=True))
    assert row["L_1"] == "-6.00 ± 1.00"
    assert row["L_50"] == "-4.00 ± 1.00"
    assert row["AIS, short"] == "-3.00 ± 1.00 (T = 50)"
    assert row["AIS, long"] == "-2.00 ± 1.00 (T = 500)"
    assert row["verdict"] == "converged"
    assert row["gap of AIS"] == "0.25 ± 0.12"
    assert row["gap of 50 samples"] == "4.00 ± 1.00"
    mixed = {"mixed_upper": -6.9, "mixed_upper_stderr": 1.0}
    both |= {"n": 8, **mixed, "mixed_gap": 0.125, "mixed_gap_stderr": 0.25}
    (evaluations / "y-bdmc.json").write_text(json.dumps({"pruned": False, **both}))
    assert "| 0.12 ± 0.25" in estimates_table(tmp_path)  # the tighter one, where it is known
    assert row["ESS of L_50"] == "125"
    assert row["k-hat too large"].startswith("50%")


def test_objectives_are_listed_best_first(tmp_path):
    """Means over seeds and examples of the bound with the most samples."""
    for name, level in {"iwae": -2.0, "ciwae": -1.0}.items():
        run = tmp_path / "objectives" / "digits" / name
        config = {"objective": name, "k": 5, "epochs": 3, "replicates": 2, "free_bits": 0.1}
        config |= {"observation": "bernoulli"}
        config |= {"beta": 0.5} if name == "ciwae" else {"gradient": "dreg"}
        values = level + np.arange(4.0).reshape(1, 2, 1, 2) / 10
        content = {
            "method": "importance sampling",
            "dataset": "digits",
            "split": "test",
            "weights": "final",
            "pruned": False,
            "n": 2,
            "subset": None,
            "test_sha256": "t",
            "model_sha256": "a",
            "config": config,
            "k": 7,
            "by_k": [{"k": k, "log_likelihood": -1.0, "stderr": 0.1} for k in (1, 7)],
            "active_units": [3.5],
            "examples_sha256": "b",
        }
        run.joinpath("evaluations").mkdir(parents=True)
        (run / "config.toml").touch()
        (run / "evaluations" / "a.json").write_text(json.dumps(content))
        both = np.broadcast_to(values[0, :, :, :], (2, 1, 2))
        both = np.concatenate([both - 1, both], axis=1)
        np.savez(run / "evaluations" / "a.npz", k=[1, 7], index=[0, 1], log_likelihood=both)
    filled = fill_blocks(
        "<!-- results:objectives-digits -->\n<!-- /results:objectives-digits -->", tmp_path
    )
    first, second = table_lines(filled)[3:5]
    assert first.startswith("| ciwae | reparam | k 5, beta 0.5, free bits 0.1 | 3 | 2 | -0.85 ± ")
    assert second.startswith(
        "| iwae | dreg | k 5, free bits 0.1 | 3 | 2 | -1.85 ± 0.05 (sd 0.14) |"
    )
    assert second.endswith("| 3.5 |")
    with pytest.raises(UserError, match=r"python experiments/objectives.py mnist"):
        fill_blocks(
            "<!-- results:objectives-mnist -->\n<!-- /results:objectives-mnist -->", tmp_path
        )


def test_compared_cells_are_listed_below_their_baseline(tmp_path):
    cell = "fast/prior/mnist/1l/vae-k1-vamp500"
    block = f"<!-- results:compared-cells:{cell} -->\n<!-- /results:compared-cells:{cell} -->"
    assert "No cell of these has been measured yet." in fill_blocks(block, tmp_path)
    baseline = Path("fast") / "table1" / "mnist" / "1l" / "vae-k1" / "seed-0"
    run = small.unpacked(ROOT / "results" / baseline, tmp_path / baseline, "*.png")
    for pattern in ("*-ais-*", "*-bdmc-*", "*-sandwich-*"):
        for path in (run / "evaluations").glob(pattern):
            path.unlink()
    other = shutil.copytree(run, tmp_path / cell / "seed-0")
    config = read_config(run / "config.toml").model_copy(update={"prior": "vamp:500"})
    config = config.model_copy(update={"optimizer": "adam"})
    write_config(config, other / "config.toml")
    sides = {"gap": 0.25, "gap_stderr": 0.01, "lower": -86.0, "lower_stderr": 0.1}
    sides |= {"upper": -85.75, "upper_stderr": 0.1, "verdict": {"word": "converged"}}
    known = small.record_of(other, "test-final-k5000")
    known |= {"method": "sandwich", **sides, "importance": None, "acceptance_mean": 0.8}
    known |= {"annealing": {"temperatures": 700, "chains": 16}, "subset": {"examples": 9}, "n": 9}
    (other / "evaluations" / "test-final-sandwich.json").write_text(json.dumps(known))
    head, _, *lines = table_lines(fill_blocks(block, tmp_path))[1:-1]
    columns, *rows = ([word.strip() for word in row.split("|")[1:-1]] for row in (head, *lines))
    first, second = (dict(zip(columns, row, strict=True)) for row in rows)
    nll = read_cell_result(tmp_path, str(baseline.parent), Wanted()).nll
    assert (first["cell"], first["prior"]) == (str(baseline.parent), "normal")
    assert first["NLL (L_5000), nats"].startswith(f"{nll:.2f} ± ")
    assert first["gap between both sides"] == ""
    assert (second["cell"], second["prior"]) == (cell, "vamp:500")
    assert (first["trained otherwise"], second["trained otherwise"]) == ("", "optimizer")
    assert second["gap between both sides"] == "0.250 ± 0.010 (T = 700, 9 images)"


def test_prior_figure_shows_the_likelihood_at_the_end_of_training():
    """The curve of a cell is as long as its training, whatever its stages."""
    results = ROOT / "results"
    (axes, *_) = priors_figure(results).axes
    curves = [one.get_xydata() for one in axes.lines if len(one.get_xydata()) > 1]
    names = ["fast/table1/mnist/1l/vae-k1", "fast/prior/mnist/1l/vae-k1-mixture500"]
    for cell in (read_cell_result(results, name, Wanted()) for name in names):
        points = [one.lines[0].get_xydata()[0] for one in axes.containers]
        (at,) = np.flatnonzero(np.isclose([y for _, y in points], -cell.nll))
        curve = curves[at]
        assert curve[-1][0] == pytest.approx(points[at][0]) == pytest.approx(60 * cell.hours)
        assert curve[cell.epochs // 2 - 1][0] == pytest.approx(30 * cell.hours)
        assert curve[-1][1] < points[at][1]  # the bound of one sample, and log p(x)
    with pytest.raises(UserError, match="no cell with a learned prior"):
        priors_figure(results / "camel")


def test_unconverged_annealing_is_reported():
    run = ROOT / "results" / "objectives" / "digits" / "iwae"
    ((_, record),) = read_records(run, (Method.ANNEALED,))
    verdicts = [one.verdict.word for one in record.models]
    assert len(set(verdicts)) > 1, "choose another run: one of each word is needed"
    row = objective_row(final_bounds(run))
    assert row["converged"] == f"{verdicts.count('converged')} of {len(verdicts)}"


def test_discrete_levels_are_also_in_bits_per_dimension():
    kinds = ROOT / "results" / "objectives" / "kinds"
    row = objective_row(final_bounds(kinds / "logistic-mixture"))
    nats = float(row["L_5000, nats"].split()[0])
    assert float(row["bits per dimension"]) == pytest.approx(-nats / 64 / np.log(2), abs=2e-3)
    row = objective_row(final_bounds(kinds / "poisson"))
    assert "bits per dimension" not in row


def test_missing_records_are_an_error(tmp_path):
    with pytest.raises(UserError, match="no record"):
        likelihood_table(tmp_path)


def test_markdown_table_has_every_column_in_every_row():
    rows = [line.split("|") for line in markdown([{"a": "1"}, {"b": "2"}]).splitlines()]
    assert [[cell.strip() for cell in row[1:-1]] for row in rows[:1] + rows[2:]] == [
        ["a", "b"],
        ["1", ""],
        ["", "2"],
    ]


PAGES = [ROOT / "README.md", ROOT / "results" / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize(
    "page",
    [str(page.relative_to(ROOT)) for page in PAGES if "<!-- results:" in page.read_text()],
)
def test_page_matches_the_records(page):
    text = (ROOT / page).read_text()
    assert fill_blocks(text, ROOT / "results") == text


def test_imputation_errors_are_means_over_seeds(tmp_path):
    with pytest.raises(UserError, match="no records: python experiments/imputation"):
        imputation_table(tmp_path)
    folder = tmp_path / "imputation"
    folder.mkdir()
    for seed, errors in enumerate([(1.0, 0.5), (1.2, 0.9)]):
        content = {
            "table": "wine",
            "mechanism": "at random",
            "share": 0.3,
            "sizes": {"train": 80, "test": 20},
            "rmse": dict(zip(("mean", "ours"), errors, strict=True)),
            "not_converged": ["mean"] * seed,
        }
        (folder / f"wine-{seed}.json").write_text(json.dumps(content))
    lines = table_lines(imputation_table(tmp_path))
    assert lines[0] == "| table | rows | hidden | seeds | mean | ours |"
    expected = "| wine | 100 | 30% at random | 2 | 1.100 ± 0.100 † | **0.700 ± 0.200** |"
    assert lines[2] == expected

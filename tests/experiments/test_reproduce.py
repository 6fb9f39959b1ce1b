"""Published tables: the plan of each cell, and the results read from its records."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import small
from iwae import evaluate_run
from iwae.cli.reproduce import _list_line, reproduce_command
from iwae.config.presets import PRESETS, matching, preset, preset_cells, presets_with_baselines
from iwae.config.recipes import LEARNED
from iwae.config.same_experiment import same_cell_experiment, same_experiment
from iwae.config.toml import config_toml_values, read_config, write_config
from iwae.errors import UserError
from iwae.experiments.cell_results import (
    FORMATS,
    Cell,
    cell_results_table,
    read_cell_result,
    read_cell_results,
)
from iwae.experiments.cells import Wanted, plan_cells
from iwae.experiments.costs import cost_hours, costed_stages, measured_costs, step_cost_key
from iwae.experiments.tasks import Measure, task_state
from iwae.runs.shared_stages import shared_stages

RESULTS = Path(__file__).parents[2] / "results"
VAE = "table1/mnist/1l/vae-k1"


def planned_runs(out, *cells, **wanted):
    return [
        (task.name, task.config.seed, task.config.replicates)
        for task in plan_cells(out, cells, Wanted(**wanted))
    ]


def table(out, names, wanted, *style):
    return cell_results_table(read_cell_results(out, names, wanted), wanted, *style)


def write_run_config(out, name, config):
    (out / name).mkdir(parents=True)
    write_config(config, out / name / "config.toml")


# Planning


def test_seeds_of_a_cell_are_trained_together(tmp_path):
    assert planned_runs(tmp_path, VAE) == [(f"{VAE}/seed-0", 0, 1)]
    assert planned_runs(tmp_path, VAE, seeds=3) == [(f"{VAE}/seeds-0-2", 0, 3)]


def test_seeds_with_a_run_keep_it(tmp_path):
    entry = preset(VAE)
    write_run_config(tmp_path, f"{VAE}/seed-1", entry.config(seed=1))
    assert planned_runs(tmp_path, VAE, seeds=4) == [
        (f"{VAE}/seed-0", 0, 1),
        (f"{VAE}/seed-1", 1, 1),
        (f"{VAE}/seeds-2-3", 2, 2),
    ]
    assert planned_runs(tmp_path, VAE, seeds=1) == [(f"{VAE}/seed-0", 0, 1)]


def test_warm_start_follows_its_source_runs(tmp_path):
    write_run_config(tmp_path, f"{VAE}/seed-0", preset(VAE).config())
    tasks = plan_cells(tmp_path, ["table2/vae-to-iwae"], Wanted(seeds=3))
    assert [(task.name, task.needs) for task in tasks] == [
        (f"{VAE}/seed-0", None),
        (f"{VAE}/seeds-1-2", None),
        ("table2/vae-to-iwae/seed-0", f"{VAE}/seed-0"),
        ("table2/vae-to-iwae/seeds-1-2", f"{VAE}/seeds-1-2"),
    ]
    assert [task.config.init_from for task in tasks] == [
        None,
        None,
        tmp_path / VAE / "seed-0",
        tmp_path / VAE / "seeds-1-2",
    ]
    assert (tasks[3].config.seed, tasks[3].config.replicates) == (1, 2)


def test_shared_source_cell_is_planned_once(tmp_path):
    names = [name for name, *_ in planned_runs(tmp_path, "table2/vae-to-iwae", VAE)]
    assert names == [f"{VAE}/seed-0", "table2/vae-to-iwae/seed-0"]


def test_shortened_schedule_has_its_own_folder(tmp_path):
    (task,) = plan_cells(tmp_path, [VAE], Wanted(epochs_scale=0.01))
    assert task.name == f"shortened-0.01/{VAE}/seed-0"
    assert task.config.epochs == 33


def test_plan_has_sampling_and_annealing_measures(tmp_path):
    (task,) = plan_cells(tmp_path, ["miwae/m4-k16"], Wanted(temperatures=500))
    sampled, annealed = task.measures
    assert sampled == Measure((1, 16, 64, 5000))
    assert annealed == Measure(temperatures=500, examples=1000)


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"epochs_scale": 0.0}, {"epochs_scale": 1.5}])
def test_invalid_requests_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plan_cells(tmp_path, [VAE], Wanted(**wrong))


# Names


def test_cells_are_selected_by_patterns_and_prefixes():
    assert matching(["table1/mnist/1l"]) == matching(["table1/mnist/1l/*"])
    assert len(matching(["table1/mnist/1l"])) == 5
    assert matching(["table2/*", VAE])[0] == VAE  # in the order of the tables
    assert matching(["*"]) == list(PRESETS)
    with pytest.raises(ValueError, match=f"nearest: .*{VAE}"):
        matching([VAE, "tabel1/mnist/1l/vae-k1"])


def test_every_published_cell_has_a_preset():
    names = """
        table1/mnist/1l/vae-k1 table1/omniglot/2l/iwae-k50 table2/vae-to-iwae table2/iwae-to-vae
        table3/mnist-static/1l/iwae-k5 table3/mnist-static/2l/vae-k50 miwae/m4-k16 miwae/m16-k4
        miwae/piwae-m8-k8 miwae/ciwae-beta0.05 aiwae/mnist/s5-t5 aiwae/omniglot/s5-t10
        dreg/mnist/1l/k50 camel/iwae-k20
    """.split()  # noqa: SIM905
    assert set(names) <= set(PRESETS)


@pytest.mark.parametrize("data", ["mnist", "omniglot"])
def test_learned_priors_add_a_warm_up_and_have_batches_of_their_own(data):
    plain = preset(f"fast/table1/{data}/1l/vae-k1").config()
    (stage,) = plain.stages
    warm = stage.model_copy(update={"kl_warmup": stage.epochs // 10})
    for name, prior in {"mixture500": "mixture:500", "vamp500": "vamp:500"}.items():
        learned = preset(f"fast/prior/{data}/1l/vae-k1-{name}").config()
        assert learned == plain.model_copy(update={"prior": prior, "stages": (warm,)} | LEARNED)
        assert f" prior-{prior} " in step_cost_key(learned.final())  # a step takes longer


def test_no_two_cells_are_the_same_experiment():
    for name, entry in PRESETS.items():
        change = {"init_from": Path("x")} if entry.needs else {}
        values = config_toml_values(entry.config(**change))
        values |= dict(zip(("latent_sizes", "hidden_sizes"), entry.config().sizes(), strict=True))
        same = [other for other in PRESETS if same_experiment(PRESETS[other], values)]
        # A fast recipe trains an IWAE by DReG anyway.
        assert [one for one in same if one == name or "fast/dreg/" not in name + one] == [name]


@pytest.mark.parametrize(
    "change",
    [
        {"k": 2},
        {"learning_rate": 2e-3},
        {"free_bits": 0.1},
        {"gradient": "stl"},
        {"output_bias": False},
        {"activation": "relu"},
        {"latent_sizes": (40,), "hidden_sizes": ((200, 200),)},
        {"binarization": "threshold"},
        {"binarization_seed": 5},
        {"validation": 10_000},
        {"patience": 3},
        {"kl_warmup": 2},
    ],
)
def test_changed_experiment_is_not_the_published_one(change):
    config = preset(VAE).config(**{"binarization": "dynamic", **change})
    values = config_toml_values(config)
    values |= dict(zip(("latent_sizes", "hidden_sizes"), config.sizes(), strict=True))
    assert not same_experiment(preset(VAE), values)


def test_fast_cell_accepts_any_training_of_its_model_and_objective():
    entry = preset(f"fast/{VAE}")
    sizes = dict(zip(("latent_sizes", "hidden_sizes"), entry.config().sizes(), strict=True))

    def fits(**change):
        return same_cell_experiment(entry, {**config_toml_values(entry.config(**change)), **sizes})

    assert fits(stages="elbo k=1 epochs=9 gradient=reparam", optimizer="adam")
    assert not fits(stages="elbo k=2 epochs=9")
    assert not fits(free_bits=0.1)
    published = config_toml_values(preset(VAE).config(learning_rate=2e-3))
    assert not same_cell_experiment(preset(VAE), {**published, **sizes})


def test_fast_cell_keeps_the_recipe_that_it_began_by(tmp_path, caplog):
    name, changed = f"fast/{VAE}", "elbo k=1 epochs=9 gradient=reparam"
    earlier = preset(name).config(stages=changed, optimizer="adam")
    write_run_config(tmp_path, f"{name}/seed-0", earlier)
    (task,) = plan_cells(tmp_path, [name], Wanted())
    assert task_state(tmp_path, task).status == "stopped"  # and not another run
    assert task.config.stages == earlier.stages
    assert (
        "was started with an earlier recipe (its gradient, epochs, optimizer, stages differ)"
        in caplog.text
    )
    (task,) = plan_cells(tmp_path, [name], Wanted(epochs_scale=0.1))
    assert task.config.stages != earlier.stages
    write_run_config(tmp_path, f"{name}/seed-1", earlier)  # of seed 0, whatever its name
    own, other = plan_cells(tmp_path, [name], Wanted(seeds=2))
    assert [task_state(tmp_path, task).status for task in (own, other)] == ["stopped", "failed"]


# Costs


def step_shapes(entries):
    return {step_cost_key(stage) for entry in entries for stage in costed_stages(entry.config())}


def test_every_published_cell_was_timed():
    timed = set(measured_costs()["ms_per_step"])
    new = "sbn/"  # in no paper's table, and not timed
    cells = [one for name, one in PRESETS.items() if not (one.is_fast or name.startswith(new))]
    assert step_shapes(cells) <= timed
    before = {shape for shape in timed if " soap " in shape}  # of an earlier recipe
    assert timed - before <= step_shapes(PRESETS.values())


def test_hours_are_steps_times_milliseconds():
    record, config = measured_costs(), preset(VAE).config()
    milliseconds = record["ms_per_step"][step_cost_key(config)]
    assert cost_hours(config) == pytest.approx(3280 * 3000 * milliseconds["alone"] / 3.6e6)
    five = config.model_copy(update={"replicates": 5})
    rounds = -(-5 // record["cores"])
    assert cost_hours(five) == pytest.approx(
        3280 * 3000 * rounds * milliseconds["together"] / 3.6e6
    )
    assert cost_hours(config.model_copy(update={"k": 3})) is None
    assert cost_hours(config.model_copy(update={"dataset": "mine.npy"})) is None


def test_hours_of_a_staged_run_are_the_sum_of_its_stages():
    parts = [{"k": 1, "epochs": 30}, {"k": 5, "epochs": 20}]
    config = preset("table1/mnist/1l/vae-k5").config(stages=parts)
    alone = [preset(f"table1/mnist/1l/vae-k{part['k']}").config() for part in parts]
    each = [
        cost_hours(c.model_copy(update={"epochs": e})) for c, e in zip(alone, (30, 20), strict=True)
    ]
    assert cost_hours(config) == pytest.approx(sum(each))
    for unlike in ({"backward": 2}, {"optimizer": "soap"}):
        assert (
            cost_hours(
                preset("table1/mnist/1l/vae-k5").config(stages=[parts[0], parts[1] | unlike])
            )
            is None
        )


# Results


@pytest.fixture
def copied(tmp_path):
    """The full run of the first cell, without files that the tests do not need."""
    return small.unpacked(RESULTS / VAE / "seed-0", tmp_path / VAE / "seed-0", "*.png")


def add_second_seed(run, shift):
    """Add another seed, whose bounds are those of the first plus a shift."""
    other = shutil.copytree(run, run.with_name("seed-1"))
    config = read_config(run / "config.toml").model_copy(update={"seed": 1})
    write_config(config, other / "config.toml")
    path = other / "evaluations" / "test-final-k5000.npz"
    with np.load(path, allow_pickle=False) as arrays:
        changed = dict(arrays)
    changed["log_likelihood"] = changed["log_likelihood"] + shift
    np.savez(path, **changed)
    record = json.loads(path.with_suffix(".json").read_text())
    for row in (record, *record["by_k"]):
        row["log_likelihood"] += shift
    path.with_suffix(".json").write_text(json.dumps(record))


def nll_over_draws(run):
    """Minus the mean L_5000 over pixel draws, its standard error, and the errors of draws."""
    whole, drawn = (
        json.loads((run / "evaluations" / f"test-final-{name}.json").read_text())
        for name in ("k5000", "k50-draws8")
    )
    (row,) = drawn["by_k"]
    shift = row["binarizations"]["log_likelihood"] - row["log_likelihood"]
    found = row["binarizations"]
    error = np.hypot(found["draws_error"], row["monte_carlo_error"])
    stderr = whole["stderr"] * found["stderr"] / row["stderr"]
    return -(whole["log_likelihood"] + shift), stderr, error, found["one_draw_error"]


def test_cell_is_read_from_its_records(copied):
    cell = read_cell_result(copied.parents[4], VAE, Wanted())
    record = json.loads((copied / "evaluations" / "test-final-k5000.json").read_text())
    nll, stderr, error, of_one = nll_over_draws(copied)
    assert 0.1 < cell.nll + record["log_likelihood"] < 0.2  # draw 0 is a lucky one
    assert (cell.nll, cell.stderr) == (pytest.approx(nll), pytest.approx(stderr))
    found = cell.draws.draws_error, cell.draws.one_draw_error
    assert found == (pytest.approx(error), pytest.approx(of_one))
    errors = f"Monte Carlo error at least 0.003; pixel draw error {error:.2f} (8 draws, by L_50)"
    assert cell.others == errors
    assert cell.difference == pytest.approx(cell.nll - 86.76)
    assert cell.active == tuple(record["active_units"])
    assert (cell.seeds, cell.epochs, cell.spread) == (1, 3280, None)
    name, gap, error, _ = cell.annealed
    both = [
        json.loads((copied / "evaluations" / file).read_text())
        for file in ("test-final-ais-T500-c16-l10-sigmoid-posterior-n1000.json",)
    ]
    assert name == f"AIS_{both[0]['annealing']['temperatures']}"
    assert 0 < gap < 2
    assert 0 < error < gap
    folder = copied / "evaluations"
    with np.load(folder / "test-final-k5000.npz") as samples:
        every = samples["log_likelihood"][0, -1]
    with np.load(next(folder.glob("*ais*.npz"))) as some:
        found = some["log_likelihood"][0, 1] - every[some["index"]]
    assert gap == pytest.approx(found.mean())
    assert error == pytest.approx(found.std(ddof=1) * np.sqrt(0.9 / 1000))  # of 10,000
    text = table(copied.parents[4], [VAE], Wanted())
    assert f"{name} {nll - gap:.2f} (-{gap:.2f} ± {error:.2f})" in text


def test_seeds_are_averaged_and_their_spread_is_shown(copied):
    alone = read_cell_result(copied.parents[4], VAE, Wanted())
    add_second_seed(copied, 0.2)
    cell = read_cell_result(copied.parents[4], VAE, Wanted())
    assert cell.nll == pytest.approx(alone.nll - 0.1)
    assert cell.spread == pytest.approx(np.std([0, 0.2], ddof=1))
    assert cell.seeds == 2
    assert cell.stderr == pytest.approx(alone.stderr)  # the same examples do not reduce it
    assert alone.margin is None
    # t of one degree of freedom, for the mean of two seeds beside one more of the same deviation
    seeds, draws = 12.706 * cell.spread * np.sqrt(1.5), 1.96 * np.hypot(*nll_over_draws(copied)[2:])
    assert cell.margin == pytest.approx(np.hypot(seeds, draws), rel=1e-4)
    # The gap above the second seed's bound is smaller by the shift.
    assert cell.annealed.gap == pytest.approx(alone.annealed.gap - 0.1, abs=1e-6)
    assert cell.annealed.error == pytest.approx(alone.annealed.error)
    assert "(sd of seeds 0.14)" in table(copied.parents[4], [VAE], Wanted())


def test_unfinished_or_unmeasured_run_is_no_result(copied):
    config = read_config(copied / "config.toml")
    write_config(config.model_copy(update={"epochs": 5000}), copied / "config.toml")
    assert read_cell_result(copied.parents[4], VAE, Wanted()).nll is None
    shutil.rmtree(copied / "evaluations")
    write_config(config, copied / "config.toml")
    assert read_cell_result(copied.parents[4], VAE, Wanted()).nll is None


def test_records_of_other_models_are_no_result(copied):
    path = copied / "models" / "final-0" / "model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    assert read_cell_result(copied.parents[4], VAE, Wanted()).nll is None


def test_duplicate_seeds_are_refused(copied):
    shutil.copytree(copied, copied.with_name("seeds-0-1"))
    with pytest.raises(ValueError, match="hold the same seeds"):
        read_cell_result(copied.parents[4], VAE, Wanted())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seed-1", "holds seeds 0 to 0: name it after them"),
        ("seeds-0", "is not named after its seeds"),
        ("seeds-2-1", "is not named after its seeds"),
    ],
)
def test_run_must_be_named_after_its_seeds(copied, name, message):
    copied.rename(copied.with_name(name))
    with pytest.raises(ValueError, match=message):
        read_cell_result(copied.parents[4], VAE, Wanted())


RECORD = "evaluations/test-final-k5000"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def drop_key(key):
    """A function that removes a key from a record."""

    def change(path):
        record = json.loads(path.read_text())
        del record[key]
        path.write_text(json.dumps(record))

    return change


def fewer_values(path):
    with np.load(path, allow_pickle=False) as arrays:
        changed = {name: arrays[name] for name in arrays if name != "index"}
    np.savez(path, index=np.arange(3), **changed)


DAMAGES = [
    ("config.toml", lambda path: path.write_text("k = [1"), "config.toml cannot be read"),
    ("config.toml", lambda path: path.write_bytes(b"\xff\x00"), "config.toml cannot be read"),
    ("models/final-0/model.json", truncate, "models/final-0 cannot be read"),
    (f"{RECORD}.json", truncate, f"{RECORD}.json cannot be read as a record"),
    (
        f"{RECORD}.json",
        drop_key("subset"),
        f"{RECORD}.json cannot be read as a record \\(no subset\\)",
    ),
    (f"{RECORD}.npz", truncate, f"{RECORD}.npz cannot be read"),
    (f"{RECORD}.npz", Path.unlink, f"{RECORD}.npz cannot be read"),
    (f"{RECORD}.npz", fewer_values, f"{RECORD}.json is not the record of its values"),
]


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGES)
def test_damaged_folder_is_reported_and_is_no_result(copied, file, damage, message):
    out, other = copied.parents[4], "table1/mnist/1l/iwae-k5"
    damage(copied / file)
    broken, intact = read_cell_results(out, [VAE, other], Wanted())
    assert broken.nll is None
    assert broken.error.startswith(f"{VAE}: ")
    assert str(copied) in broken.error
    assert re.search(message, broken.error)
    assert "\n" not in broken.error
    assert intact == read_cell_result(out, other, Wanted())
    rows = table(out, [VAE, other], Wanted()).splitlines()
    assert "cannot be read" in rows[2]
    assert "not run" in rows[3]
    (task,) = plan_cells(out, [VAE], Wanted())  # planning still works
    assert task.name == f"{VAE}/seed-0"
    status = task_state(out, task).status
    assert status == ("trained" if file.startswith(RECORD) else "failed")


def test_seeds_measured_on_other_test_sets_are_not_averaged(copied):
    add_second_seed(copied, 0.2)
    path = copied.with_name("seed-1") / "evaluations" / "test-final-k5000.json"
    path.write_text(path.read_text().replace('"test_sha256": "', '"test_sha256": "0'))
    with pytest.raises(ValueError, match="different test sets"):
        read_cell_result(copied.parents[4], VAE, Wanted())


def test_run_without_models_is_no_result(copied):
    shutil.rmtree(copied / "models")
    assert read_cell_result(copied.parents[4], VAE, Wanted()).nll is None


def test_other_experiment_in_the_folder_of_a_cell_is_refused(copied):
    config = read_config(copied / "config.toml")
    write_config(config.model_copy(update={"learning_rate": 0.1}), copied / "config.toml")
    with pytest.raises(ValueError, match="is not the experiment"):
        read_cell_result(copied.parents[4], VAE, Wanted())


@pytest.mark.parametrize(
    ("nll", "seeds", "spread", "verdict"),
    [
        (86.7, 5, 0.1, "reproduced"),
        (87.0, 5, 0.01, "within 0.3 nats"),
        (87.0, 1, None, "within 0.3 nats"),  # one seed says nothing about the spread
        (87.3, 5, 0.2, "within what seeds differ by"),
        (87.3, 5, 0.1, "worse"),
        (87.3, 1, None, "worse"),
        (86.2, 5, 0.1, "better"),
    ],
)
def test_verdicts(nll, seeds, spread, verdict):
    cell = Cell(VAE, preset(VAE), nll=nll, stderr=0.3, spread=spread, seeds=seeds, epochs=3280)
    assert cell.verdict == verdict
    assert not cell.is_shortened
    assert cell._replace(epochs=33).verdict == "shortened: no reproduction"


def test_cell_by_a_shorter_earlier_fast_recipe_is_not_called_shortened():
    fast = preset(f"fast/{VAE}")
    cell = Cell(f"fast/{VAE}", fast, nll=86.7, stderr=0.3, seeds=1, epochs=fast.config().epochs - 1)
    assert cell.verdict == "fast recipe: not as published"


def test_true_density_is_shown_beside_the_model():
    (run,) = (RESULTS / "camel" / "vae-k1").glob("seeds-*")
    record = small.record_of(run, "test-final-k5000")
    text = table(RESULTS, ["camel/vae-k1"], Wanted())
    assert f"| {-record['log_likelihood']:.3f} ± " in text
    assert f"| {-record['true_log_likelihood']:.3f} " in text
    assert "NLL of the true density" in text
    assert "true density" not in table(RESULTS, [VAE], Wanted())


def test_list_marks_shortened_runs():
    cell = Cell(VAE, preset(VAE), nll=86.1, stderr=0.2, seeds=1, epochs=3280)
    assert "shortened" not in _list_line(cell, Wanted())
    assert "86.10 (shortened: no reproduction)" in _list_line(cell._replace(epochs=33), Wanted())


def test_warm_start_must_come_from_its_source_cell(copied):
    out, name = copied.parents[4], "table2/vae-to-iwae"
    *_, task = plan_cells(out, [name], Wanted())
    run = out / task.name
    shutil.copytree(copied, run)
    write_config(task.config, run / "config.toml")
    assert read_cell_result(out, name, Wanted()).nll is not None

    def assert_refused(message):
        with pytest.raises(UserError, match=message):
            read_cell_result(out, name, Wanted())

    elsewhere = task.config.model_copy(update={"init_from": out / "short" / "seed-0"})
    write_config(elsewhere, run / "config.toml")
    assert_refused("short/seed-0, and not from the same seeds of table1/mnist/1l/vae-k1")
    write_config(task.config, run / "config.toml")
    config = read_config(copied / "config.toml")
    for change in ({"epochs": 33}, {"learning_rate": 0.1}):
        write_config(config.model_copy(update=change), copied / "config.toml")
        assert_refused("which is not the experiment table1/mnist/1l/vae-k1")
    shutil.rmtree(copied)
    assert_refused("which is missing or not trained to its end")


def test_warm_start_whose_source_seeds_were_regrouped_is_refused(tmp_path):
    write_run_config(tmp_path, "table2/vae-to-iwae/seed-0", preset(VAE).config())
    write_run_config(tmp_path, f"{VAE}/seeds-0-1", preset(VAE).config(replicates=2))
    with pytest.raises(UserError, match=r"seed-0 has seeds that .*seeds-0-1 now holds"):
        plan_cells(tmp_path, ["table2/vae-to-iwae"], Wanted(seeds=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "--budget", "2h"], "--budget goes with these actions: run"),
        (["list", "--workers", "2"], "--workers goes with these actions: run"),
        (["status", "--dry-run"], "--dry-run goes with these actions: run"),
        (["table", "--ais", "500"], "--ais goes with these actions: run, status"),
        (["run", VAE, "--format", "latex"], "--format goes with these actions: table"),
        (["run", VAE, "--examples", "100"], "--examples .* needs --ais"),
    ],
)
def test_ignored_options_are_refused(arguments, message, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")  # as in all tests, on any number of cores
    with pytest.raises(UserError, match=message):
        reproduce_command(arguments)


def test_shortened_table_says_so_in_every_format(copied):
    out = copied.parents[4]
    shutil.copytree(out / "table1", out / "shortened-0.5" / "table1")
    for style in FORMATS:
        text = table(out, [VAE], Wanted(epochs_scale=0.5), style)
        assert "no reproduction" in text
        assert "no reproduction" not in table(out, [VAE], Wanted(), style)
    with pytest.raises(ValueError, match="known: markdown, latex, html"):
        table(out, [VAE], Wanted(), "pdf")


def test_table_has_its_values_in_every_format(copied):
    cells = [VAE, "table1/mnist/1l/iwae-k5"]
    text = table(copied.parents[4], cells, Wanted())
    nll, stderr, *_ = nll_over_draws(copied)
    (row,) = (line for line in text.splitlines() if VAE in line)
    shown = [cell.strip() for cell in row.split("|")][2:5]
    assert shown == [f"{nll:.2f} ± {stderr:.2f}", "86.76", f"{nll - 86.76:+.2f}"]
    assert re.search(r"iwae-k5 +\| not run +\| 85\.54 .* \d+ (h|min) +\|", text)
    latex = table(copied.parents[4], cells, Wanted(), "latex")
    assert r"\toprule" in latex
    assert r"L\_5000" in latex
    page = table(copied.parents[4], cells, Wanted(), "html")
    assert page.count("<tr>") == 3


@pytest.mark.slow
def test_stored_models_reproduce_the_recorded_numbers(tmp_path):
    stored = RESULTS / "camel" / "iwae-k20" / "seeds-0-3"
    shutil.copytree(stored, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    measured = evaluate_run(tmp_path / "run", ks=[5000])
    recorded = small.record_of(stored, "test-final-k5000")
    assert measured["test_sha256"] == recorded["test_sha256"]
    for now, then in zip(measured["replicates"], recorded["replicates"], strict=True):
        assert now["log_likelihood"] == pytest.approx(then["log_likelihood"], abs=1e-4)


# Fast recipes


def test_every_published_cell_has_a_fast_recipe_for_its_objective():
    tables = ("table1/", "table2/", "table3/", "miwae/", "aiwae/", "dreg/")
    published = [name for name in PRESETS if name.startswith(tables)]
    fast = {n for n, e in PRESETS.items() if e.is_fast and not n.startswith("fast/prior/")}
    assert {f"fast/{name}" for name in published} == fast
    for name in published:
        entry, fast = preset(name), preset(f"fast/{name}")
        assert (entry.nll, entry.active, entry.nll_64) == (fast.nll, fast.active, fast.nll_64)
        assert fast.needs is None
        config, end = entry.config(), fast.config().final()
        same = ("dataset", "layers", "objective", "k", "m", "alpha", "beta")
        assert [getattr(config, field) for field in same] == [getattr(end, field) for field in same]
        quiet = {"vae": "stl", "iwae": "dreg"}.get(config.objective, config.gradient)
        own = name.startswith(("miwae/", "aiwae/"))  # tables that compare gradients
        assert end.gradient == (config.gradient if own else quiet)
        assert end.schedule == "linear"


def test_unpublished_cells_follow_their_baseline():
    mnist = "fast/table1/mnist/1l/vae-k1", "fast/table1/mnist/2l/iwae-k50"
    names = preset_cells(["fast/prior/mnist"], "published")
    assert len(names) == 4
    assert presets_with_baselines(names) == [mnist[0], *names[:3], mnist[1], names[3]]
    # The row of the published cell shows the fast one too.
    assert presets_with_baselines([VAE, names[0]]) == [VAE, names[0]]
    for name in names:
        values, baseline = preset(name).config(), preset(preset(name).beside).config()
        differing = {
            field
            for field in type(values).model_fields
            if getattr(values, field) != getattr(baseline, field)
        }
        own = {"batch_size", "learning_rate", "stages"} if values.layers == 1 else set()
        assert differing == {"prior"} | own


def test_fast_table_2_trains_the_source_objective_first():
    for name, first in (("vae-to-iwae", ("vae", 1)), ("iwae-to-vae", ("iwae", 50))):
        config = preset(f"fast/table2/{name}").config()
        before = config.stage(len(config.stages) - 2, 1)
        assert (before.objective, before.k) == first


def test_cells_of_one_network_share_their_first_stages():
    def resolved(name):
        config = preset(f"fast/{name}").config()
        return config.model_copy(update={"layers": config.layers or 1})

    first = resolved("table1/mnist/1l/iwae-k50")
    alike = [
        "table1/mnist/1l/iwae-k5",
        "miwae/m8-k8",
        "miwae/piwae-m8-k8",
        "miwae/ciwae-beta0.5",
        "aiwae/mnist/iwae-s5",
    ]
    assert [shared_stages(first, resolved(name)) for name in alike] == [1] * len(alike)
    for name in ("table2/iwae-to-vae", "dreg/mnist/1l/k50"):
        assert shared_stages(first, resolved(name)) == 2
    for name in (
        "table1/mnist/1l/vae-k50",
        "table1/mnist/2l/iwae-k50",
        "table1/omniglot/1l/vae-k1",
    ):
        assert shared_stages(first, resolved(name)) == 0  # objective, layers, data


def test_cells_are_selected_by_recipe():
    assert preset_cells(["table2"], "published") == ["table2/vae-to-iwae", "table2/iwae-to-vae"]
    assert preset_cells(["table2"], "fast") == [
        "fast/table2/vae-to-iwae",
        "fast/table2/iwae-to-vae",
    ]
    assert preset_cells(["fast/table2"], "published") == preset_cells(["table2"], "fast")
    fast = [name for name in preset_cells(["*"], "published") if name.startswith("fast/")]
    assert fast == preset_cells(["fast/prior"], "published")  # in no paper, so by no other recipe
    assert set(fast) <= set(preset_cells(["*"], "fast"))
    assert not {f"fast/{name}" for name in fast} & set(preset_cells(["*"], "fast"))
    with pytest.raises(UserError, match="camel/vae-k1 has no fast recipe"):
        preset_cells(["camel"], "fast")


def test_fast_cell_is_no_reproduction_and_is_shown_beside_the_published_one():
    entry = preset(f"fast/{VAE}")
    fast = Cell(f"fast/{VAE}", entry, nll=86.76, stderr=0.2, spread=0.01, seeds=2, epochs=10**6)
    assert fast.verdict == "fast recipe: not as published"
    ours = Cell(VAE, preset(VAE), nll=86.76, stderr=0.2, spread=0.01, seeds=2, epochs=3280)
    assert ours.verdict == "reproduced"
    fast = fast._replace(nll=85.5, active=(21.0,))
    header, _, row = cell_results_table([ours], Wanted(), fast=[fast]).strip().splitlines()
    columns = [word.strip() for word in header.split("|")]
    cells = dict(zip(columns, (word.strip() for word in row.split("|")), strict=True))
    assert cells["NLL"].startswith("86.76")
    assert cells["fast NLL"].startswith("85.50")
    assert cells["fast active"] == "21"

"""Runs in stages: bit-for-bit resuming, and the settings that a stage inherits from its run."""

import json
import shutil
import signal
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_runs import exhaust, step_by_step, stop  # noqa: F401 - one is a fixture

import small
from cases import quick_rows
from iwae.config.experiment import TrainConfig, make_config
from iwae.config.stages import StageConfig, stages_from_text, stages_text
from iwae.config.toml import config_toml_values, read_config, write_config
from iwae.errors import UserError
from iwae.experiments.sweep import read_sweep
from iwae.objectives.building import objective
from iwae.objectives.objective import as_objective
from iwae.runs.folder import folder_config
from iwae.runs.jobs import initial_job_state, make_job
from iwae.runs.metrics import read_metrics
from iwae.runs.model_files import load_model
from iwae.runs.shared_stages import shared_beginning, shared_stages
from iwae.runs.start_and_resume import resume_run, start_run
from iwae.testing import LinearGaussian
from iwae.training import loop
from iwae.training.loop import Plan, init_best
from iwae.training.optimizers import adam, authors_adam, soap
from iwae.training.schedules import PAPER_RATES, staged_schedule
from iwae.training.stages import Stage, enter_stage, stage_carries, train_stages
from iwae.training.steps import Clock, Settings, init_state
from small import bits, finished, newest, outcome

# In memory, on objectives with simple gradients in their only parameter b


def pull(model, x, key):  # noqa: ARG001
    return x @ model.bias - 0.5 * model.bias @ model.bias


def push(model, x, key):  # noqa: ARG001
    return 2 * x @ model.bias - model.bias @ model.bias


PULL, PUSH = as_objective(pull), as_objective(push)
DATA = np.eye(7, dtype=np.float32)
HELD_OUT = np.float32(np.random.default_rng(1).normal(size=(4, 7)))
MODEL = LinearGaussian.random(n_latent=1, n_data=7)
PARTS = ({}, {"batch_size": 3}, {"objective": PUSH, "epochs": 3}, {"optimizer": soap()})
IDENTITY = optax.identity()


def make_stages(*stage_changes, rate=0.1):
    stages, clock = [], Clock(0, 0)
    for changes in stage_changes:
        options = {"objective": PULL, "optimizer": adam(), "batch_size": 2, "epochs": 2} | changes
        epochs, fresh = options.pop("epochs"), options.pop("fresh", None)
        per_epoch = len(DATA) // options["batch_size"]
        schedule = staged_schedule([rate], [1], 1)
        settings, number = Settings(**options), len(stages)
        stages.append(Stage(settings, schedule, epochs, per_epoch, clock, fresh, number=number))
        clock = Clock(stages[-1].end, clock.epoch + epochs)
    return stages


def initial_state(stages):
    state = init_state([MODEL], jax.random.key(0)[None], stages[0].settings)
    return state, init_best(state)


def train_all(stages, start=None, *, held_out=HELD_OUT, **plan):
    """All that training yields, from the beginning or from an earlier state."""
    state, best = start or initial_state(stages)
    plan = Plan(sum(stage.epochs for stage in stages), **plan)
    return list(train_stages(state, best, DATA, MODEL, stages, plan, held_out))


@pytest.mark.slow
@pytest.mark.parametrize("ema", [None, 0.8])
def test_run_resumes_bit_for_bit_from_a_dispatch_of_any_stage(monkeypatch, ema):
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.0)
    parts = [{**part, "ema": ema} for part in PARTS]
    stages = make_stages(*parts)
    uninterrupted = train_all(stages)
    reports = [report for *_, report in uninterrupted]
    assert [sum(r.stage == i for r in reports) for i in range(4)] == [4, 3, 7, 4]
    assert [r.step for r in reports if r.epoch_done] == [3, 6, 8, 10, 13, 16, 19, 22, 25]
    assert [r.epoch for r in reports if r.epoch_done] == list(range(1, 10))
    shares = [r.share for r in reports]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    for i in (1, 3, 5, 6, 9, 13, 15):  # within and at the end of stages and epochs
        state, best, _ = uninterrupted[i]
        resumed = train_all(stages, (state, best))
        assert bits(resumed[-1][:2]) == bits(uninterrupted[-1][:2]), f"dispatch {i}"
        assert resumed[-1][2].bound == reports[-1].bound


def test_order_of_an_epoch_depends_on_its_number_in_the_run(monkeypatch):
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.0)
    rate, plain = 0.5, {"optimizer": IDENTITY, "epochs": 3}
    stages = make_stages(
        {**plain, "epochs": 1, "batch_size": 7}, {**plain}, {**plain, "batch_size": 3}, rate=rate
    )
    start, _ = initial_state(stages)
    b = [np.asarray(start.params.bias[0])]
    bounds, seen = [], {}
    for state, _, report in train_all(stages, held_out=None):
        if report.steps > 1:  # the first dispatch of a stage is an epoch
            b = [np.asarray(state.params.bias[0])]
            continue
        after, size = np.asarray(state.params.bias[0]), 2 if report.stage == 1 else 3
        x = size * ((after - b[-1]) / rate + b[-1])
        if report.stage:
            epoch = report.epoch - report.epoch_done
            seen.setdefault(epoch, []).append(np.flatnonzero(np.round(x)).tolist())
            bounds.append(x @ b[-1] / size - 0.5 * b[-1] @ b[-1])
        if report.epoch_done:
            expected = np.mean(bounds) if report.stage else report.bound[0]
            assert report.bound[0] == pytest.approx(expected, rel=1e-4)
            bounds = []
        b.append(after)
    assert sorted(seen) == [2, 3, 5, 6]
    for epoch, batches in seen.items():
        key = jax.random.fold_in(jax.random.fold_in(start.key[0], 0), epoch)
        order = np.asarray(jax.random.permutation(key, 7))
        size = len(batches[0])
        assert batches == [sorted(order[i : i + size]) for i in range(0, 7 - size + 1, size)]


def optimiser_steps(state):
    """The number of steps in the state of the optimiser."""
    (count,) = {int(leaf[0]) for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == "int32"}
    return count


LEARNED_BETA = objective("ciwae", 2, beta="learned")


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    quick_rows(
        [
            ({}, {}, True),
            ({}, {"batch_size": 3}, True),
            ({}, {"objective": PUSH}, True),
            ({}, {"objective": PUSH, "fresh": False}, True),
            ({}, {"fresh": True}, False),
            ({}, {"optimizer": soap()}, False),
            ({"optimizer": soap()}, {"optimizer": soap(), "objective": PUSH}, True),
            ({"optimizer": authors_adam(2)}, {"optimizer": authors_adam(2)}, True),
            (
                {"optimizer": authors_adam(2)},
                {"optimizer": authors_adam(3), "batch_size": 3},
                False,
            ),
            ({}, {"objective": LEARNED_BETA}, False),
        ],
        *(1, 2, 4, 5, 9),
    ),
)
def test_optimiser_state_carries_over_if_compatible_and_not_fresh(before, after, kept):
    first, second = make_stages(before, after)
    state, best, _ = train_all([first])[-1]
    new, new_best = enter_stage(state, best, first, second, MODEL)
    assert optimiser_steps(state) == 6
    assert optimiser_steps(new) == (6 if kept else 0)
    if kept:
        assert bits(new.opt_state) == bits(state.opt_state)
    assert bits(new.params) == bits(state.params)
    assert new.step.tolist() == [6]
    same = second.settings.objective is PULL
    assert (float(new_best.value[0]) == float(best.value[0])) == same
    assert np.isneginf(new_best.value[0]) != same


@pytest.mark.parametrize("after", [{"optimizer": soap()}, {"objective": LEARNED_BETA}])
def test_incompatible_optimiser_state_cannot_be_carried_over(after):
    with pytest.raises(UserError, match="a stage that is not fresh needs the optimizer of the"):
        stage_carries(*make_stages({}, {**after, "fresh": False}))


def test_patience_ends_a_stage_and_restarts_with_another_objective():
    def epochs(*parts):
        reports = train_all(make_stages(*parts, rate=0.0), patience=2)
        return [report.epoch for *_, report in reports if report.epoch_done]

    other = {"objective": PUSH, "epochs": 5}
    assert epochs({"epochs": 5}, other) == [1, 2, 3, 6, 7, 8]
    # Under the same objective, the best bound is still that of the first stage.
    assert epochs({"epochs": 5}, {"epochs": 5}) == [1, 2, 3, 6, 7]
    assert epochs({"epochs": 2}, {"epochs": 5}) == [1, 2, 3, 4]


# Compared with a run without stages

TINY = {"batch_size": 150, "learning_rate": 1e-3, "epochs": 41}


def train_config(config, held_out=None):
    job = make_job(config)
    done = train_stages(
        *initial_job_state(job), job.dataset.train, job.models[0], job.stages, job.plan, held_out
    )
    return list(done)[-1][:2], job


@pytest.mark.slow
def test_paper_schedule_written_as_stages_gives_the_same_weights():
    plain = small.config(**TINY)
    stages = [
        {"epochs": 3**i, "schedule": "constant", "learning_rate": PAPER_RATES[i]} for i in range(8)
    ]
    (plain_state, plain_job), (staged_state, staged_job) = (
        train_config(each) for each in (plain, small.config(**TINY, stages=stages))
    )
    assert len(staged_job.stages) > 1
    assert plain_job.stage_ends == staged_job.stage_ends
    assert bits(plain_state) == bits(staged_state)


# In a folder

STAGES = "iwae k=2 epochs=2, elbo k=3 backward=1 epochs=2 optimizer=authors schedule=linear"
SHORT = {"ema": 0.9, "schedule": "constant", "learning_rate": 0.01}


def staged_run(stages=STAGES, **more):
    return {**SHORT, "stages": stages_from_text(stages), **more}


@pytest.mark.slow
@pytest.mark.parametrize("at_step", [43, 59, 89])
@pytest.mark.usefixtures("step_by_step")
def test_stopped_run_in_stages_resumes_with_identical_results(tmp_path, at_step, monkeypatch):
    run = tmp_path / "run"
    stop(start_run(small.config(**staged_run()), run), signal.SIGTERM, at_step)
    monkeypatch.undo()
    exhaust(resume_run(run))
    assert outcome(run) == outcome(finished(**staged_run()))


def test_run_can_be_rewound_to_the_end_of_a_stage(tmp_path):
    run = shutil.copytree(finished(**staged_run()), tmp_path / "run")
    reports = list(resume_run(run, stage=0))
    assert {report.stage for report in reports} == {1}
    assert reports[-1].step == 120
    assert outcome(run) == outcome(finished(**staged_run()))
    with pytest.raises(UserError, match="no stage 2; this schedule has 0 to 1"):
        next(resume_run(run, stage=2))


def test_run_in_stages_saves_the_weight_average_and_logs_its_stages():
    run = finished(**staged_run())
    state = newest(run).state
    final = load_model(run / "models" / "final-0")
    assert bits(final) == bits(jax.tree.map(lambda leaf: leaf[0], state.ema))
    assert bits(state.ema) != bits(state.params)
    about = json.loads((run / "models" / "final-0" / "model.json").read_text())["about"]
    assert (about["epoch"], about["finished"]) == (4, True)
    rows = read_metrics(run)
    assert [row["stage"] for row in rows] == [0, 0, 1, 1]
    expected = [0.01, 0.01, 0.01 * (1 - 29 / 60), 0.01 * (1 - 59 / 60)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected, rel=1e-4)
    assert newest(run).best.epoch[0] in (3, 4)  # of the last objective


def test_run_reuses_the_first_stages_of_other_runs(tmp_path, caplog):
    other = finished(**staged_run())
    first, _ = STAGES.split(",")
    ways = {
        "alone": {"stages": f"{first}, gradient=stl epochs=2"},
        "whole": {},
        "seed": {"seed": 1},
        "first": {"stages": STAGES.replace("k=2", "k=1", 1)},
    }
    alone = finished(**staged_run(**ways["alone"]))
    jobs = {name: make_job(small.config(**staged_run(**way))) for name, way in ways.items()}
    shared = {name: shared_stages(job.config, folder_config(other)) for name, job in jobs.items()}
    assert shared == {"alone": 1, "whole": 2, "seed": 0, "first": 0}
    for name, like in (("alone", alone), ("whole", other)):
        run = tmp_path / name
        reports = list(start_run(jobs[name].config, run, others=[finished(), other]))
        assert sum(report.epoch_done for report in reports) == {"alone": 2, "whole": 0}[name]
        assert outcome(run) == outcome(like)
        assert frames(run) == frames(like)
        assert f"has its {shared[name]} first stage" in caplog.text
    damaged = shutil.copytree(other, tmp_path / "damaged")
    for path in (damaged / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert shared_beginning(jobs["alone"], [damaged], jobs["alone"].dataset.identity) is None
    assert "damaged" in caplog.text


def frames(run):
    return {path.name: path.read_bytes() for path in sorted((run / "frames").iterdir())}


def test_stored_configuration_with_stages_resolves_to_itself():
    run = finished(**staged_run())
    config = read_config(run / "config.toml")
    assert config.stages == stages_from_text(STAGES)
    job = make_job(config)
    assert job.config == config
    assert job.stage_ends == (60, 120)
    assert "[[stages]]" in (run / "config.toml").read_text()


# The configuration

positive = st.floats(1e-9, 1e9)
counts = st.integers(1, 1000)
a_stage = st.fixed_dictionaries(
    {"epochs": counts},
    optional={
        "objective": st.sampled_from(["iwae", "vr-iwae", "elbo"]),
        "k": counts,
        "gradient": st.sampled_from(["stl", "dreg-alpha"]),
        "backward": counts,
        "alpha": st.floats(-10, 10),
        "beta": st.one_of(st.floats(0, 1), st.just("learned")),
        "kl_warmup": counts,
        "free_bits": positive,
        "fresh": st.booleans(),
        "schedule": st.sampled_from(["constant-linear", "cosine"]),
        "learning_rate": positive,
        "lr_warmup": positive,
    },
)


@given(st.lists(a_stage, min_size=1, max_size=4))
def test_stages_round_trip_through_text(values):
    stages = tuple(StageConfig(**one) for one in values)
    assert stages_from_text(stages_text(stages)) == stages


def test_stages_are_parsed_from_text():
    first, second = stages_from_text("iwae k=5  epochs=100,vae lr-warmup=0.5 fresh=true epochs=20 ")
    assert first.given() == {"objective": "iwae", "k": 5, "epochs": 100}
    assert second.given() == {"objective": "vae", "lr_warmup": 0.5, "fresh": True, "epochs": 20}
    assert stages_from_text("epochs=3")[0].given() == {"epochs": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "stage 1 needs epochs, such as epochs=10"),
        ("iwae k=5", "stage 1 needs epochs"),
        ("iwae epochs=1,", "stage 2 needs epochs"),
        ("iwae 5 epochs=1", "stage 1: '5' is not a setting: give one such as epochs=10"),
        ("iwae epochs=1, kk=5 epochs=1", "stage 2: unknown key 'kk'; did you mean 'k'?"),
        ("epochs=1 epochs=2", "stage 1: epochs is given twice"),
        ("iwae k=0 epochs=1", "stage 1: k: "),
        ("iwae epochs=many", "stage 1: epochs: .*integer"),
        ("iwae optimizer=sgd epochs=1", "stage 1: optimizer: "),
    ],
)
def test_invalid_text_of_stages_is_refused(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        stages_from_text(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stages": []}, "stages is empty: leave it out"),
        ({"stages": 5}, "stages must be a list of tables"),
        ({"stages": [5]}, "stage 1: .*StageConfig"),
        ({"stages": [{"k": 1}]}, "stage 1: epochs: Field required"),
        ({"stages": [{"epochs": 1, "ks": 1}]}, "stage 1: unknown key 'ks'; did you mean 'k'?"),
        ({"stages": [{"epochs": 1}, {"epochs": 1, "k": 0}]}, "stage 2: k: .*greater"),
        ({"stages": [{"epochs": 1, "objective": "iwaee"}]}, "stage 1: no objective 'iwaee'; did"),
        (
            {"stages": [{"epochs": 1, "lr_warmup": 2.0}]},
            "stage 1: lr_warmup is 2.0, but epochs is 1",
        ),
        ({"stages": [{"epochs": 1, "objective": "tvo", "backward": 2}]}, "stage 1: backward does"),
        ({"stages": [{"epochs": 3}], "kl_warmup": 1}, "kl_warmup of a run with stages belongs to"),
        (
            {"stages": [{"epochs": 3}], "lr_warmup": 1.0},
            "lr_warmup of a run with stages belongs to",
        ),
    ],
)
def test_invalid_stages_are_refused(values, message):
    with pytest.raises(UserError, match=f"^here: {message}"):
        make_config(values, "here")


@pytest.mark.parametrize(
    ("run", "stage", "expected"),
    [
        ({"k": 7, "batch_size": 10}, {}, {"k": 7, "batch_size": 10, "objective": "iwae"}),
        ({"k": 7, "backward": 3}, {"k": 50}, {"k": 50, "backward": 3}),
        ({"learning_rate": 0.1}, {"schedule": "cosine"}, {"learning_rate": 0.1}),
        ({"optimizer": "soap", "ema": 0.9}, {}, {"optimizer": "soap", "ema": 0.9}),
        ({"optimizer": "soap"}, {"optimizer": "adam"}, {"optimizer": "adam"}),
        (
            {"objective": "miwae", "m": 2, "gradient": "dreg"},
            {"k": 3},
            {"objective": "miwae", "m": 2, "gradient": "dreg", "k": 3},
        ),
        (
            {"objective": "miwae", "m": 2, "gradient": "dreg"},
            {"objective": "miwae", "m": 4},
            {"m": 4, "gradient": "dreg"},
        ),
        (
            {"objective": "miwae", "m": 2, "gradient": "dreg", "k": 3},
            {"objective": "iwae"},
            {"m": None, "gradient": None, "k": 3},
        ),
        ({"gradient": "dreg"}, {"gradient": "stl"}, {"gradient": "stl"}),
    ],
)
def test_stage_inherits_omitted_settings_from_the_run(run, stage, expected):
    config = make_config({**run, "stages": [{"epochs": 2, **stage}]}, "here")
    resolved = config.stage(0, 2)
    assert {name: getattr(resolved, name) for name in expected} == expected
    assert (resolved.stages, resolved.epochs) == (None, 2)
    assert config.final() == resolved


def test_shortened_stage_scales_its_warm_up():
    stages = "elbo k=1 epochs=150 kl_warmup=30 lr_warmup=3, iwae k=5 epochs=50"
    short = TrainConfig(stages=stages, epochs=20).stage(0, 15)
    assert (short.epochs, short.kl_warmup, short.lr_warmup) == (15, 3, 0.3)
    long_warm_up = TrainConfig(stages="epochs=25 lr_warmup=25", epochs=7).stage(0, 7)
    assert long_warm_up.lr_warmup == 7


@given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.integers(1, 3000))
def test_epochs_of_stages_scale_in_proportion(lengths, total):
    stages = [{"epochs": epochs} for epochs in lengths]
    config = TrainConfig(stages=stages, epochs=total)
    found = config.stage_epochs()
    assert sum(found) == total
    assert min(found) >= 0
    assert found[-1] >= 1
    ends = np.float64(list(accumulate(lengths))) * total / sum(lengths)
    ends[:-1] = np.minimum(ends[:-1], total - 1)
    assert np.abs(np.cumsum(found) - ends).max() <= 0.5
    assert TrainConfig(stages=stages).stage_epochs() == tuple(lengths)


def test_file_with_stages_round_trips_with_their_total_epochs(tmp_path):
    config = make_config({"stages": [{"epochs": 3, "k": 2}, {"epochs": 4}]}, "here")
    assert config.epochs == 7
    write_config(config, tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config
    path = tmp_path / "own.toml"
    path.write_text("k = 5\n[[stages]]\nepochs = 3\nk = 2\n[[stages]]\nepochs = 4\nk = 9\n")
    read = read_config(path)
    assert (read.epochs, [stage.k for stage in read.stages]) == (7, [2, 9])
    assert config_toml_values(read)["stages"] == [{"k": 2, "epochs": 3}, {"k": 9, "epochs": 4}]


def test_stages_are_not_swept_over(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        'dataset = "digits"\nk = [2, 5]\n[[stages]]\nepochs = 3\n[[stages]]\nepochs = 4\n'
    )
    tasks = read_sweep(path, tmp_path / "out")
    assert [(task.name, task.config.epochs, len(task.config.stages)) for task in tasks] == [
        ("k=2", 7, 2),
        ("k=5", 7, 2),
    ]


def test_settings_of_a_run_need_not_be_valid_if_its_stages_are():
    config = small.config(objective="rws", k=1, stages=[{"epochs": 1, "k": 2}])
    job = make_job(config)
    assert job.config.stages == config.stages
    assert make_job(job.config).config == job.config


def test_last_stage_keeps_at_least_one_epoch():
    config = TrainConfig(stages=[{"epochs": 1000, "k": 5}, {"epochs": 1, "k": 9}], epochs=10)
    assert config.stage_epochs() == (9, 1)
    assert (config.final().k, config.final().epochs) == (9, 1)


def test_unknown_objective_of_a_run_with_stages_is_refused():
    with pytest.raises(UserError, match="no objective 'iwea'; did you mean iwae"):
        make_config({"objective": "iwea", "stages": "iwae k=4 epochs=2"}, "here")
    for wrong in (3, {"epochs": 2}):
        with pytest.raises(UserError, match="stages must be a list of tables, or a line"):
            make_config({"stages": wrong}, "here")


def test_learned_beta_carries_over_with_the_optimiser_state():
    other = objective("ciwae", 3, beta="learned")
    first, second = make_stages({"objective": LEARNED_BETA}, {"objective": other})
    state, best = initial_state([first])
    beta = jnp.full_like(state.extra.learned, 0.7)
    state = state._replace(extra=state.extra._replace(learned=beta))
    assert bits(enter_stage(state, best, first, second, MODEL)[0].extra.learned) == bits(beta)
    fresh = enter_stage(state, best, first, second._replace(fresh=True), MODEL)[0]
    assert bits(fresh.extra.learned) == bits(jnp.zeros_like(beta))


@pytest.mark.slow
def test_best_weights_of_an_earlier_bound_are_removed(tmp_path):
    stages = [{"objective": "elbo", "epochs": 2}, {"epochs": 1, "k": 3}]
    config = small.config(stages=stages, epochs=3, validate_every=2)
    best = tmp_path / "run" / "models" / "best-0"
    seen = []
    for report in start_run(config, tmp_path / "run"):
        seen += [best.exists()] if report.epoch_done else []
    assert seen[1]
    assert not best.exists()


def test_stages_without_an_epoch_are_skipped():
    config = small.config(stages=[{"epochs": 1, "k": 1}, {"epochs": 9}], epochs=2)
    job = make_job(config)
    assert config.stage_epochs() == (0, 2)
    assert [stage.epochs for stage in job.stages] == [2]
    assert job.stage_ends == (0, 60)

"""Run folders: the same result however often a run is stopped, killed, damaged or rewound."""

import json
import logging
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

import small
from cases import quick
from iwae.config.toml import read_config, write_config
from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.runs import metrics, start_and_resume
from iwae.runs.checkpoints import list_checkpoints
from iwae.runs.jobs import initial_job_state, make_job
from iwae.runs.metrics import read_metrics
from iwae.runs.model_files import load_model
from iwae.runs.start_and_resume import resume_run, start_run
from iwae.runs.stopping import Stopped
from iwae.training import loop
from iwae.training.loop import NonFiniteError
from small import PATIENT, STEPS_PER_EPOCH, bits, finished, newest, outcome, train_in


def with_signal(reports, number, at_step):
    """Yield the reports, and signal this process once the run has reached a step."""
    sent = False
    for report in reports:
        yield report
        if report.step >= at_step and not sent:
            os.kill(os.getpid(), number)
            sent = True


def stop(reports, number, at_step):
    with pytest.raises(Stopped, match=signal.Signals(number).name) as caught:
        exhaust(with_signal(reports, number, at_step))
    assert caught.value.signal_number == number


def kill(reports, at_step):
    """Abandon a run once it has reached a step, as a kill would."""
    for report in reports:
        if report.step >= at_step:
            return reports.close()
    raise AssertionError("the run was over too soon")


def exhaust(reports):
    for _ in reports:
        pass


@pytest.fixture
def step_by_step(monkeypatch):
    """Make every dispatch a single step, after a first one of twenty."""
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.0)


@pytest.fixture
def save_every_dispatch(monkeypatch):
    """Save a checkpoint after every dispatch."""
    monkeypatch.setattr(start_and_resume, "CHECKPOINT_SECONDS", -1.0)


def copy_of(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def steps_of(run):
    return [int(path.stem) for path in list_checkpoints(run / "checkpoints")]


# Contents of the folder


@pytest.mark.slow
def test_run_folder_has_the_documented_contents():
    run, optional = finished(), {"evaluations", "figures"}  # from other tests
    assert {path.name for path in run.iterdir()} - optional == {
        *("config.toml", "metrics.jsonl", "tensorboard", "checkpoints", "models", "frames"),
        ".lock",
    }
    assert {path.name for path in (run / "models").iterdir()} == {"final-0", "best-0"}
    assert steps_of(run) == [STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH]  # the ends of two stages


@pytest.mark.slow
def test_metrics_have_one_line_of_plain_json_per_epoch():
    run = finished()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [30, 60, 90, 120]
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [0.1 * 10 ** (-6 / 7), *[0.01] * 3]
    )
    for row in rows:
        assert len(row["train_bound"]) == len(row["validation_bound"]) == 1
        assert np.shape(row["kl"]) == np.shape(row["active_units"]) == (1, 1)
        elbo = row["reconstruction"][0] - row["kl"][0][0]
        assert elbo == pytest.approx(row["validation_bound"][0], abs=1.0)
    assert rows[-1]["train_bound"] > rows[0]["train_bound"]


@pytest.mark.slow
def test_tensorboard_has_the_numbers_of_the_metrics():
    from tensorboardX.proto.event_pb2 import Event

    logged = {}
    for path in (finished() / "tensorboard").iterdir():
        content = path.read_bytes()
        while content:  # length, its checksum, the event, its checksum
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            for value in event.summary.value:
                logged[event.step, value.tag] = value.simple_value
    for row in read_metrics(finished()):
        for name in ("train_bound", "train_iwae", "validation_bound", "reconstruction"):
            assert logged[row["step"], f"{name}/replicate_0"] == pytest.approx(row[name][0])
        assert logged[row["step"], "kl/replicate_0/layer_1"] == pytest.approx(row["kl"][0][0])
        assert logged[row["step"], "learning_rate"] == pytest.approx(row["learning_rate"])


@pytest.mark.slow
def test_resolved_configuration_reproduces_the_run(tmp_path):
    config = read_config(finished() / "config.toml")
    assert (config.binarization, config.observation, config.layers) == ("dynamic", "bernoulli", 1)
    exhaust(start_run(config, tmp_path / "again"))
    assert outcome(tmp_path / "again") == outcome(finished())


def test_files_are_synced_before_they_are_renamed(tmp_path, monkeypatch):
    """A power failure then leaves either the old file or the new one."""
    path, seen = tmp_path / "file", []
    monkeypatch.setattr(
        os, "fsync", lambda file: seen.append((stat.S_ISDIR(os.fstat(file).st_mode), path.exists()))
    )
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert seen == [(False, False), (True, True)]  # the file, then the folder with its name


def test_relative_data_path_resolves_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(small.pictures().parent)
    train_in(tmp_path / "run", dataset="pictures.npz", epochs=1)
    monkeypatch.chdir(tmp_path)
    exhaust(resume_run(tmp_path / "run"))


def test_best_model_has_the_best_validation_bound():
    rows = read_metrics(finished())
    values = [row["validation_bound"][0] for row in rows]
    description = json.loads((finished() / "models" / "best-0" / "model.json").read_text())
    assert description["about"]["validation"] == pytest.approx(max(values))
    assert description["about"]["epoch"] == 1 + int(np.argmax(values))
    assert not (small.unvalidated() / "models" / "best-0").exists()


@pytest.mark.slow
def test_seed_and_output_bias_determine_the_initial_model(tmp_path):
    def initial_output_bias(**changes):
        return make_job(small.config(**changes)).models[0].output.bias

    train_in(tmp_path / "other", seed=1, epochs=1)
    train_in(tmp_path / "same", epochs=1)
    frames = [
        np.load(run / "frames" / "000000.npz")["samples"]
        for run in (tmp_path / "other", tmp_path / "same", finished())
    ]
    assert not np.allclose(frames[0], frames[1])
    np.testing.assert_array_equal(frames[1], frames[2])
    assert not initial_output_bias(output_bias=False).any()
    assert np.asarray(jax.nn.sigmoid(initial_output_bias())) == pytest.approx(
        make_job(small.config()).dataset.train_mean, rel=1e-4
    )


# Stopped and resumed


@pytest.mark.parametrize("at_step", quick([20, 43, 59], 43))
@pytest.mark.usefixtures("step_by_step")
def test_stopped_run_resumes_with_identical_results(tmp_path, at_step, monkeypatch):
    run = tmp_path / "run"
    stop(start_run(small.config(), run), signal.SIGTERM, at_step)
    assert steps_of(run)[-1] == at_step + 1  # one dispatch later
    monkeypatch.undo()
    exhaust(resume_run(run))
    assert outcome(run) == outcome(finished())


@pytest.mark.slow
@pytest.mark.usefixtures("step_by_step")
def test_learned_priors_and_flows_resume_with_identical_results(tmp_path, monkeypatch):
    run, learned = tmp_path / "run", {"prior": "vamp:5", "posterior": "flow:2"}
    stop(start_run(small.config(**learned), run), signal.SIGTERM, 43)
    monkeypatch.undo()
    exhaust(resume_run(run))
    assert outcome(run) == outcome(finished(**learned))


@pytest.mark.usefixtures("step_by_step", "save_every_dispatch")
def test_killed_run_resumes_from_its_last_checkpoint(tmp_path, monkeypatch):
    run = tmp_path / "run"
    kill(start_run(small.config(), run), at_step=33)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "ste')  # cut off by the kill
    monkeypatch.undo()
    kill(resume_run(run), at_step=60)  # nothing is saved there, but metrics are
    assert steps_of(run)[-1] == 33
    assert len(read_metrics(run)) == 2
    exhaust(resume_run(run))
    assert outcome(run) == outcome(finished())


def test_run_killed_before_its_first_checkpoint_restarts(tmp_path, caplog):
    run = tmp_path / "run"
    kill(start_run(small.config(), run), at_step=1)
    exhaust(resume_run(run))
    assert "stopped before its first checkpoint: starting from the beginning" in caplog.text
    assert outcome(run) == outcome(finished())


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    run = copy_of(finished(), tmp_path)
    assert list(resume_run(run)) == []
    assert outcome(run) == outcome(finished())


def test_second_signal_stops_immediately(tmp_path, ctrl_c):
    reports = start_run(small.config(), tmp_path / "run")
    next(reports)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    reports.close()
    assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_signal_takes_effect_after_a_checkpoint_is_written(tmp_path, monkeypatch):
    """Also a signal that arrives while a checkpoint is being written."""
    save, run = start_and_resume._save, tmp_path / "run"

    def save_and_signal(*arguments):
        save(*arguments)
        if len(steps_of(run)) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(start_and_resume, "_save", save_and_signal)
    with pytest.raises(Stopped):
        train_in(run)
    assert len(steps_of(run)) == 2


def test_training_works_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=train_in, args=(tmp_path / "run",))
    thread.start()
    thread.join()
    assert outcome(tmp_path / "run") == outcome(finished())


WAITING = """
import sys
from iwae.cli import main
from iwae.runs import start_and_resume

training = start_and_resume.train_stages

def waiting(*arguments):
    for step in training(*arguments):
        yield step
        print(step[2].step, flush=True)
        sys.stdin.readline()

start_and_resume.train_stages = waiting
sys.exit(main(sys.argv[1:]))
"""


class Process:
    """`iwae train` in its own process, which waits for a line of input after every dispatch."""

    def __init__(self, *arguments):
        environment = {
            **os.environ,
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_COMPILATION_CACHE_DIR": str(small.FOLDER / "compiled"),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", WAITING, "train", *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def dispatches(self, n):
        """Wait for the n-th dispatch from here."""
        for i in range(n):
            if i:
                print(file=self.process.stdin, flush=True)
            assert self.process.stdout.readline().strip().isdigit(), self.process.stderr.read()

    def end(self, number):
        """Send a signal; returns the exit status and standard error."""
        self.process.send_signal(number)
        _, error = self.process.communicate()
        return self.process.returncode, error


@pytest.mark.slow
def test_processes_stopped_by_signals_resume(tmp_path):
    run = tmp_path / "run"
    small.write_config(run.with_suffix(".toml"))
    first = Process(str(run.with_suffix(".toml")), "--out", str(run))
    first.dispatches(2)
    code, error = first.end(signal.SIGTERM)
    assert (code, error.splitlines()[-1]) == (
        143,
        f"stopped by SIGTERM; resume with: iwae train --resume {run}",
    )
    second = Process("--resume", str(run))
    second.dispatches(1)
    with pytest.raises(UserError, match="in use by another process"):
        next(resume_run(run))
    code, error = second.end(signal.SIGINT)
    assert (code, error.splitlines()[-1]) == (
        130,
        f"stopped by SIGINT; resume with: iwae train --resume {run}",
    )
    third = Process("--resume", str(run))
    third.dispatches(1)
    code, error = third.end(signal.SIGKILL)
    assert code == -9
    assert "Traceback" not in error
    before = steps_of(run)[-1]
    reports = list(resume_run(run))
    assert 0 < before < reports[0].step <= reports[-1].step == 120
    assert outcome(run) == outcome(finished())


# Rewound to a stage


def test_run_can_be_rewound_to_the_end_of_a_stage_repeatedly(tmp_path):
    run = copy_of(finished(), tmp_path)
    for _ in range(2):
        reports = resume_run(run, stage=6)
        assert next(reports).step > STEPS_PER_EPOCH
        assert steps_of(run) == [STEPS_PER_EPOCH]
        assert len(read_metrics(run)) == 1
        exhaust(reports)
        assert outcome(run) == outcome(finished())


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (8, "no stage 8; this schedule has 0 to 7"),
        (-1, "no stage -1"),
        (0, "stage 0 has no epochs in a run of 4"),
    ],
)
def test_invalid_stage_is_refused(stage, message):
    with pytest.raises(UserError, match=message):
        next(resume_run(finished(), stage=stage))


def test_stage_not_yet_reached_is_refused(tmp_path):
    run = copy_of(finished(), tmp_path)
    (run / "checkpoints" / "0000000120.safetensors").unlink()
    with pytest.raises(UserError, match="no checkpoint at the end of stage 7"):
        next(resume_run(run, stage=7))


def test_old_checkpoints_are_removed_except_those_of_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(start_and_resume, "CHECKPOINT_SECONDS", -1.0)
    train_in(tmp_path / "run")
    kept = steps_of(tmp_path / "run")
    assert len(kept) == 3
    assert {STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH} < set(kept)


# Damage


def damage(path):
    """Change one byte of a file after its header."""
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 0x10
    path.write_bytes(content)


def test_damaged_checkpoint_is_reported_and_the_previous_one_used(tmp_path, caplog):
    run = copy_of(finished(), tmp_path)
    damage(run / "checkpoints" / "0000000120.safetensors")
    reports = list(resume_run(run))
    assert reports[0].step > STEPS_PER_EPOCH
    (message,) = caplog.messages
    assert "0000000120.safetensors is damaged" in message
    assert message.endswith("trying the previous one")
    assert outcome(run) == outcome(finished())


@pytest.mark.parametrize("destroy", [damage, Path.unlink])
def test_run_without_readable_checkpoints_is_not_retrained(tmp_path, destroy, caplog):
    run = copy_of(finished(), tmp_path)
    for path in list_checkpoints(run / "checkpoints"):
        destroy(path)
    with pytest.raises(
        UserError, match=rf"no readable checkpoint left.*: iwae train {run}/config.toml"
    ):
        next(resume_run(run))
    assert {record.levelno for record in caplog.records} <= {logging.WARNING}
    assert (run / "metrics.jsonl").read_text() == (finished() / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "line",
    quick(
        [
            "",
            "{",
            "[]",
            "3",
            "{}",
            '{"epoch": 1, "step": null}',
            '{"epoch": 2, "step": 60}',
            "\xff",
        ],
        *("{", '{"epoch": 1, "step": null}', '{"epoch": 2, "step": 60}', "\xff"),
    ),
)
def test_damaged_metrics_line_is_skipped_and_does_not_block_resuming(tmp_path, caplog, line):
    run = copy_of(finished(), tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1] = line
    (run / "metrics.jsonl").write_text("\n".join([*lines, ""]), encoding="latin1")
    assert [row["epoch"] for row in read_metrics(run)] == [1, 3, 4]
    assert list(resume_run(run)) == []
    assert f"{run}/metrics.jsonl: line 2 is damaged and skipped" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.2}, "learning_rate was 0.1, now 0.2; restore it"),
        ({"objective": "elbo"}, "objective was iwae, now elbo"),
        ({"epochs": 8, "k": 3}, "epochs was 4, now 8; k was 2, now 3"),
    ],
)
def test_run_with_an_edited_configuration_is_not_resumed(tmp_path, changes, message):
    run = copy_of(finished(), tmp_path)
    edited = read_config(run / "config.toml").model_copy(update=changes)
    write_config(edited, run / "config.toml")
    with pytest.raises(UserError, match=f"not what the run was trained with: .*{message}"):
        next(resume_run(run))


def test_data_path_and_log_interval_may_change_on_resume(tmp_path):
    run = copy_of(finished(), tmp_path)
    shutil.copy(small.pictures(), tmp_path / "pictures.npz")
    moved = {"dataset": str(tmp_path / "pictures.npz"), "log_every": 3}
    write_config(read_config(run / "config.toml").model_copy(update=moved), run / "config.toml")
    assert list(resume_run(run)) == []


def test_damaged_checkpoint_of_a_stage_is_an_error(tmp_path):
    run = copy_of(finished(), tmp_path)
    damage(run / "checkpoints" / "0000000030.safetensors")
    with pytest.raises(UserError, match="checkpoint of stage 6 is damaged"):
        next(resume_run(run, stage=6))
    assert steps_of(run) == [30, 120]


def test_changed_data_under_the_same_name_are_refused(tmp_path):
    validation = small.grey()[300:350]
    train_in(tmp_path / "run", **small.own_data(tmp_path / "own.npz", validation=validation))
    small.own_data(tmp_path / "own.npz", seed=1, validation=validation)
    with pytest.raises(UserError, match=r"the data found now .*: restore .*own\.npz to resume, or"):
        next(resume_run(tmp_path / "run"))
    np.savez(tmp_path / "own.npz", train=np.zeros((9, 3)), other=np.zeros(3))
    with pytest.raises(UserError, match=r"own\.npz must be as it was when the run began"):
        next(resume_run(tmp_path / "run"))


@pytest.mark.slow
def test_run_on_data_with_their_own_validation_set_resumes(tmp_path):
    run, validation = tmp_path / "run", small.grey()[300:350]
    train_in(run, **small.own_data(tmp_path / "own.npz", validation=validation))
    before = outcome(run)
    assert "models/best-0/model.json" in before[1]
    exhaust(resume_run(run))
    assert outcome(run) == before


# Folders


def test_nonempty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        next(start_run(small.config(), finished()))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="is not empty"):
        next(start_run(small.config(), tmp_path))
    with pytest.raises(UserError, match="is a file"):
        next(start_run(small.config(), tmp_path / "notes.txt"))
    with pytest.raises(UserError, match="holds no run: config"):
        next(resume_run(tmp_path))


def test_concurrent_starts_in_one_folder_do_not_mix(tmp_path, monkeypatch):
    """The second start finds the folder empty, and only later the first run in it."""
    run, second = tmp_path / "run", start_run(small.config(epochs=1), tmp_path / "run")
    job = make_job

    def slow_job(*arguments):
        monkeypatch.undo()
        train_in(run, epochs=1, seed=3)
        return job(*arguments)

    monkeypatch.setattr(start_and_resume, "make_job", slow_job)
    with pytest.raises(UserError, match="already holds a run"):
        next(second)
    assert read_config(run / "config.toml").seed == 3


def test_run_is_locked_by_one_process_at_a_time(tmp_path):
    first = start_run(small.config(), tmp_path / "run")
    next(first)
    with pytest.raises(UserError, match="in use by another process"):
        next(resume_run(tmp_path / "run"))
    first.close()
    next(resume_run(tmp_path / "run"))


# Replicates and early stopping


@pytest.fixture(scope="module")
def pair():
    return finished(replicates=2, **PATIENT)


def test_each_replicate_matches_the_single_run_of_its_seed(pair):
    leaves = jax.tree.leaves(tuple(newest(pair))[:2])
    for replicate in (0, 1):
        alone = newest(finished(seed=replicate, **PATIENT))
        assert bits([leaf[replicate : replicate + 1] for leaf in leaves]) == bits(
            (alone.state, alone.best)
        )
        for weights in ("final", "best"):
            mine = load_model(pair / "models" / f"{weights}-{replicate}")
            other = finished(seed=replicate, **PATIENT) / "models" / f"{weights}-0"
            assert bits(mine) == bits(load_model(other))


def test_metrics_of_a_stopped_replicate_are_null(pair):
    stops = (newest(pair).state.step // STEPS_PER_EPOCH).tolist()
    assert stops[0] != stops[1], "choose other settings: replicates should stop apart"
    assert max(stops) < 7
    rows = read_metrics(pair)
    assert len(rows) == max(stops)
    for row in rows:
        assert [bound is not None for bound in row["train_bound"]] == [
            row["epoch"] <= stop for stop in stops
        ]


@pytest.mark.usefixtures("step_by_step")
def test_stopped_run_remembers_its_patience(pair, tmp_path, monkeypatch):
    first = int(newest(pair).state.step.min())
    run = tmp_path / "run"
    stop(start_run(small.config(replicates=2, **PATIENT), run), signal.SIGINT, first + 7)
    monkeypatch.undo()
    exhaust(resume_run(run))
    assert outcome(run) == outcome(pair)


# From a trained model


def test_warm_start_copies_the_weights_and_optionally_the_optimiser(tmp_path):
    start = finished()
    for keep in (False, True):
        job = make_job(small.config(init_from=start, keep_optimizer=keep, k=1, epochs=1))
        state, best = initial_job_state(job)
        assert bits(state.params) == bits(newest(start).state.params)
        assert (bits(state.opt_state) == bits(newest(start).state.opt_state)) == keep
        assert state.step.tolist() == best.waited.tolist() == [0]
        assert best.value.tolist() == [-math.inf]
        train_in(tmp_path / f"{keep}", init_from=start, keep_optimizer=keep, epochs=1)
    assert outcome(tmp_path / "True")[1] != outcome(tmp_path / "False")[1]
    config = read_config(tmp_path / "True" / "config.toml")
    assert (config.init_from, config.keep_optimizer) == (start, True)


def test_optimiser_state_is_kept_between_objectives_with_the_same_parameters():
    start, aiwae = finished(), {"objective": "aiwae", "temperatures": 2, "leapfrog": 1}
    state, _ = initial_job_state(
        make_job(small.config(init_from=start, keep_optimizer=True, epochs=1, **aiwae))
    )
    assert bits(state.opt_state) == bits(newest(start).state.opt_state)
    learned = {"objective": "ciwae", "beta": "learned"}
    job = make_job(small.config(init_from=start, keep_optimizer=True, epochs=1, **learned))
    with pytest.raises(UserError, match="trained with iwae, and ciwae learns other arrays"):
        initial_job_state(job)


@pytest.mark.usefixtures("step_by_step")
def test_stopped_warm_start_resumes_without_its_source_run(tmp_path):
    start, run = copy_of(finished(), tmp_path), tmp_path / "run"
    config = small.config(init_from=start, keep_optimizer=True, epochs=1)
    stop(start_run(config, run), signal.SIGTERM, 20)
    shutil.rmtree(start)
    exhaust(resume_run(run))
    uninterrupted = finished(init_from=finished(), keep_optimizer=True, epochs=1)
    assert bits(newest(run).state) == bits(newest(uninterrupted).state)


@pytest.mark.slow
def test_killed_warm_start_restarts_from_the_same_weights(tmp_path):
    config = small.config(init_from=finished(), keep_optimizer=True, epochs=1)
    kill(start_run(config, tmp_path / "run"), at_step=1)
    exhaust(resume_run(tmp_path / "run"))
    uninterrupted = finished(init_from=finished(), keep_optimizer=True, epochs=1)
    assert outcome(tmp_path / "run") == outcome(uninterrupted)


def test_warm_start_from_an_unfinished_run_warns(tmp_path, caplog):
    make_job(small.config(init_from=finished()))
    assert not caplog.messages
    description = copy_of(finished(), tmp_path) / "models" / "final-0" / "model.json"
    text = description.read_text().replace('"epoch": 4', '"epoch": 3')
    description.write_text(text.replace('"finished": true', '"finished": false'))
    make_job(small.config(init_from=tmp_path / "copy"))
    assert caplog.messages == [f"init_from: {tmp_path}/copy is not finished: epoch 3 of 4"]


def test_failed_start_does_not_block_the_next(tmp_path):
    source = copy_of(finished(), tmp_path)
    shutil.rmtree(source / "checkpoints")
    config = small.config(init_from=source, keep_optimizer=True, epochs=1)
    for _ in range(2):
        with pytest.raises(UserError, match="no checkpoint to take the optimiser's state from"):
            next(start_run(config, tmp_path / "run"))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_sizes": (3,)}, r"latent_sizes of the model in .* is \(2,\), here \(3,\)"),
        ({"hidden_sizes": ((5, 5),)}, "hidden_sizes of the model in"),
        ({"activation": "relu"}, "activation of the model in .* is tanh, here relu"),
        ({"dataset": "digits"}, "size of an example of the model in .* is 16, here 64"),
        ({"dataset": "circle", "validation": 0}, "size of an example"),
        ({"replicates": 2}, "no model in .*final-1"),
    ],
)
def test_warm_start_from_an_incompatible_model_is_refused(tmp_path, changes, message):
    config = small.config(init_from=finished(), **changes)
    with pytest.raises(UserError, match=message):
        next(start_run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_warm_start_with_another_optimiser_is_refused(tmp_path):
    config = small.config(init_from=finished(), keep_optimizer=True, optimizer="authors")
    with pytest.raises(UserError, match="was trained with the optimizer adam, here it is authors"):
        next(start_run(config, tmp_path / "run"))


# Non-finite values


@pytest.mark.slow
def test_diverged_run_keeps_its_last_finite_state(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"stopped at step 2 \(epoch 1, replicate 0\): "):
        train_in(run, learning_rate=1e30, schedule="constant")
    assert steps_of(run) == [1]
    assert int(newest(run).state.step[0]) == 1
    for model in (newest(run).state.params, load_model(run / "models" / "final-0")):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))
    with pytest.raises(NonFiniteError, match="stopped at step 2"):
        exhaust(resume_run(run))
    assert steps_of(run) == [1]


@pytest.mark.slow
def test_non_finite_validation_bound_stops_the_run(tmp_path):
    images = small.grey()
    validation = images[300:350].reshape(50, 16) / np.float32(100) - 1
    validation[7, 3] = 1e30  # a square beyond float32
    arrays = {"train": images[:300] / np.float32(100) - 1, "test": images[350:] / np.float32(100)}
    np.savez(tmp_path / "own.npz", validation=validation.reshape(50, 4, 4), **arrays)
    run, changes = tmp_path / "run", {"dataset": str(tmp_path / "own.npz"), "validation": None}
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"validation of epoch 1 \(replicate 0\): .* -inf"):
            train_in(run, **changes) if not run.exists() else exhaust(resume_run(run))
        assert max(steps_of(run)) < STEPS_PER_EPOCH
        assert read_metrics(run) == []  # -inf would not be JSON


def test_non_finite_metrics_are_null(tmp_path, monkeypatch):
    monitored = {"reconstruction": math.nan, "kl": [-math.inf, 2.0], "active_units": [1, 0]}
    monkeypatch.setattr(metrics, "monitored_metrics", lambda *_: monitored)
    train_in(tmp_path / "run", epochs=1)
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=pytest.fail)
    assert (row["reconstruction"], row["kl"]) == ([None], [[None, 2.0]])

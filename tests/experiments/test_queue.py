"""The queue: each task is done once, however often the queue is stopped, killed or fails."""

import errno
import fcntl
import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small
from iwae.config.experiment import TrainConfig
from iwae.config.toml import write_config
from iwae.errors import OUT_OF_MEMORY, UserError
from iwae.experiments import local as here
from iwae.experiments.local import work
from iwae.experiments.sweep import DEPTHS, read_sweep
from iwae.experiments.tasks import Failure, Measure, Task, lock_task, task_state, write_task_failure
from iwae.runs import start_and_resume
from iwae.runs.model_files import load_model, read_model_facts, save_model
from iwae.runs.stopping import Stopped
from iwae.training import loop

QUICK = Measure((1, 3))


def task(name="a", measures=(QUICK,), needs=None, **changes):
    return Task(name, small.config(**changes), measures, needs)


def statuses(outcomes):
    return [(one.task.name, one.status) for one in outcomes]


def numbers(out, name):
    """The results of a finished task: models and values of records, bit for bit."""
    run = Path(out) / name
    values = {}
    for path in sorted((run / "evaluations").glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            values[path.name] = {key: arrays[key].tobytes() for key in arrays}
    return small.outcome(run), values


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A finished task; tests share it, so they must not change it."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert statuses(work(out, [task()])) == [("a", "done")]
    return out


@pytest.fixture
def step_by_step(monkeypatch):
    """Dispatches of one step after a first one of twenty, with a checkpoint after each."""
    monkeypatch.setattr(loop, "DISPATCH_SECONDS", 0.0)
    monkeypatch.setattr(start_and_resume, "CHECKPOINT_SECONDS", -1.0)


def test_task_is_trained_and_measured_like_a_single_run(uninterrupted):
    assert small.outcome(uninterrupted / "a") == small.outcome(small.finished())
    (record,) = (uninterrupted / "a" / "evaluations").glob("*.json")
    record = json.loads(record.read_text())
    assert [row["k"] for row in record["by_k"]] == [1, 3]
    assert record["n"] == 50
    assert task_state(uninterrupted, task()) == ("done", 4, "")


def test_finished_task_is_not_repeated(uninterrupted, monkeypatch):
    def never(*_, **__):
        raise AssertionError("it was done already")

    for name in ("start_run", "resume_run", "evaluate_run"):
        monkeypatch.setattr(here, name, never)
    assert statuses(work(uninterrupted, [task()])) == [("a", "done")]


def test_task_may_start_from_stages_of_other_runs_in_the_folder(
    uninterrupted, tmp_path, monkeypatch, caplog
):
    for name in ("a", "deeper/odd"):
        shutil.copytree(uninterrupted / "a", tmp_path / name)
    (tmp_path / "deeper" / "odd" / "config.toml").write_text("k = ")
    offered = []

    def start(*_, others, **__):
        offered.extend(others)
        return iter(())

    monkeypatch.setattr(here, "start_run", start)
    here._training(tmp_path, task("b"), None, math.inf, lambda: None)
    assert offered == [tmp_path / "a"]
    assert "odd/config.toml cannot be read" in caplog.text


def test_only_missing_measures_are_made(uninterrupted, tmp_path, monkeypatch):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    more = task(measures=(QUICK, Measure((2,), examples=20)))
    assert task_state(tmp_path, more).status == "trained"
    requested = []
    real = here.evaluate_run
    monkeypatch.setattr(
        here, "evaluate_run", lambda *a, **b: requested.append(b["ks"]) or real(*a, **b)
    )
    assert statuses(work(tmp_path, [more])) == [("a", "done")]
    assert requested == [[2]]
    assert task_state(tmp_path, more).status == "done"


def test_measurements_of_other_models_do_not_count(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    other = small.finished(seed=1) / "models" / "final-0"
    shutil.copytree(other, tmp_path / "a" / "models" / "final-0", dirs_exist_ok=True)
    assert task_state(tmp_path, task()).status == "trained"


def call_at_step(step, action):
    """A consumer of the reports of a run that calls `action` once, at the given step."""

    def consume(reports):
        done = False
        for report in reports:
            if report.step >= step and not done:
                done = True
                action()

    return consume


@pytest.mark.slow
@pytest.mark.usefixtures("step_by_step")
def test_deadline_stops_cleanly_and_the_same_call_resumes(uninterrupted, tmp_path, monkeypatch):
    late = []
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: math.inf if late else clock())
    show = call_at_step(43, lambda: late.append(True))
    first = list(work(tmp_path, [task(), task("b")], show=show, deadline=clock() + 1e6))
    assert statuses(first) == [("a", "stopped"), ("b", "stopped")]
    late.clear()
    assert task_state(tmp_path, task()) == ("stopped", 1, "")
    assert task_state(tmp_path, task("b")).status == "waiting"
    assert statuses(work(tmp_path, [task()])) == [("a", "done")]
    assert numbers(tmp_path, "a") == numbers(uninterrupted, "a")


@pytest.mark.slow
def test_deadline_during_a_measurement_keeps_partial_results(uninterrupted, tmp_path, monkeypatch):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "a" / "evaluations")
    late, clock = [], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: math.inf if late else clock())

    def track(slabs, _total, _label):
        for slab in slabs:
            late.append(True)
            yield slab

    stopped = work(tmp_path, [task()], track=track, deadline=clock() + 1e6)
    assert statuses(stopped) == [("a", "stopped")]
    assert any((tmp_path / "a" / "evaluations" / "unfinished").iterdir())
    late.clear()
    assert statuses(work(tmp_path, [task()])) == [("a", "done")]
    assert numbers(tmp_path, "a") == numbers(uninterrupted, "a")


@pytest.mark.usefixtures("step_by_step")
def test_signal_ends_the_whole_queue(tmp_path):
    show = call_at_step(43, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped):
        list(work(tmp_path, [task(), task("b")], show=show))
    assert task_state(tmp_path, task()).status == "stopped"
    assert not (tmp_path / "b").exists()


KILLED_QUEUE = """
import os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
sys.path[:0] = {folders!r}
import test_queue as tests
from iwae.config.experiment import make_config
from iwae.experiments.local import work
from iwae.experiments.tasks import Task
from iwae.runs import start_and_resume
from iwae.training import loop

loop.DISPATCH_SECONDS, start_and_resume.CHECKPOINT_SECONDS = 0.0, -1.0
task = Task("a", make_config({values!r}, "test"), (tests.QUICK,))
show = tests.call_at_step(71, lambda: os.kill(os.getpid(), signal.SIGKILL))
list(work({out!r}, [task], show=show))
"""


@pytest.mark.slow
def test_killed_queue_resumes_to_the_same_numbers(uninterrupted, tmp_path):
    values = small.config().model_dump(mode="json", exclude_none=True)
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    program = KILLED_QUEUE.format(folders=folders, values=values, out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    state = task_state(tmp_path, task())
    assert (state.status, state.epoch) == ("stopped", 2)
    assert statuses(work(tmp_path, [task()])) == [("a", "done")]
    assert numbers(tmp_path, "a") == numbers(uninterrupted, "a")


def test_failed_task_is_reported_and_others_continue(tmp_path):
    bad = task("bad", dataset=str(tmp_path / "none.npy"))
    waits = task("waits", needs="bad", init_from=tmp_path / "bad")
    outcomes = list(work(tmp_path, [bad, waits, task()]))
    assert statuses(outcomes) == [("bad", "failed"), ("waits", "waiting"), ("a", "done")]
    assert "none.npy" in outcomes[0].reason
    assert "\n" not in outcomes[0].reason  # a user's mistake has no traceback
    assert task_state(tmp_path, bad) == ("failed", 0, outcomes[0].reason)


def test_damaged_folder_does_not_stop_other_tasks(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.toml").write_text("k = [1")
    for deadline in (math.inf, -math.inf):
        outcomes = list(work(tmp_path, [task("bad"), task()], deadline=deadline))
        assert statuses(outcomes) == [("bad", "failed"), ("a", "done")]
        assert "cannot be read" in outcomes[0].reason


def test_internal_failure_keeps_its_traceback_and_is_retried(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(here, "evaluate_run", broken)
        ((_, status, reason),) = work(tmp_path, [task(epochs=1)])
    assert status == "failed"
    assert "Traceback" in reason
    assert "a bug" in reason
    assert statuses(work(tmp_path, [task(epochs=1)])) == [("a", "done")]
    assert task_state(tmp_path, task(epochs=1)).status == "done"


def test_exhausted_memory_is_reported_in_one_line(tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")

    monkeypatch.setattr(here, "start_run", exhausted)
    assert list(work(tmp_path, [task()])) == [(task(), "failed", OUT_OF_MEMORY)]


def test_task_locked_by_another_process_is_skipped(tmp_path):
    with lock_task(tmp_path, task()):
        assert task_state(tmp_path, task()).status == "in use"
        assert statuses(work(tmp_path, [task()])) == [("a", "in use")]
    assert not (tmp_path / "a").exists()


def file_times(run):
    """The inode and modification time of each result file of a run."""
    files = (path for path in run.rglob("*") if path.is_file())
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in files
        if not {"tensorboard", "unfinished"} & set(path.parts)
    }


def test_superseded_process_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # the lock was lost
    left = {}

    def take_over():
        assert statuses(work(tmp_path, [task()])) == [("a", "done")]
        left.update(file_times(tmp_path / "a"))

    (outcome,) = work(tmp_path, [task()], show=call_at_step(1, take_over))
    assert (outcome.status, outcome.reason) == ("taken over", "another process took over a")
    assert file_times(tmp_path / "a") == left
    assert task_state(tmp_path, task()).status == "done"
    assert not any((tmp_path / ".queue").glob("*.failure"))


def test_superseded_measurement_writes_no_record(uninterrupted, tmp_path, monkeypatch):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "a" / "evaluations")
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    left = {}

    def track(slabs, _total, _label):
        for slab in slabs:
            if not left:
                assert statuses(work(tmp_path, [task()])) == [("a", "done")]
                left.update(file_times(tmp_path / "a"))
            yield slab

    assert statuses(work(tmp_path, [task()], track=track)) == [("a", "taken over")]
    assert file_times(tmp_path / "a") == left


def test_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (outcome,) = work(tmp_path, [task()])
    assert outcome.status == "failed"
    assert re.search(r"a\.lock cannot be locked \(No locks available\).*choose", outcome.reason)


def test_folder_with_another_run_is_refused(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    for other, message in (
        ({"k": 7}, "its k is 2, not 7"),
        ({"epochs": 3}, "its epochs is 4, not 3"),
        ({"gradient": "stl"}, "its gradient is reparam, not stl"),
    ):
        ((_, status, reason),) = work(tmp_path, [task(**other)])
        assert status == "failed"
        assert message in reason
        assert task_state(tmp_path, task(**other)).status == "failed"
    assert task_state(tmp_path, task()).status == "done"


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_kill_while_writing_models_is_recovered(uninterrupted, tmp_path, missing):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    model = tmp_path / "a" / "models" / "final-0"
    (model / missing).rename(model / f".half-{missing}")
    assert task_state(tmp_path, task()).status == "stopped"
    assert statuses(work(tmp_path, [task()])) == [("a", "done")]
    (model / f".half-{missing}").unlink()
    assert numbers(tmp_path, "a") == numbers(uninterrupted, "a")


@pytest.mark.parametrize("write", [1, 2])
def test_kill_between_two_models_is_recovered(uninterrupted, tmp_path, monkeypatch, write):
    class Killed(BaseException):
        """The end of the process."""

    def save(model, folder, **about):
        written.append(folder)
        if len(written) == write:
            raise Killed
        save_model(model, folder, **about)

    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    description, written = tmp_path / "a" / "models" / "final-0" / "model.json", []
    text = description.read_text().replace('"finished": true', '"finished": false')
    description.write_text(text)
    monkeypatch.setattr(start_and_resume, "save_model", save)
    with pytest.raises(Killed):
        list(work(tmp_path, [task()]))
    monkeypatch.setattr(start_and_resume, "save_model", save_model)
    assert task_state(tmp_path, task()).status == "stopped"
    assert statuses(work(tmp_path, [task()])) == [("a", "done")]
    assert numbers(tmp_path, "a") == numbers(uninterrupted, "a")


def test_failure_under_the_same_command_is_not_retried(tmp_path):
    tried = []

    def outcome(command):
        ((_, status, reason),) = work(tmp_path, [task()], command=command, begin=tried.append)
        return status, reason

    write_task_failure(tmp_path, task(), Failure("out of paper\nand ink", "ours"))
    assert outcome("ours") == ("failed", "out of paper\nand ink")
    assert task_state(tmp_path, task()).status == "failed"
    assert not tried
    assert outcome("another") == ("done", "")
    assert len(tried) == 1


def test_mismatched_weights_are_rewritten(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "a" / "models" / "final-0"
    about, model = read_model_facts(folder), load_model(folder)
    description = (folder / "model.json").read_bytes()
    save_model(jax.tree.map(jnp.zeros_like, model), folder, **about)
    (folder / "model.json").write_bytes(description)
    assert task_state(tmp_path, task()).status == "stopped"
    assert statuses(work(tmp_path, [task()])) == [("a", "done")]
    assert numbers(tmp_path, "a") == numbers(uninterrupted, "a")


def test_partly_written_files_are_ignored(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    for name in ("models/final-0/.model-x.safetensors", "evaluations/.test-x.json"):
        (tmp_path / "a" / name).touch()
    assert task_state(tmp_path, task()).status == "done"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".config-x.toml").touch()
    assert statuses(work(tmp_path, [task("b")])) == [("b", "done")]


def test_finished_task_is_done_even_after_the_deadline(uninterrupted):
    assert statuses(work(uninterrupted, [task(), task("b")], deadline=-math.inf)) == [
        ("a", "done"),
        ("b", "stopped"),
    ]


def test_warm_start_waits_for_its_source(tmp_path):
    warm = task("warm", needs="a", init_from=tmp_path / "a", epochs=1)
    assert statuses(work(tmp_path, [task(epochs=1), warm])) == [("a", "done"), ("warm", "done")]
    first, second = (small.newest(tmp_path / name) for name in ("a", "warm"))
    assert not np.array_equal(
        jax.tree.leaves(first.state.params)[0], jax.tree.leaves(second.state.params)[0]
    )


@pytest.mark.slow
def test_annealing_is_a_measure(tmp_path):
    annealed = task(measures=(Measure(temperatures=20, examples=10),), epochs=1)
    assert statuses(work(tmp_path, [annealed])) == [("a", "done")]
    assert task_state(tmp_path, annealed).status == "done"
    assert task_state(tmp_path, task(measures=(Measure(temperatures=40, examples=10),), epochs=1))[
        0
    ] == ("trained")


# Sweeps


def sweep(tmp_path, text):
    (tmp_path / "file.toml").write_text(text)
    return read_sweep(tmp_path / "file.toml", tmp_path / "out", (QUICK,))


def start_sweep(tmp_path, text, **changes):
    """Start the runs of a sweep, as training does; return its settings by name."""
    tasks = sweep(tmp_path, text)
    for one in tasks:
        if not (tmp_path / "out" / one.name).exists():
            config = one.config.model_copy(update=changes)
            write_config(config, tmp_path / "out" / one.name / "config.toml")
    return settings_by_name(tasks)


def settings_by_name(tasks):
    return {one.name: (one.config.k, one.config.seeds()) for one in tasks}


def test_extended_sweep_keeps_existing_runs(tmp_path):
    file = 'dataset = "digits"\nepochs = 3\nk = {}\n'
    left_to_data = {"binarization": "dynamic", "observation": "bernoulli", "validation": 0}
    first = start_sweep(tmp_path, file.format(5), **left_to_data)
    assert first == {"file": (5, range(1))}
    grown = start_sweep(tmp_path, file.format([5]), **left_to_data)
    assert grown == first
    grown = start_sweep(tmp_path, file.format([50, 5]), **left_to_data)
    assert grown == {"k=50": (50, range(1)), **first}
    (tmp_path / "file.toml").rename(tmp_path / "other.toml")
    (one,) = read_sweep(tmp_path / "other.toml", tmp_path / "out")[:1]
    assert one.name == "k=50"
    again = settings_by_name(sweep(tmp_path, 'k = [50, 5]\nobjective = ["iwae"]\n' + file[:-7]))
    assert again == grown
    with_seeds = settings_by_name(sweep(tmp_path, file.format([5, 50]) + "seed = [0, 1]\n"))
    assert with_seeds == {
        **grown,
        "k=5,seed=1": (5, range(1, 2)),
        "k=50,seed=1": (50, range(1, 2)),
    }


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("validation = 100\n", {"file"}),  # refused later: the folder holds another run
        ("k = [5, 6]\nvalidation = 100\n", {"k=5", "k=6"}),
        ('k = [5, 6]\ndataset = "mnist"\n', {"k=5", "k=6"}),
        ("k = [5, 6]\nepochs = 4\n", {"k=5", "k=6"}),
        ('k = [5, 6]\ngradient = "dreg"\n', {"k=5", "k=6"}),
        ("k = [5, 6]\n", {"file", "k=6"}),
    ],
)
def test_run_of_another_experiment_is_not_reused(tmp_path, change, names):
    settings = {"dataset": '"digits"', "epochs": "3", "k": "5"}
    lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
    start_sweep(tmp_path, lines, binarization="dynamic", observation="bernoulli", validation=0)
    kept = (f"{n} = {v}\n" for n, v in settings.items() if f"{n} = " not in change)
    assert set(settings_by_name(sweep(tmp_path, change + "".join(kept)))) == names


@pytest.mark.parametrize(
    ("first", "then", "names"),
    [
        ("seed = [0, 1, 2]", "seed = [0, 1, 2, 3]", ["seed=0-2", "seed=3"]),
        ("seed = [1, 2]", "seed = [0, 1, 2, 3, 4]", ["seed=0", "seed=1-2", "seed=3-4"]),
        ("seed = [0, 1, 2]", "seed = [0]", ["seed=0-2"]),
        ("seed = 3", "seed = [3, 4]", ["file", "seed=4"]),
        ("seed = [0]", "seed = 0", ["seed=0"]),
        ("seed = [0, 1]", "replicates = 3", ["seed=0-1", "file,seed=2"]),
        ("replicates = 2", "replicates = 4", ["file", "file,seed=2-3"]),
        ("", "seed = [0, 1]", ["file", "seed=1"]),
        ("seed = [5]", "seed = [0]", ["seed=0"]),
    ],
)
def test_seeds_with_a_run_keep_it(tmp_path, first, then, names):
    about = 'dataset = "digits"\nepochs = 3\n'
    before = start_sweep(tmp_path, about + first)
    tasks = sweep(tmp_path, about + then)
    assert [one.name for one in tasks] == names
    assert all(settings_by_name(tasks)[name] == before[name] for name in set(names) & set(before))
    seeds = [seed for one in tasks for seed in one.config.seeds()]
    assert len(set(seeds)) == len(seeds)


def test_equivalent_values_are_separate_runs(tmp_path):
    file = 'dataset = "digits"\nobjective = ["iwae", "elbo"]\nk = [1, 5]\nlog_every = [1, 2]\n'
    first = start_sweep(tmp_path, file + "seed = [0, 1]\n")
    assert len(first) == 8
    assert settings_by_name(sweep(tmp_path, file + "seed = [0, 1]\n")) == first
    grown = settings_by_name(sweep(tmp_path, file + "seed = [0, 1, 2]\n"))
    assert len(grown) == 16
    assert first.items() <= grown.items()


def test_two_runs_of_the_same_seeds_are_refused(tmp_path):
    file = 'dataset = "digits"\nseed = [0, 1]\n'
    start_sweep(tmp_path, file)
    shutil.copytree(tmp_path / "out" / "seed=0-1", tmp_path / "out" / "copy")
    with pytest.raises(UserError, match="hold the same seeds: remove one"):
        sweep(tmp_path, file)


def test_unreadable_folder_does_not_block_other_runs(tmp_path, caplog):
    start_sweep(tmp_path, "k = [1, 2]\n")
    (tmp_path / "out" / "k=1" / "config.toml").write_text("k = [1")
    tasks = sweep(tmp_path, "k = [1, 2]\n")
    assert set(settings_by_name(tasks)) == {"k=1", "k=2"}
    assert "its run is left as it is" in caplog.text
    assert task_state(tmp_path / "out", tasks[0]).status == "failed"


def test_extended_sweep_trains_only_new_runs(tmp_path):
    options = {**small.OPTIONS, "dataset": str(small.pictures()), "epochs": 1}
    about = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    first = sweep(tmp_path, f"{about}seed = [0, 1]")
    assert statuses(work(tmp_path / "out", first)) == [("seed=0-1", "done")]
    before = file_times(tmp_path / "out" / "seed=0-1")
    grown = sweep(tmp_path, f"{about}seed = [0, 1, 2]")
    assert statuses(work(tmp_path / "out", grown)) == [("seed=0-1", "done"), ("seed=2", "done")]
    assert file_times(tmp_path / "out" / "seed=0-1") == before


def test_dataset_is_part_of_the_experiment(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    other = small.own_data(tmp_path / "other.npz")["dataset"]
    ((_, status, reason),) = work(tmp_path, [task(dataset=other)])
    assert status == "failed"
    assert "its dataset is" in reason


def test_sweep_covers_all_combinations(tmp_path):
    tasks = sweep(
        tmp_path,
        'dataset = "digits"\nk = [1, 5]\nobjective = ["iwae", "elbo"]\nseed = [0, 1, 4]\n'
        "latent_sizes = [[20], [10]]\nhidden_sizes = [[100]]\nepochs = 3\n",
    )
    assert len(tasks) == len({one.name for one in tasks}) == 2 * 2 * 2 * 2
    assert tasks[0].name == "k=1,objective=iwae,seed=0-1,latent_sizes=20"
    settings = {
        (
            one.config.k,
            one.config.objective,
            one.config.seed,
            one.config.replicates,
            one.config.latent_sizes,
        )
        for one in tasks
    }
    seeds = [(0, 2), (4, 1)]
    expected = itertools.product([1, 5], ["iwae", "elbo"], seeds, [(20,), (10,)])
    assert settings == {(k, o, *s, sizes) for k, o, s, sizes in expected}
    assert {one.config.epochs for one in tasks} == {3}


def test_files_of_one_name_in_two_folders_are_separate_runs(tmp_path):
    tasks = sweep(tmp_path, 'dataset = ["a/x.npy", "b/x.npy"]\n')
    assert [one.name for one in tasks] == ["dataset=a-x", "dataset=b-x"]


def test_long_run_names_are_shortened_and_unique(tmp_path):
    lists = "".join(f"{name} = [false, true]\n" for name in ("shuffle", "output_bias"))
    lists += f'dataset = ["{"a" * 90}.npy", "{"a" * 90}.csv"]\n'
    tasks = sweep(tmp_path, lists.replace(".csv", "b.npy"))
    assert len({one.name for one in tasks}) == 8
    assert max(len(one.name) for one in tasks) <= 120


@pytest.mark.parametrize(
    "wrong",
    [Measure((0,)), Measure(()), Measure(examples=0), Measure(temperatures=1), Measure((1, -5))],
)
def test_invalid_measures_are_refused(wrong):
    with pytest.raises(UserError):
        wrong.check()


def test_list_valued_settings_are_not_swept(tmp_path):
    lists = {
        name
        for name, field in TrainConfig.model_fields.items()
        if any(get_origin(kind) is tuple for kind in constituent_types(field.annotation))
    }
    assert lists == {*DEPTHS, "stages"}  # stages are recognised as tables
    (one,) = sweep(tmp_path, 'observation = "table"\ncolumns = ["gaussian", "poisson"]\n')
    assert one.config.columns == ("gaussian", "poisson")


def constituent_types(annotation):
    """The types that make up a type, with the type itself."""
    yield annotation
    for inner in get_args(annotation):
        yield from constituent_types(inner)


def test_file_without_lists_is_a_single_run(tmp_path):
    (one,) = sweep(tmp_path, 'dataset = "digits"\nlatent_sizes = [3]\nhidden_sizes = [[4, 5]]\n')
    assert (one.name, one.config.latent_sizes) == ("file", (3,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k = []", "k is an empty list"),
        ("kk = [1, 2]", "unknown key 'kk'; did you mean 'k'"),
        ('objective = ["iwae", "iwea"]', "iwea"),
        ("seed = [0, 1]\nreplicates = 2", "leave replicates out"),
        ("replicates = [1, 2]", "leave replicates out"),
        ('seed = ["a"]', "not whole numbers"),
        ("k = [1, 1]", "are the same"),
        ("seed = [1, 1]", "are the same"),
        ("k = [1", "cannot be read"),
    ],
)
def test_invalid_sweeps_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        sweep(tmp_path, text)

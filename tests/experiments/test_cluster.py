"""The queue on a real Ray cluster of two workers, one of which is killed during training."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import small
from iwae.cli.interrupts import Terminated, sigterm_as_ctrl_c
from iwae.errors import UserError
from iwae.experiments import cluster
from iwae.experiments.cluster import Home, Place, _on_worker, pack, unpack, work_on_ray
from iwae.experiments.tasks import Measure, Task, lock_task, task_state

NEEDS_RAY = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: pip install 'iwae[ray]'"
)

LONG = {"epochs": 2500, "log_every": 3000, "validation": 0}
"""Some seconds of training; the stages of the schedule end with checkpoints."""

TASKS = """
import json, sys, threading, time
from pathlib import Path

from iwae.config.experiment import make_config
from iwae.experiments.cluster import work_on_ray
from iwae.experiments.local import work
from iwae.experiments.tasks import Measure, Task

out, scratch, values = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
tasks = [
    Task(f"seed-{seed}", make_config({**values, "seed": seed}, "test"), (Measure((1, 3)),))
    for seed in (0, 1)
]
"""

LOCAL = """
outcomes = work(out, tasks)
"""

KILL_A_WORKER = """
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)

def kill_one():
    # Both are training, and a checkpoint of each has been copied back.
    while not all(any(out.glob(f"{task.name}/checkpoints/[0-9]*")) for task in tasks):
        time.sleep(0.05)
    cluster.remove_node(workers[0], allow_graceful=False)
    print("killed", flush=True)

threading.Thread(target=kill_one, daemon=True).start()
outcomes = work_on_ray(out, tasks, scratch=Path(scratch) if scratch else None, every=0.1)
"""

DISTRIBUTED = """
import os, jax
jax.distributed.initialize(os.environ["COORDINATOR"], 2, int(os.environ["PROCESS"]))
assert jax.device_count() == 2 and jax.local_device_count() == 1
outcomes = work(out, tasks)
"""

REPORT = """
for outcome in outcomes:
    print(outcome.task.name, outcome.status, outcome.reason, flush=True)
"""


@pytest.fixture(scope="module")
def start_program():
    """Starts programs in sessions of their own; none of their processes outlives the tests."""
    values = small.config(**LONG).model_dump(mode="json", exclude_none=True)
    programs = []

    def start(program, out, scratch="", **environment):
        arguments = [
            sys.executable,
            "-c",
            TASKS + program + REPORT,
            out,
            scratch,
            json.dumps(values),
        ]
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "RAY_TMPDIR": folder, **environment}
        programs.append(
            subprocess.Popen(
                arguments,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return programs[-1]

    # It holds Ray's sockets, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield start
        for program in programs:
            with suppress(ProcessLookupError):  # Ray's agents outlive a program that was killed
                os.killpg(program.pid, signal.SIGKILL)
            program.communicate()


def output_lines(process):
    """The lines that a program printed; it must succeed."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return out.splitlines()


def numbers(out):
    """Models, metrics and measured values of all runs, bit for bit."""
    files = [*out.glob("*/models/*/*.safetensors"), *out.glob("*/metrics.jsonl")]
    found = {str(path.relative_to(out)): path.read_bytes() for path in files}
    for path in out.glob("*/evaluations/*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            found |= {f"{path.relative_to(out)} {key}": arrays[key].tobytes() for key in arrays}
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, start_program):
    out = tmp_path_factory.mktemp("undisturbed")
    assert output_lines(start_program(LOCAL, out)) == ["seed-0 done ", "seed-1 done "]
    return numbers(out)


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared folder", "through Ray"])
def test_killed_worker_changes_no_number(start_program, uninterrupted, tmp_path, shared):
    scratch = "" if shared else str(tmp_path / "scratch")
    lines = output_lines(start_program(KILL_A_WORKER, tmp_path / "out", scratch))
    lines = [line for line in lines if line.startswith(("killed", "seed-"))]  # Ray reports it too
    assert sorted(lines) == ["killed", "seed-0 done ", "seed-1 done "]
    assert lines[0] == "killed"  # during training
    assert numbers(tmp_path / "out") == uninterrupted
    assert len(uninterrupted) > 4


@pytest.mark.slow
def test_two_processes_of_one_program_share_the_work(start_program, uninterrupted, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    processes = [
        start_program(DISTRIBUTED, tmp_path, COORDINATOR=coordinator, PROCESS=str(number))
        for number in range(2)
    ]
    lines = [line for process in processes for line in output_lines(process)]
    assert {"seed-0 done ", "seed-1 done "} <= set(lines)
    assert numbers(tmp_path) == uninterrupted


def test_folder_returns_without_old_checkpoints_and_other_files_stay(tmp_path):
    there, home = tmp_path / "there" / "a" / "b", Home(tmp_path / "home")
    (there / "deep").mkdir(parents=True)
    (there / "deep" / "file").write_text("new")
    assert home.read("a/b") is None
    (there / "checkpoints").mkdir()
    (there / "checkpoints" / "0000000002.safetensors").touch()
    (tmp_path / "home" / "a" / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "home" / "a" / "b" / "checkpoints" / "0000000001.safetensors").touch()
    (tmp_path / "home" / "a" / "b" / "other").touch()
    assert home.write("a/b", home.begin("a/b"), pack(there))
    found = {path.name for path in (tmp_path / "home" / "a" / "b").rglob("*")}
    assert found == {"deep", "file", "other", "checkpoints", "0000000002.safetensors"}
    unpack(home.read("a/b"), tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "deep" / "file").read_text() == "new"


def test_model_description_is_copied_after_its_weights(tmp_path, monkeypatch):
    model = tmp_path / "there" / "models" / "final-0"
    model.mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        (model / name).touch()
    placed, replace = [], Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda *both: placed.append(both[1].name) or replace(*both)
    )
    unpack(pack(tmp_path / "there"), tmp_path / "home")
    assert placed == ["model.safetensors", "model.json"]


class Actor:
    """An actor as a worker sees it, without Ray: a remote call runs at once."""

    def __init__(self, thing):
        self.thing = thing

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.thing, name))


@pytest.fixture
def make_place(tmp_path, monkeypatch):
    """Makes places of workers that share only a home."""
    monkeypatch.setattr(cluster, "_get", lambda answer: answer)
    return lambda home, name: Place(tmp_path / name, None, math.inf, Actor(home), 0.0)


@pytest.mark.slow
def test_superseded_worker_writes_nothing(tmp_path, make_place):
    task = Task("a", small.config(), (Measure((1,)),))
    second = {}

    class Superseded(Home):
        def write(self, name, attempt, packed):
            if self.attempts == {"a": 1}:
                second["outcome"] = _on_worker(make_place(self, "second"), task)
                second["numbers"] = numbers(tmp_path / "home")
            return super().write(name, attempt, packed)

    first = _on_worker(make_place(Superseded(tmp_path / "home"), "first"), task)
    assert first == ("taken over", "another worker took over a")
    assert second["outcome"] == ("done", "")
    assert len(second["numbers"]) > 2
    assert numbers(tmp_path / "home") == second["numbers"]
    assert task_state(tmp_path / "home", task).status == "done"


class Immediate:
    """A cluster that runs each task as soon as it is submitted."""

    exceptions = SimpleNamespace(RayError=ArithmeticError)

    def remote(self, **_):
        return lambda function: SimpleNamespace(remote=function)

    def wait(self, waiting):
        return waiting[:1], waiting[1:]

    def get(self, answer):
        return answer


def test_tasks_locked_by_another_queue_are_skipped(tmp_path, monkeypatch):
    """Where workers share no folder, the queue that submits the tasks holds their locks."""
    monkeypatch.setattr(cluster, "_connect", lambda *_: Immediate())
    monkeypatch.setattr(cluster, "_home", lambda *_: "home")
    monkeypatch.setattr(
        cluster, "_on_worker", lambda _, task: (task_state(tmp_path, task).status, task.name)
    )
    tasks = [Task(name, small.config()) for name in ("a", "b")]
    tasks.append(Task("c", small.config(init_from=tmp_path / "a"), needs="a"))
    with lock_task(tmp_path, tasks[0]):
        outcomes = list(work_on_ray(tmp_path, tasks, scratch=tmp_path / "scratch"))
    assert [(one.task.name, one.status) for one in outcomes] == [
        ("a", "in use"),
        ("b", "in use"),
        ("c", "waiting"),
    ]
    assert (outcomes[0].reason, outcomes[1].reason) == ("a is in use by another process", "b")
    assert task_state(tmp_path, tasks[1]).status == "waiting"  # its lock is released
    with pytest.raises(UserError, match="leave scratch out"):
        next(work_on_ray(tmp_path, tasks, scratch=tmp_path))


def test_archive_writes_nothing_outside_its_folder(tmp_path):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(__file__, arcname="../outside")
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(archive.read_bytes(), tmp_path / "in" / "folder")
    assert not (tmp_path / "in" / "outside").exists()
    assert not (tmp_path / "in" / "folder" / "outside").exists()
    assert not any((tmp_path / "in" / "folder").iterdir())


def test_missing_ray_is_reported_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'iwae\[ray\]'"):
        next(work_on_ray(tmp_path, []))


@pytest.mark.parametrize(
    ("address", "variable", "expected"),
    [
        (None, None, "local"),
        (None, "", "local"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", None, "auto"),
    ],
)
@pytest.mark.parametrize("error", [ConnectionError, ValueError, Exception])
def test_cluster_starts_locally_without_an_address(address, variable, expected, error, monkeypatch):
    def init(address, **_):
        raise error(f"asked for {address}")

    fake = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that it is restored
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(UserError, match=f"no Ray cluster at {expected}: asked for {expected}"):
        cluster._connect(address, 1, 0.0)
    # Ray would keep a token of its own in the user's home.
    assert ("RAY_AUTH_TOKEN" in os.environ) == (expected == "local")


def test_sigterm_that_a_library_turns_into_ctrl_c_still_terminates():
    def wait():
        """Wait as Ray does, which replaces the exception of the handler."""
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    with pytest.raises(Terminated), sigterm_as_ctrl_c():
        wait()


@pytest.mark.parametrize("during", [False, True], ids=["afterwards", "during the start"])
def test_ray_does_not_take_over_sigterm(during, monkeypatch):
    def ours(*_):
        raise Terminated

    def init(**_):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        if during:
            signal.raise_signal(signal.SIGTERM)

    def connect_and_stop():
        cluster._connect(None, 1, 0.0)
        signal.raise_signal(signal.SIGTERM)

    nodes = [{"Alive": True, "Resources": {"CPU": 1}}]
    fake = SimpleNamespace(is_initialized=lambda: False, init=init, nodes=lambda: nodes)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(Terminated):
            connect_and_stop()
    finally:
        signal.signal(signal.SIGTERM, before)

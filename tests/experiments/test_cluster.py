"""The queue on a real Ray cluster of two workers, one of which is killed in mid-training."""

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
"""Some seconds of training; the stages of the schedule end with checkpoints on the way."""

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

ALONE = """
outcomes = work(out, tasks)
"""

KILLED = """
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)

def kill_one():
    # Both are at work, and a checkpoint of each has come home.
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

TELL = """
for outcome in outcomes:
    print(outcome.task.name, outcome.status, outcome.reason, flush=True)
"""


@pytest.fixture(scope="module")
def started():
    """Starts programs in sessions of their own; none of their processes outlives the tests."""
    values = small.config(**LONG).model_dump(mode="json", exclude_none=True)
    programs = []

    def start(program, out, scratch="", **environment):
        words = [sys.executable, "-c", TASKS + program + TELL, out, scratch, json.dumps(values)]
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "RAY_TMPDIR": folder, **environment}
        programs.append(
            subprocess.Popen(
                words,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return programs[-1]

    # Ray's sockets are in there, and the paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield start
        for program in programs:
            with suppress(ProcessLookupError):  # Ray's agents outlive a program that was killed
                os.killpg(program.pid, signal.SIGKILL)
            program.communicate()


def told(process):
    """What a program printed, once it has ended well."""
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
def undisturbed(tmp_path_factory, started):
    out = tmp_path_factory.mktemp("undisturbed")
    assert told(started(ALONE, out)) == ["seed-0 done ", "seed-1 done "]
    return numbers(out)


@NEEDS_RAY
@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared folder", "through Ray"])
def test_a_worker_that_dies_changes_no_number(started, undisturbed, tmp_path, shared):
    scratch = "" if shared else str(tmp_path / "scratch")
    lines = told(started(KILLED, tmp_path / "out", scratch))
    lines = [line for line in lines if line.startswith(("killed", "seed-"))]  # Ray tells of it too
    assert sorted(lines) == ["killed", "seed-0 done ", "seed-1 done "]
    assert lines[0] == "killed"  # in mid-training
    assert numbers(tmp_path / "out") == undisturbed
    assert len(undisturbed) > 4


@pytest.mark.slow
def test_two_processes_of_one_program_share_the_work(started, undisturbed, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    processes = [
        started(DISTRIBUTED, tmp_path, COORDINATOR=coordinator, PROCESS=str(number))
        for number in range(2)
    ]
    lines = [line for process in processes for line in told(process)]
    assert {"seed-0 done ", "seed-1 done "} <= set(lines)
    assert numbers(tmp_path) == undisturbed


def test_a_folder_comes_home_without_old_checkpoints_and_other_files_stay(tmp_path):
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


def test_what_describes_a_model_comes_home_after_its_weights(tmp_path, monkeypatch):
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
    """What a worker sees of an actor, without Ray: a call is done when it is asked for."""

    def __init__(self, thing):
        self.thing = thing

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.thing, name))


@pytest.fixture
def a_place(tmp_path, monkeypatch):
    """Makes places of workers that share nothing but a home."""
    monkeypatch.setattr(cluster, "_get", lambda answer: answer)
    return lambda home, name: Place(tmp_path / name, None, math.inf, Actor(home), 0.0)


@pytest.mark.slow
def test_a_worker_that_was_given_up_and_comes_back_brings_nothing(tmp_path, a_place):
    task = Task("a", small.config(), (Measure((1,)),))
    left = {}

    class GivenUp(Home):
        def write(self, name, attempt, packed):
            if self.attempts == {"a": 1}:
                left["outcome"] = _on_worker(a_place(self, "second"), task)
                left["numbers"] = numbers(tmp_path / "home")
            return super().write(name, attempt, packed)

    first = _on_worker(a_place(GivenUp(tmp_path / "home"), "first"), task)
    assert first == ("taken over", "another worker took over a")
    assert left["outcome"] == ("done", "")
    assert len(left["numbers"]) > 2
    assert numbers(tmp_path / "home") == left["numbers"]
    assert task_state(tmp_path / "home", task).status == "done"


class Immediate:
    """A cluster that does a task when it is given it."""

    exceptions = SimpleNamespace(RayError=ArithmeticError)

    def remote(self, **_):
        return lambda function: SimpleNamespace(remote=function)

    def wait(self, waiting):
        return waiting[:1], waiting[1:]

    def get(self, answer):
        return answer


def test_what_another_queue_is_at_work_on_is_left_to_it(tmp_path, monkeypatch):
    """Where workers have no common folder, the queue that sends them out holds the tasks."""
    monkeypatch.setattr(cluster, "_connect", lambda *_: Immediate())
    monkeypatch.setattr(cluster, "_home", lambda *_: "home")
    monkeypatch.setattr(
        cluster, "_on_worker", lambda _, task: (task_state(tmp_path, task).status, task.name)
    )
    tasks = [Task(name, small.config()) for name in ("a", "b")]
    tasks.append(Task("c", small.config(init_from=tmp_path / "a"), needs="a"))
    with lock_task(tmp_path, tasks[0]):
        found = list(work_on_ray(tmp_path, tasks, scratch=tmp_path / "scratch"))
    assert [(one.task.name, one.status) for one in found] == [
        ("a", "in use"),
        ("b", "in use"),
        ("c", "waiting"),
    ]
    assert (found[0].reason, found[1].reason) == ("a is in use by another process", "b")
    assert task_state(tmp_path, tasks[1]).status == "waiting"  # it has let go of it
    with pytest.raises(UserError, match="leave scratch out"):
        next(work_on_ray(tmp_path, tasks, scratch=tmp_path))


def test_an_archive_writes_nothing_outside_of_its_folder(tmp_path):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(__file__, arcname="../outside")
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(archive.read_bytes(), tmp_path / "in" / "folder")
    assert not (tmp_path / "in" / "outside").exists()
    assert not (tmp_path / "in" / "folder" / "outside").exists()
    assert not any((tmp_path / "in" / "folder").iterdir())


def test_without_ray_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'iwae\[ray\]'"):
        next(work_on_ray(tmp_path, []))


@pytest.mark.parametrize(
    ("address", "variable", "where"),
    [
        (None, None, "local"),
        (None, "", "local"),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", None, "auto"),
    ],
)
@pytest.mark.parametrize("trouble", [ConnectionError, ValueError, Exception])
def test_without_an_address_a_cluster_is_started_here(
    address, variable, where, trouble, monkeypatch
):
    def init(address, **_):
        raise trouble(f"asked for {address}")

    fake = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that it is restored
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(UserError, match=f"no Ray cluster at {where}: asked for {where}"):
        cluster._connect(address, 1, 0.0)
    # Ray would keep a token of its own in the user's home.
    assert ("RAY_AUTH_TOKEN" in os.environ) == (where == "local")


def test_a_termination_that_a_library_takes_for_ctrl_c_stays_one():
    def wait():
        """Wait as Ray does, which raises another exception for that of the handler."""
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    with pytest.raises(Terminated), sigterm_as_ctrl_c():
        wait()


@pytest.mark.parametrize("during", [False, True], ids=["afterwards", "during the start"])
def test_a_termination_is_not_left_to_ray(during, monkeypatch):
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

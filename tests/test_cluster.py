"""The queue on a real Ray cluster of two workers, one of which is killed in mid-training."""

import json
import os
import socket
import subprocess
import sys
import tarfile

import numpy as np
import pytest

import small
from iwae._types import UserError
from iwae.queue import Home, pack, unpack, work_on_ray

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'iwae[ray]'")

LONG = {"epochs": 2500, "log_every": 3000, "validation": 0}
"""Some seconds of training; the stages of the schedule end with checkpoints on the way."""

TASKS = """
import json, sys, threading, time
from pathlib import Path

from iwae.config import make_config
from iwae.queue import Measure, Task, work, work_on_ray

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
    print(outcome.task.name, outcome.word, outcome.reason, flush=True)
"""


def started(program, out, scratch="", **environment):
    values = small.config(**LONG).model_dump(mode="json", exclude_none=True)
    return subprocess.Popen(
        [sys.executable, "-c", TASKS + program + TELL, out, scratch, json.dumps(values)],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    assert told(started(ALONE, out)) == ["seed-0 done ", "seed-1 done "]
    return numbers(out)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared folder", "through Ray"])
def test_a_worker_that_dies_changes_no_number(undisturbed, tmp_path, shared):
    scratch = "" if shared else str(tmp_path / "scratch")
    lines = told(started(KILLED, tmp_path / "out", scratch))
    lines = [line for line in lines if line.startswith(("killed", "seed-"))]  # Ray tells of it too
    assert sorted(lines) == ["killed", "seed-0 done ", "seed-1 done "]
    assert lines[0] == "killed"  # in mid-training
    assert numbers(tmp_path / "out") == undisturbed
    assert len(undisturbed) > 4


@pytest.mark.slow
def test_two_processes_of_one_program_share_the_work(undisturbed, tmp_path):
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
    (there / "checkpoints" / "0000000002").mkdir(parents=True)
    (there / "checkpoints" / "0000000002" / "new").touch()
    (tmp_path / "home" / "a" / "b" / "checkpoints" / "0000000001").mkdir(parents=True)
    (tmp_path / "home" / "a" / "b" / "other").touch()
    home.write("a/b", pack(there))
    found = {path.name for path in (tmp_path / "home" / "a" / "b").rglob("*")}
    assert found == {"deep", "file", "other", "checkpoints", "0000000002", "new"}
    unpack(home.read("a/b"), tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "deep" / "file").read_text() == "new"


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

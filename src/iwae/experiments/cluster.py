"""The queue on many machines, with Ray (`pip install 'iwae[ray]'`)."""

import io
import math
import os
import secrets
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from iwae.errors import UserError
from iwae.experiments.local import Outcome, attempt_local_task, do_local_task
from iwae.experiments.tasks import (
    Failure,
    InUseError,
    Status,
    TakenOverError,
    Task,
    forget_task_failure,
    lock_task,
    write_task_failure,
)
from iwae.files import TEMPORARY, temporary_folder
from iwae.runs.checkpoints import list_checkpoints
from iwae.runs.model_files import DESCRIPTION
from iwae.runs.stopping import Stopped
from iwae.training.loop import Report
from iwae.wording import shorten_value

LOST = 10
"""Workers that may die at one task before it fails."""

PATIENCE = 24
"""Further tries, every five seconds, of a task that another worker seems to be working on."""

FATAL = 75
"""Exit status of a worker whose machine is taken away; Ray restarts its task elsewhere."""


class Place(NamedTuple):
    """The working place of a task on a worker's machine.

    Attributes:
        out: folder of all runs on that machine.
        data_dir: folder to search first for data files on that machine.
        end: when to stop, in seconds since 1970: machines share no other clock.
        home: actor of `Home` if `out` is not shared, otherwise None.
        every: seconds between checks for a new checkpoint to copy home.
    """

    out: Path
    data_dir: Path | None
    end: float
    home: Any
    every: float


def work_on_ray(
    out: Path,
    tasks: Sequence[Task],
    *,
    address: str | None = None,
    scratch: Path | None = None,
    cpus: int = 1,
    gpus: float = 0.0,
    every: float = 60.0,
    data_dir: Path | None = None,
    deadline: float = math.inf,
) -> Iterator[Outcome]:
    """Work on tasks on a Ray cluster, as many at once as it has room for.

    A task whose worker dies is resumed elsewhere, from its last checkpoint.

    Args:
        out: folder of all runs, shared by all machines unless `scratch` is given.
        tasks: tasks in order, each after the one that it needs.
        address: address of a cluster, such as "auto"; None starts one on this machine.
        scratch: local working folder on each machine; checkpoints and results are copied to `out`
            through Ray.
        cpus: CPU cores for each task, and its number of JAX devices.
        gpus: GPUs for each task.
        every: with `scratch`, seconds between checks for a new checkpoint to copy.
        data_dir: folder to search first for data files, on every machine.
        deadline: when to stop, by `time.monotonic`.

    Raises:
        UserError: if Ray is not installed, no machine has room for a task, or the scratch is `out`
            itself.
    """
    out = Path(out).resolve()
    work_in = out if scratch is None else Path(scratch).resolve()
    if scratch is not None and work_in == out:
        raise UserError(f"the scratch is {out} itself: if all machines see it, leave scratch out")
    ray = _connect(address, cpus, gpus)
    home = None if scratch is None else _home(ray, out)
    end = time.time() + deadline - time.monotonic()
    place = Place(work_in, data_dir, end, home, every)
    env = {"JAX_NUM_CPU_DEVICES": str(cpus)}
    remote = ray.remote(
        max_retries=LOST, num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": env}
    )(_on_worker)
    return _schedule(ray, partial(remote.remote, place), out, tasks, lock=home is not None)


def _schedule(
    ray: Any, start: Callable[[Task], Any], out: Path, tasks: Sequence[Task], *, lock: bool
) -> Iterator[Outcome]:
    """Start each task once the task that it needs is done; yield outcomes as tasks end.

    Args:
        start: starts a task on a worker, and returns the reference of its result.
        lock: whether to lock tasks here; otherwise, workers in `out` lock them.
    """
    waiting = list(tasks)
    running: dict[Any, tuple[Task, ExitStack]] = {}
    missing = {task.name for task in tasks}
    while waiting or running:
        for task in [task for task in waiting if task.needs not in missing]:
            waiting.remove(task)
            locked = ExitStack()
            try:
                if lock:
                    locked.enter_context(lock_task(out, task))
                running[start(task)] = task, locked
            except InUseError as error:
                yield Outcome(task, Status.IN_USE, str(error))
        if not running:  # the tasks that these need have failed
            for task in waiting:
                yield Outcome(task, Status.WAITING, f"it starts from {task.needs}")
            return
        (ready,), _ = ray.wait(list(running))
        task, locked = running.pop(ready)
        with locked:
            outcome = _task_outcome(ray, ready, task)
        forget_task_failure(out, outcome.task)
        if outcome.status == Status.FAILED:  # the worker may have stored it in its scratch
            write_task_failure(out, outcome.task, Failure(outcome.reason))
        if outcome.status == Status.DONE:
            missing.remove(outcome.task.name)
        yield outcome


def _connect(address: str | None, cpus: int, gpus: float) -> Any:
    """The module of Ray, connected to a cluster that has room for a task."""
    try:
        import ray
    except ImportError as error:
        raise UserError("Ray is not installed: pip install 'iwae[ray]'") from error
    if not ray.is_initialized():
        try:
            # None would look for a cluster started here earlier, even one that died long ago.
            where = address or os.environ.get("RAY_ADDRESS") or "local"
            # A local cluster gets its token here: Ray would store one in the user's home. Only
            # holders of the token can connect, and it ends with the cluster's processes.
            if where == "local" and not any(name.startswith("RAY_AUTH_") for name in os.environ):
                os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            with _own_sigterm():
                ray.init(address=where, include_dashboard=False, log_to_driver=False)
        except Exception as error:  # Ray raises a bare one if the machine is too busy to start it
            raise UserError(f"no Ray cluster at {where}: {shorten_value(error)}") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        raise UserError(f"no machine of the cluster has {cpus} CPUs and {gpus:g} GPUs for a task")
    return ray


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restrict Ray's handler of SIGTERM, which exits silently, to this block."""
    if threading.current_thread() is not threading.main_thread():  # Ray sets no handler there
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    stopped = False
    try:
        yield
    except SystemExit:
        stopped = True
    finally:
        signal.signal(signal.SIGTERM, before)
    if stopped:
        signal.raise_signal(signal.SIGTERM)


def _task_outcome(ray: Any, reference: Any, task: Task) -> Outcome:
    """The outcome of a task; a failure if too many workers died at it."""
    try:
        return Outcome(task, *ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        return Outcome(task, Status.FAILED, f"{type(error.cause).__name__}: {error.cause}")
    except ray.exceptions.RayError as error:
        return Outcome(task, Status.FAILED, f"its workers died: {error}")


def _on_worker(place: Place, task: Task) -> tuple[Status, str]:
    """Work on a task on the machine where this runs."""
    deadline = time.monotonic() + place.end - time.time()
    home = _Copying(place, task)
    do = partial(
        do_local_task,
        data_dir=place.data_dir,
        deadline=deadline,
        show=home.show,
        track=home.track,
        prepare=home.fetch,
    )
    for patience in range(PATIENCE, -1, -1):
        if time.time() > place.end:
            return Status.STOPPED, "the time is up"
        try:
            outcome = attempt_local_task(place.out, task, do)
        except Stopped:  # by a signal: the machine is taken away, so Ray continues elsewhere
            home.bring()
            os._exit(FATAL)
        if outcome.status != Status.IN_USE or patience == 0:
            break
        time.sleep(5)  # a worker that died may still hold the lock
    try:
        home.bring()
    except TakenOverError as error:
        return Status.TAKEN_OVER, str(error)
    return outcome.status, outcome.reason


# --- without a shared folder ------------------------------------------------------------------


def _home(ray: Any, out: Path) -> Any:
    """An actor of `Home` on the driver's machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Home).remote(out)


class Home:
    """The folder of all runs, for workers on other machines.

    Each attempt at a run has a number, and only the last may write: a worker that was given up
    and returns changes nothing.
    """

    def __init__(self, out: Path):
        self.out = out
        self.attempts: dict[str, int] = {}

    def begin(self, name: str) -> int:
        """The number of a new attempt at a run, which supersedes those before."""
        self.attempts[name] = self.attempts.get(name, 0) + 1
        return self.attempts[name]

    def read(self, name: str) -> bytes | None:
        """The files of a run, packed; None if it does not exist."""
        return pack(self.out / name) if (self.out / name).is_dir() else None

    def write(self, name: str, attempt: int, packed: bytes) -> bool:
        """Write a run into its folder; returns False for an attempt that is not the last."""
        if attempt != self.attempts[name]:
            return False
        unpack(packed, self.out / name)
        return True


def pack(folder: Path) -> bytes:
    """The files of a folder as a tar archive."""

    def whole(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(member.name).name.startswith(TEMPORARY) else member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        archive.add(folder, arcname=".", filter=whole)
    return buffer.getvalue()


def unpack(packed: bytes, folder: Path) -> None:
    """Move packed files into a folder, each whole or not at all.

    Checkpoints that the packed folder lacks are removed; other files stay. After an interrupted
    copy, a run resumes from the newest checkpoint that is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder) as fresh:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(fresh, filter="data")  # nothing outside the folder
        kept = {path.name for path in list_checkpoints(fresh / "checkpoints")}
        files = [path for path in fresh.rglob("*") if path.is_file()]
        # Model descriptions come last, so that an interrupted copy is no finished run.
        for path in sorted(files, key=lambda path: (path.name == DESCRIPTION, path)):
            there = folder / path.relative_to(fresh)
            there.parent.mkdir(parents=True, exist_ok=True)
            path.replace(there)
    for path in list_checkpoints(folder / "checkpoints"):
        if path.name not in kept:
            path.unlink()


class _Copying:
    """Fetches a run from home and copies it back now and then, without a shared folder."""

    def __init__(self, place: Place, task: Task):
        self.place, self.task = place, task
        self.attempt: int | None = None
        self.last, self.checkpoint = time.monotonic(), self._newest()

    def fetch(self, task: Task) -> Task:
        """The task, with the runs that it starts from fetched to this machine."""
        if self.place.home is None:
            return task
        self.attempt = _get(self.place.home.begin.remote(task.name))
        for name in filter(None, (task.name, task.needs)):
            packed = _get(self.place.home.read.remote(name))
            shutil.rmtree(self.place.out / name, ignore_errors=True)  # perhaps of another queue
            if packed is not None:
                unpack(packed, self.place.out / name)
        self.checkpoint = self._newest()
        if task.needs is None:
            return task
        start = {"init_from": self.place.out / task.needs}
        return task._replace(config=task.config.model_copy(update=start))

    def _newest(self) -> list[Path]:
        return list_checkpoints(self.place.out / self.task.name / "checkpoints")[-1:]

    def bring(self) -> None:
        """Copy the run home as it is.

        Raises:
            TakenOverError: if another worker was given the task meanwhile.
        """
        run = self.place.out / self.task.name
        if self.attempt is not None and run.is_dir():
            home = self.place.home
            if not _get(home.write.remote(self.task.name, self.attempt, pack(run))):
                raise TakenOverError(f"another worker took over {self.task.name}")
        self.last, self.checkpoint = time.monotonic(), self._newest()

    def _is_time(self) -> bool:
        return self.attempt is not None and time.monotonic() - self.last > self.place.every

    def show(self, reports: Iterable[Report]) -> None:
        """Train; copy new checkpoints and the final state home."""
        for _ in reports:
            if self._is_time():
                self.last = time.monotonic()
                if self._newest() != self.checkpoint:
                    self.bring()
        self.bring()

    def track(self, slabs: Iterable[Any], total: int, label: str) -> Iterator[Any]:  # noqa: ARG002
        """Track a measurement; copy its finished part home."""
        for slab in slabs:
            yield slab
            if self._is_time():
                self.bring()


def _get(reference: Any) -> Any:
    """The result of an actor's method."""
    import ray

    return ray.get(reference)

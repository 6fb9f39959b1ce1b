"""Faults at every write: a full disk, a clock that jumps, a deleted folder, a second writer.

    python tests/campaigns/faults.py --seed 0

Each command on a small run is repeated with a fault at its n-th write, for all n (or `--count`
faults chosen at random), and with each file of the run damaged. A command must succeed, or fail
with a one-line error and status 1 or 2. Afterwards, the same command must give the same bits as
without the fault and leave no partial file. Needs Linux and a C compiler.
"""

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hook
import numpy as np

OPTIONS = """dataset = "{}"
latent_sizes = [2]
hidden_sizes = [[5]]
k = 2
batch_size = 10
epochs = 2
learning_rate = 0.1
validation = 20
"""

FULL, BROKEN, READ_ONLY = errno.ENOSPC, errno.EIO, errno.EROFS
YEAR = 365 * 86_400


def experiment(folder: Path) -> Path:
    """Write small pictures and an experiment file for them; returns the path of the file."""
    rng = np.random.default_rng(0)
    images = np.uint8(np.repeat(rng.choice([40, 200], (160, 1, 2)), [8, 8], axis=2).clip(0, 255))
    images = images.reshape(160, 4, 4) ^ rng.integers(0, 40, (160, 4, 4), dtype=np.uint8)
    np.savez(folder / "pictures.npz", train=images[:120], test=images[120:])
    np.save(folder / "pictures.npy", images)
    (folder / "experiment.toml").write_text(OPTIONS.format(folder / "pictures.npz"))
    return folder / "experiment.toml"


STREAMED = "stream = true\n"
"""The line of an experiment file that reads the data block by block."""


def make_streamed(experiment: Path) -> None:
    """Make an experiment read its pictures block by block, in three blocks."""
    from iwae.training import feed

    feed.BLOCK_BYTES = 700
    experiment.write_text(experiment.read_text().replace(".npz", ".npy") + STREAMED)


TRAINING = ("train", "stream")
"""Commands that train: on data in memory, and on streamed data."""

ANNEALING = (
    *("--temperatures", "20", "--chains", "2", "--leapfrog", "2", "--examples", "20", "--quiet"),
)
COMMANDS = {
    "evaluate": ("evaluate", "{run}", "--k", "1", "5", "--quiet"),
    "anneal": ("evaluate", "{run}", "--method", "ais", *ANNEALING),
    "sandwich": ("evaluate", "{run}", "--method", "sandwich", "--k", "5", *ANNEALING),
    "calibrate": ("calibrate", "{run}", "--examples", "20", "--k", "9", "--quiet"),
    "export": ("export", "{run}", "{run}/exported", "--overwrite"),
}
"""Commands after training."""


def train_arguments(run: Path) -> tuple[str, ...]:
    """The arguments that train a run: from the beginning, or from where it stopped."""
    if (run / "config.toml").exists():
        return ("train", "--resume", str(run), "--quiet")
    return ("train", str(run.parent / "experiment.toml"), "--out", str(run), "--quiet")


def arguments_of(command: str, run: Path) -> tuple[str, ...]:
    """The arguments of a command."""
    if command in TRAINING:
        return train_arguments(run)
    return tuple(argument.format(run=run) for argument in COMMANDS[command])


class Result(NamedTuple):
    """How a command ended: its exit status and what it wrote to standard error."""

    status: int
    err: str


def run_command(arguments: tuple[str, ...]) -> Result:
    """Run a command in this process."""
    from iwae.cli import main

    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(arguments)
        except BaseException:  # the program would print a traceback
            return Result(-1, traceback.format_exc())
    return Result(status, err.getvalue())


def run_contents(run: Path) -> dict[str, str]:
    """A digest of the numbers in each file of a run, by file name."""
    from safetensors import safe_open

    from iwae.runs.named_arrays import digest_named_arrays

    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.name.startswith(".iwae-"):
            found[name] = "left over"
        elif path.name == ".lock" or ".queue" in path.parts:
            continue
        elif path.suffix == ".npz" and path.is_file():
            with np.load(path, allow_pickle=False) as file:
                total = hashlib.sha256(b"".join(file[key].tobytes() for key in sorted(file)))
            found[name] = total.hexdigest()
        elif path.parent.name == "checkpoints" and path.is_file():
            with safe_open(path, framework="numpy") as file:  # its metadata are unordered
                named = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                found[name] = digest_named_arrays(named, file.metadata()["notes"])
        elif path.suffix == ".json" and path.parent.name == "evaluations":
            found[name] = json.dumps(json.loads(path.read_text(), object_hook=_reproducible_fields))
        elif path.is_file() and not {"tensorboard", "README.md"} & set(path.parts):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _reproducible_fields(table: dict[str, Any]) -> dict[str, Any]:
    """A part of a record without its timings and the versions of the code."""
    varying = {"seconds", "seconds_per_draw", "versions"}
    return {name: table[name] for name in table if name not in varying}


# --- faults at writes -----------------------------------------------------------------------


class WriteCounter:
    """Counts writes and acts at the n-th one."""

    def __init__(self, at: int, act: Callable[[], int], *, persistent: bool):
        self.at, self.act, self.persistent, self.count = at, act, persistent, 0

    def __call__(self) -> int:
        """Zero, or the error number with which the write fails."""
        self.count += 1
        if self.count == self.at or (self.persistent and self.count > self.at):
            return self.act()
        return 0


class Fault(NamedTuple):
    """A fault at the n-th write.

    Attributes:
        act: acts at that write; takes the run's folder and the command, returns an error number.
        persistent: whether it also acts at every later write.
        must_fail: whether the command must fail; otherwise it must succeed.
        recoverable: whether the run can be completed afterwards.
    """

    act: Callable[[Path, str], int]
    persistent: bool = False
    must_fail: bool = True
    recoverable: bool = True


def _move_clock(by: int, *_: object) -> int:
    hook.set_clock(by)
    return 0


folder_existed: list[bool] = []
second_results: list[Result] = []


def _delete_run(run: Path, _: str) -> int:
    folder_existed.append(run.exists())
    shutil.rmtree(run, ignore_errors=True)
    return 0


def _run_second_writer(run: Path, command: str) -> int:
    """Run the same command in the middle of itself, as a second process would."""
    second_results.append(run_command(arguments_of(command, run)))
    return 0


FAULTS = {
    "full disk": Fault(lambda *_: FULL, persistent=True),
    "full disk for a moment": Fault(lambda *_: FULL),
    "broken disk": Fault(lambda *_: BROKEN, persistent=True),
    "read-only": Fault(lambda *_: READ_ONLY, persistent=True),
    "clock set back": Fault(partial(_move_clock, -YEAR), must_fail=False),
    "clock set ahead": Fault(partial(_move_clock, YEAR), must_fail=False),
    "folder removed": Fault(_delete_run, recoverable=False),
    "second writer": Fault(_run_second_writer, must_fail=False),
}


def check_failure(result: Result) -> str | None:
    """What is wrong with how a command failed; None for a one-line error and its status."""
    lines = result.err.splitlines()
    if result.status not in (1, 2):
        return f"status {result.status}: {result.err[-1500:]}"
    if "Traceback" in result.err or not lines or not lines[-1].startswith("iwae: "):
        return f"no line of its own: {result.err[-1500:]}"
    return None


def run_with_fault(
    root: Path, command: str, name: str, at: int, expected: Mapping[str, str]
) -> str | None:
    """Run a command with a fault at its n-th write; returns what is wrong, or None."""
    fault, run = FAULTS[name], prepare_run(root, command)
    counter = WriteCounter(at, lambda: fault.act(run, command), persistent=fault.persistent)
    second_results.clear()
    folder_existed.clear()
    hook.before_each_write(run, counter)
    result = run_command(arguments_of(command, run))
    hook.before_each_write(run, None)
    hook.set_clock(0)
    if folder_existed == [False]:
        return None  # the folder did not exist yet
    if counter.count < at:
        return f"it ended before: {result.err[-1500:]}" if result.status else None
    if result.status or fault.must_fail:
        wrong = check_failure(result) if result.status or name != "full disk for a moment" else None
        done_by_the_other = bool(second_results) and not second_results[0].status
        if wrong or not (fault.must_fail or done_by_the_other):
            return f"failed: {wrong or result.err}"
    if second_results and second_results[0].status and (wrong := check_failure(second_results[0])):
        return f"the second writer failed: {wrong}"
    return check_recovery(run, command, expected) if fault.recoverable else None


def check_recovery(run: Path, command: str, expected: Mapping[str, str]) -> str | None:
    """Repeat a command without a fault; returns what is wrong, or None."""
    result = run_command(arguments_of(command, run))
    if result.status != 0:
        return f"afterwards: {result.err[-1500:]}"
    return compare_contents(run_contents(run), expected)


def compare_contents(found: Mapping[str, str], expected: Mapping[str, str]) -> str | None:
    """The files that are missing, unexpected or different; None if there are none."""
    different = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
    return f"afterwards: other contents of {', '.join(different)[:300]}" if different else None


def prepare_run(root: Path, command: str) -> Path:
    """Prepare a folder for a command: without a run, or with a trained one."""
    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    if command == "stream":
        make_streamed(experiment(root))
    elif command == "train":
        experiment(root)
    else:
        shutil.copytree(root / "trained", run)
    return run


# --- damaged files of a run -----------------------------------------------------------------


def _fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _overwrite_with_noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(300))


DAMAGE = {"cut": _truncate, "empty": lambda path: path.write_bytes(b""), "zeroed": _fill_with_zeros}
DAMAGE |= {"removed": Path.unlink, "a folder": _replace_by_folder, "noise": _overwrite_with_noise}


def run_on_damaged_file(root: Path, command: str, file: str, how: str) -> str | None:
    """Run a command on a run with one damaged file; returns what is wrong, or None."""
    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(root / "measured", run)
    DAMAGE[how](run / file)
    result = run_command(arguments_of(command, run))
    if result.status == 0 and "Traceback" not in result.err:
        return None
    return check_failure(result)


# --- the campaign ---------------------------------------------------------------------------


def undisturbed_runs(root: Path, only: str | None) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Run each command without a fault: its name, its number of writes, and the run's contents."""
    for command in (*TRAINING, *COMMANDS) if only is None else dict.fromkeys(("train", only)):
        run = prepare_run(root, command)
        counter = WriteCounter(0, lambda: 0, persistent=False)
        hook.before_each_write(run, counter)
        result = run_command(arguments_of(command, run))
        hook.before_each_write(run, None)
        if result.status:
            raise AssertionError(f"{command} without a fault: {result.err}")
        if command == "train":
            shutil.copytree(run, root / "trained")
        yield command, counter.count, run_contents(run)
    run = prepare_run(root, "evaluate")
    for command in COMMANDS if only is None else ():
        run_command(arguments_of(command, run))
    shutil.copytree(run, root / "measured")


Check = Callable[[], str | None]


def all_faults(root: Path, only: str | None) -> list[tuple[str, str, Check]]:
    """Every fault: its kind, its label, and the check that commits it."""
    faults: list[tuple[str, str, Check]] = []
    for command, writes, expected in undisturbed_runs(root, only):
        for name in FAULTS:
            if command == "export" and name in ("folder removed", "second writer"):
                continue
            for at in range(1, writes + 1):
                label = f"{command}, {name} at write {at}"
                faults.append(
                    (name, label, partial(run_with_fault, root, command, name, at, expected))
                )
    for path in sorted((root / "measured").rglob("*")):
        file = str(path.relative_to(root / "measured"))
        if not path.is_file() or file.startswith(("tensorboard", "exported")):
            continue
        for how in DAMAGE:
            for command in ("train", *COMMANDS) if only is None else (only,):
                label = f"{command} with {file} {how}"
                faults.append(
                    ("damaged file", label, partial(run_on_damaged_file, root, command, file, how))
                )
    return faults


def campaign(seed: int, chosen: slice, kind: str | None, only: str | None) -> int:
    """Commit a slice of all faults in random order, and print and count what is wrong."""
    done, wrong = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="iwae-faults-") as folder:
        faults = [one for one in all_faults(Path(folder), only) if kind in (None, one[0])]
        order = np.random.default_rng(seed).permutation(len(faults))
        for i in order[chosen]:
            name, label, check = faults[i]
            done[name] += 1
            if (reason := check()) is not None:
                wrong[name] += 1
                print(f"{label}: {reason}", flush=True)
    for name, n in sorted(done.items()):
        print(f"{n:8} {name}, {wrong[name]} wrong")
    share = f"{done.total()} of {len(faults)} faults"
    print(f"faults: seed {seed}, {share}, {wrong.total()} wrong", end="")
    return wrong.total()


def main() -> int:
    """Run the campaign and print its summary; 1 if any outcome was wrong."""
    hook.load()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="faults to leave out")
    parser.add_argument("--count", type=int, help="faults chosen at random (default: all)")
    parser.add_argument("--kind", choices=[*FAULTS, "damaged file"])
    parser.add_argument("--command", choices=[*TRAINING, *COMMANDS])
    options = parser.parse_args()
    start = time.monotonic()
    end = None if options.count is None else options.first + options.count
    wrong = campaign(options.seed, slice(options.first, end), options.kind, options.command)
    print(f", {time.monotonic() - start:.0f} s")
    shutil.rmtree(os.environ[hook.LOADED], ignore_errors=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

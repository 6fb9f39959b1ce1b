"""Bad luck at every write: a full disk, a clock that jumps, a vanished folder, a second writer.

    python tests/campaigns/faults.py --seed 0

Each command of a small run is repeated with a fault at its n-th write, for all n (or `--count`
faults chosen at random), and each file of the run is damaged. Right are one line and the status 1
or 2, or success; afterwards, the same command ends with the same bits as without the fault, and
nothing half written is left. Needs Linux and a C compiler.
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
    """An experiment file for small pictures, and the pictures."""
    rng = np.random.default_rng(0)
    images = np.uint8(np.repeat(rng.choice([40, 200], (160, 1, 2)), [8, 8], axis=2).clip(0, 255))
    images = images.reshape(160, 4, 4) ^ rng.integers(0, 40, (160, 4, 4), dtype=np.uint8)
    np.savez(folder / "pictures.npz", train=images[:120], test=images[120:])
    np.save(folder / "pictures.npy", images)
    (folder / "experiment.toml").write_text(OPTIONS.format(folder / "pictures.npz"))
    return folder / "experiment.toml"


STREAMED = "stream = true\n"
"""The line of an experiment file that reads the data block by block."""


def streamed(experiment: Path) -> None:
    """Make an experiment read its pictures block by block, of which there are three."""
    from iwae.training import feed

    feed.BLOCK_BYTES = 700
    experiment.write_text(experiment.read_text().replace(".npz", ".npy") + STREAMED)


TRAINING = ("train", "stream")
"""Commands that train: with data in memory, and with streamed data."""

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


def train(run: Path) -> tuple[str, ...]:
    """The words that train a run: from the beginning, or from where it was stopped."""
    if (run / "config.toml").exists():
        return ("train", "--resume", str(run), "--quiet")
    return ("train", str(run.parent / "experiment.toml"), "--out", str(run), "--quiet")


def words_of(command: str, run: Path) -> tuple[str, ...]:
    """The words of a command."""
    if command in TRAINING:
        return train(run)
    return tuple(word.format(run=run) for word in COMMANDS[command])


class Ended(NamedTuple):
    """How a command ended: its exit status and what it wrote to standard error."""

    status: int
    err: str


def called(words: tuple[str, ...]) -> Ended:
    """Run a command in this process."""
    from iwae.cli import main

    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(words)
        except BaseException:  # which would be a traceback
            return Ended(-1, traceback.format_exc())
    return Ended(status, err.getvalue())


def contents(run: Path) -> dict[str, str]:
    """All numbers that a run has come to, by file: a digest of each."""
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
            with safe_open(path, framework="numpy") as file:  # whose metadata have any order
                named = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                found[name] = digest_named_arrays(named, file.metadata()["notes"])
        elif path.suffix == ".json" and path.parent.name == "evaluations":
            found[name] = json.dumps(json.loads(path.read_text(), object_hook=_lasting))
        elif path.is_file() and not {"tensorboard", "README.md"} & set(path.parts):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _lasting(table: dict[str, Any]) -> dict[str, Any]:
    """A part of a record without the time that it took and the state of the code."""
    passing = {"seconds", "seconds_per_draw", "versions"}
    return {name: table[name] for name in table if name not in passing}


# --- faults at writes -----------------------------------------------------------------------


class Counting:
    """Counts writes, and acts at the n-th one."""

    def __init__(self, at: int, act: Callable[[], int], *, lasting: bool):
        self.at, self.act, self.lasting, self.seen = at, act, lasting, 0

    def __call__(self) -> int:
        """Zero, or the number of the error that the write ends with."""
        self.seen += 1
        if self.seen == self.at or (self.lasting and self.seen > self.at):
            return self.act()
        return 0


class Fault(NamedTuple):
    """A fault at the n-th write.

    Attributes:
        act: what happens there: takes the run's folder and the command, returns an error's number.
        lasting: whether it does so at every later write too.
        fails: whether the command is to fail; otherwise it must succeed.
        again: whether the run can be completed afterwards.
    """

    act: Callable[[Path, str], int]
    lasting: bool = False
    fails: bool = True
    again: bool = True


def _move_clock(by: int, *_: object) -> int:
    hook.set_clock(by)
    return 0


gone: list[bool] = []
second: list[Ended] = []


def _vanish(run: Path, _: str) -> int:
    gone.append(run.exists())
    shutil.rmtree(run, ignore_errors=True)
    return 0


def _write_too(run: Path, command: str) -> int:
    """Run the same command in the middle of itself, as a second process would."""
    second.append(called(words_of(command, run)))
    return 0


FAULTS = {
    "full disk": Fault(lambda *_: FULL, lasting=True),
    "full disk for a moment": Fault(lambda *_: FULL),
    "broken disk": Fault(lambda *_: BROKEN, lasting=True),
    "read-only": Fault(lambda *_: READ_ONLY, lasting=True),
    "clock set back": Fault(partial(_move_clock, -YEAR), fails=False),
    "clock set ahead": Fault(partial(_move_clock, YEAR), fails=False),
    "folder removed": Fault(_vanish, again=False),
    "second writer": Fault(_write_too, fails=False),
}


def judge_failure(ended: Ended) -> str | None:
    """The fault in how a command failed; None if it is one line and a status."""
    lines = ended.err.splitlines()
    if ended.status not in (1, 2):
        return f"status {ended.status}: {ended.err[-1500:]}"
    if "Traceback" in ended.err or not lines or not lines[-1].startswith("iwae: "):
        return f"no line of its own: {ended.err[-1500:]}"
    return None


def strike(root: Path, command: str, name: str, at: int, whole: Mapping[str, str]) -> str | None:
    """Run a command with a fault at its n-th write; what is wrong then, or None."""
    fault, run = FAULTS[name], prepared(root, command)
    counting = Counting(at, lambda: fault.act(run, command), lasting=fault.lasting)
    second.clear()
    gone.clear()
    hook.before_each_write(run, counting)
    ended = called(words_of(command, run))
    hook.before_each_write(run, None)
    hook.set_clock(0)
    if gone == [False]:
        return None  # there was no folder yet
    if counting.seen < at:
        return f"it ended before: {ended.err[-1500:]}" if ended.status else None
    if ended.status or fault.fails:
        wrong = judge_failure(ended) if ended.status or name != "full disk for a moment" else None
        done_by_the_other = bool(second) and not second[0].status
        if wrong or not (fault.fails or done_by_the_other):
            return f"failed: {wrong or ended.err}"
    if second and second[0].status and (wrong := judge_failure(second[0])):
        return f"the second writer failed: {wrong}"
    return after(run, command, whole) if fault.again else None


def after(run: Path, command: str, whole: Mapping[str, str]) -> str | None:
    """Repeat a command without a fault; what is wrong then, or None."""
    ended = called(words_of(command, run))
    if ended.status != 0:
        return f"afterwards: {ended.err[-1500:]}"
    return difference(contents(run), whole)


def difference(found: Mapping[str, str], whole: Mapping[str, str]) -> str | None:
    """The files that a run should have and has not, or others; None if all are right."""
    odd = sorted(n for n in found.keys() | whole.keys() if found.get(n) != whole.get(n))
    return f"afterwards: other contents of {', '.join(odd)[:300]}" if odd else None


def prepared(root: Path, command: str) -> Path:
    """A folder in which a command can be run: nothing, or a trained run."""
    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    if command == "stream":
        streamed(experiment(root))
    elif command == "train":
        experiment(root)
    else:
        shutil.copytree(root / "trained", run)
    return run


# --- damaged files of a run -----------------------------------------------------------------


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(300))


DAMAGE = {"cut": _cut, "empty": lambda path: path.write_bytes(b""), "zeroed": _zero}
DAMAGE |= {"removed": Path.unlink, "a folder": _as_folder, "noise": _noise}


def damage(root: Path, command: str, file: str, how: str) -> str | None:
    """Run a command on a run of which one file is damaged; what is wrong then, or None."""
    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(root / "measured", run)
    DAMAGE[how](run / file)
    ended = called(words_of(command, run))
    if ended.status == 0 and "Traceback" not in ended.err:
        return None
    return judge_failure(ended)


# --- the campaign ---------------------------------------------------------------------------


def references(root: Path, only: str | None) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Each command with the number of its writes, and what the run then holds."""
    for command in (*TRAINING, *COMMANDS) if only is None else dict.fromkeys(("train", only)):
        run = prepared(root, command)
        counting = Counting(0, lambda: 0, lasting=False)
        hook.before_each_write(run, counting)
        ended = called(words_of(command, run))
        hook.before_each_write(run, None)
        if ended.status:
            raise AssertionError(f"{command} without a fault: {ended.err}")
        if command == "train":
            shutil.copytree(run, root / "trained")
        yield command, counting.seen, contents(run)
    run = prepared(root, "evaluate")
    for command in COMMANDS if only is None else ():
        called(words_of(command, run))
    shutil.copytree(run, root / "measured")


Strike = Callable[[], str | None]


def all_faults(root: Path, only: str | None) -> list[tuple[str, str, Strike]]:
    """Every fault: its kind, its name and what commits it."""
    found: list[tuple[str, str, Strike]] = []
    for command, writes, whole in references(root, only):
        for name in FAULTS:
            if command == "export" and name in ("folder removed", "second writer"):
                continue
            for at in range(1, writes + 1):
                words = f"{command}, {name} at write {at}"
                found.append((name, words, partial(strike, root, command, name, at, whole)))
    for path in sorted((root / "measured").rglob("*")):
        file = str(path.relative_to(root / "measured"))
        if not path.is_file() or file.startswith(("tensorboard", "exported")):
            continue
        for how in DAMAGE:
            for command in ("train", *COMMANDS) if only is None else (only,):
                words = f"{command} with {file} {how}"
                found.append(("damaged file", words, partial(damage, root, command, file, how)))
    return found


def campaign(seed: int, chosen: slice, kind: str | None, only: str | None) -> int:
    """Commit a slice of all faults in random order and print what is wrong; returns how many."""
    done, wrong = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="iwae-faults-") as folder:
        faults = [one for one in all_faults(Path(folder), only) if kind in (None, one[0])]
        order = np.random.default_rng(seed).permutation(len(faults))
        for i in order[chosen]:
            name, words, commit = faults[i]
            done[name] += 1
            if (reason := commit()) is not None:
                wrong[name] += 1
                print(f"{words}: {reason}", flush=True)
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

"""Kills at random moments: commands are repeated until they are done, and end with the same bits.

    python tests/campaigns/kills.py --seed 0 --count 1000

Training (plain, replicates, stages, patience, annealed, streamed, with gaps and labels), every
method of measuring, every other command that writes results, a cell of a table and a sweep, here
and by Ray, are ended by SIGKILL, SIGTERM or SIGINT: at a random write, or after a random time. Each
command runs in a fork of this program, which has imported everything and compiled nothing. Needs
Linux and a C compiler.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import faults
import hook
import numpy as np

TRAINING = {
    "plain": "",
    "replicates": "replicates = 2\n",
    "patience": "replicates = 2\npatience = 1\nthreshold = 0.05\n",
    "annealed": 'objective = "aiwae"\nleapfrog = 2\ntemperatures = 3\n',
    "streamed": faults.STREAMED,
    "gaps": 'missing = "at-random"\n',
    "labels": "conditional = true\n",
    "stages": "[[stages]]\nepochs = 1\n[[stages]]\nepochs = 1\nlearning_rate = 0.01\n",
}
"""Runs to train, by what their experiment file has beside the common options."""

ANNEALING = ("--temperatures", "20", "--chains", "2", "--leapfrog", "2", "--examples", "20")
MEASURING = {
    "is": ("--k", "1", "5"),
    "ais": ANNEALING,
    "bdmc": ANNEALING,
    "sandwich": ANNEALING,
    "rate-distortion": (*ANNEALING[:6], "--examples", "20"),
    "information": ("--k", "4"),
}
"""Methods of `iwae evaluate`, with their options."""

DRAWS = ("--draws", "20", "--quiet")
ROWS = ("{folder}/table.csv", "--overwrite", "--out", "{run}/rows.csv", "--k", "20")
OTHERS = {
    "pruned": ("evaluate", "{run}", "--pruned", "--k", "5", "--quiet"),
    "calibrate": ("calibrate", "{run}", "--examples", "20", "--k", "9", "--quiet"),
    "gradients": ("gradients", "{run}", "--k", "5", "--gradients", "dreg", *DRAWS),
    "classify": ("classify", "{run}", "--k", "5", "--quiet"),
    "encode": ("encode", "{run}", *ROWS),
    "score": ("score", "{run}", *ROWS),
    "impute": ("impute", "{run}", *ROWS, "--draws", "2"),
    "sample": ("sample", "{run}", "--n", "50", "--overwrite", "--out", "{run}/rows.npz"),
    "figures": ("figures", "{run}"),
    "export": ("export", "{run}", "{run}/exported", "--overwrite"),
}
"""Other commands that write results of a run."""

OF = {"classify": "labels"} | dict.fromkeys(("encode", "score", "impute"), "gaps")
"""The training behind a case, where it is not the plain one."""

QUEUES = {
    "reproduce": ("reproduce", "run", "two-clusters", "--epochs-scale", "0.005"),
    "sweep": ("sweep", "{folder}/sweep.toml", "--k", "5"),
    "ray": ("sweep", "{folder}/sweep.toml", "--k", "5", "--engine", "ray"),
}
"""Commands that train and measure several runs, or one of a table."""

CASES = (*TRAINING, *MEASURING, *OTHERS, *QUEUES)

RARE = {"ray": 0.25, "figures": 0.25}
"""How often a case that takes long is killed, where another is once."""

KILLS = {signal.SIGKILL: 0.6, signal.SIGTERM: 0.2, signal.SIGINT: 0.2}
"""The signals, with their shares."""

LIMIT = 600.0
"""Seconds after which a command hangs."""


class Moment(NamedTuple):
    """When a command is killed: at a write if that is given, or else after some seconds."""

    number: signal.Signals
    write: int | None
    seconds: float


class Ended(NamedTuple):
    """How a process ended: its exit status, or minus the signal, and its standard error."""

    status: int
    err: str
    writes: int
    seconds: float
    killed: bool


def command(case: str, folder: Path) -> tuple[str, ...]:
    """The words of a command, which resume it if it was begun."""
    run = folder / "run"
    if case in QUEUES:
        words = (word.format(folder=folder) for word in QUEUES[case])
        return (*words, "--out", str(run), "--quiet")
    if case in TRAINING:
        return faults.train(run)
    if case in OTHERS:
        return tuple(word.format(folder=folder, run=run) for word in OTHERS[case])
    return ("evaluate", str(run), "--method", case, *MEASURING[case], "--quiet")


def with_gaps(path: Path) -> None:
    """Write a table in which some values are missing."""
    values = np.random.default_rng(0).normal(size=(160, 4)).round(3)
    values[::3, 1] = np.nan
    lines = [",".join("" if np.isnan(one) else str(one) for one in row) for row in values]
    path.write_text("\n".join(["a,b,c,d", *lines, ""]))


def with_labels(path: Path) -> None:
    """Give each picture one of two labels."""
    pictures = dict(np.load(path))
    labels = {f"{name}_labels": np.arange(len(one)) % 2 for name, one in pictures.items()}
    np.savez(path, **pictures, **labels)


def prepare(case: str, folder: Path, trained: Path) -> None:
    """The folder in which a case begins."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    experiment = faults.experiment(folder)
    text = experiment.read_text()
    training = OF.get(case, case)
    (folder / "sweep.toml").write_text(text.replace("k = 2", "k = [1, 2]"))
    if training == "gaps":
        text = text.replace("pictures.npz", "table.csv")
        with_gaps(folder / "table.csv")
    elif training == "labels":
        with_labels(folder / "pictures.npz")
    experiment.write_text(text.replace("epochs = 2\n", "epochs = 2\n" * (case != "stages")))
    if case == "streamed":
        faults.streamed(experiment)
    elif case in TRAINING:
        experiment.write_text(experiment.read_text() + TRAINING[case])
    if case in (*MEASURING, *OTHERS):
        shutil.copytree(trained / OF.get(case, "plain"), folder / "run")


def _child(words: tuple[str, ...], folder: Path, moment: Moment | None, err: Path) -> None:
    """Run a command in this process, which ends."""
    status = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        file = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        at = 0 if moment is None or moment.write is None else moment.write

        counting = faults.Counting(at, lambda: -moment.number, lasting=False)
        hook.before_each_write(folder / "run", counting)
        from iwae.cli import main
        from iwae.experiments.cells import Measure, Wanted
        from iwae.results import unfinished
        from iwae.runs import start_and_resume
        from iwae.training import loop

        start_and_resume.CHECKPOINT_SECONDS, loop.DISPATCH_SECONDS = 0.05, 0.0
        unfinished.SAVE_SECONDS = 0.0
        Wanted.measures = lambda *_: (Measure((1, 5)),)  # L_5000 takes half a minute
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main(words)
        os.write(2, f"\nwrites {counting.seen}".encode())
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def run(words: tuple[str, ...], folder: Path, moment: Moment | None = None) -> Ended:
    """Run a command in a fork of this process, and kill it at a moment."""
    err, start = folder / "err", time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _child(words, folder, moment, err)
    sent = threading.Event()

    def kill(number: int) -> None:
        sent.set()
        os.kill(child, number)

    timers = [threading.Timer(LIMIT, kill, [signal.SIGABRT])]
    if moment is not None and moment.write is None:
        timers.append(threading.Timer(moment.seconds, kill, [moment.number]))
    for timer in timers:
        timer.start()
    _, status = os.waitpid(child, 0)
    for timer in timers:
        timer.cancel()
    text, _, writes = (err.read_text() if err.exists() else "").partition("\nwrites ")
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, text, int(writes or 0), time.monotonic() - start, sent.is_set() or code != 0)


def judge_kill(ended: Ended, moment: Moment) -> str | None:
    """The fault in how a killed command ended; None if nothing is."""
    if ended.status == -signal.SIGABRT:
        return "it hung"
    right = {-moment.number, 128 + moment.number, 0}
    if ended.status not in right or "Traceback" in ended.err or "Exception ignored" in ended.err:
        return f"{moment.number.name} ended it with status {ended.status}: {ended.err[-1500:]}"
    return None


def contents(folder: Path) -> dict[str, str]:
    """All numbers in a folder; of checkpoints, those of the newest."""
    found = faults.contents(folder / "run")
    checkpoints = sorted(name for name in found if "/checkpoints/" in f"/{name}")
    newest = {str(Path(name).parent): name for name in checkpoints if "abandoned" not in name}
    return {n: one for n, one in found.items() if n not in checkpoints or n in newest.values()}


class Case(NamedTuple):
    """A case without kills: what its folder then holds, its writes and its seconds."""

    whole: dict[str, str]
    writes: int
    seconds: float


def undisturbed(case: str, folder: Path, trained: Path) -> Case:
    """Run a case without kills."""
    prepare(case, folder, trained)
    ended = run(command(case, folder), folder)
    if ended.status != 0:
        raise AssertionError(f"{case} without a kill: {ended.err[-3000:]}")
    return Case(contents(folder), ended.writes, ended.seconds)


def disturbed(
    name: str, case: Case, folder: Path, trained: Path, rng: np.random.Generator
) -> tuple[int, str | None]:
    """Run a case with kills; how many there were, and what is wrong, or None."""
    prepare(name, folder, trained)
    kills = 0
    for _ in range(int(rng.integers(1, 4))):
        number = list(KILLS)[rng.choice(len(KILLS), p=list(KILLS.values()))]
        write = int(rng.integers(1, case.writes + 1)) if rng.random() < 0.6 else None
        moment = Moment(number, write, float(rng.uniform(0, case.seconds)))
        ended = run(command(name, folder), folder, moment)
        kills += ended.killed
        if reason := judge_kill(ended, moment):
            return kills, reason
    ended = run(command(name, folder), folder)
    if ended.status != 0:
        return kills, f"afterwards: {ended.err[-1500:]}"
    return kills, faults.difference(contents(folder), case.whole)


def campaign(seed: int, count: int, only: Sequence[str]) -> tuple[int, int]:
    """Kill until there were `count` kills; returns how many there were, and wrong outcomes."""
    done, wrong = Counter[str](), Counter[str]()
    names = list(only or CASES)
    shares = np.array([RARE.get(name, 1.0) for name in names])
    with tempfile.TemporaryDirectory(prefix="iwae-kills-") as root:
        folder, trained = Path(root) / "case", Path(root) / "trained"
        for training in {OF.get(name, "plain") for name in {*names} & {*MEASURING, *OTHERS}}:
            undisturbed(training, folder, trained)
            shutil.copytree(folder / "run", trained / training)
        cases: dict[str, Case] = {}
        i = 0
        while done.total() < count:
            rng = np.random.default_rng([seed, i])
            name, i = names[rng.choice(len(names), p=shares / shares.sum())], i + 1
            if name not in cases:
                cases[name] = undisturbed(name, folder, trained)
            kills, reason = disturbed(name, cases[name], folder, trained, rng)
            done[name] += kills
            if reason is not None:
                wrong[name] += 1
                print(f"{name}, run {i - 1} of seed {seed}: {reason}", flush=True)
        for name in sorted(cases):
            print(f"{done[name]:8} kills of {name}, {wrong[name]} wrong")
    return done.total(), wrong.total()


def import_commands() -> None:
    """Import all that commands import, before the first fork."""
    import iwae.cli
    import iwae.experiments.cells
    import iwae.experiments.local
    import iwae.runs.measurement_progress  # noqa: F401


def main() -> int:
    """Run the campaign and print its summary; 1 if any outcome was wrong."""
    hook.load()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--case", nargs="*", choices=CASES, default=())
    options = parser.parse_args()
    import_commands()
    start = time.monotonic()
    kills, wrong = campaign(options.seed, options.count, options.case)
    print(
        f"kills: seed {options.seed}, {kills} kills, {wrong} wrong, "
        f"{time.monotonic() - start:.0f} s"
    )
    shutil.rmtree(os.environ[hook.LOADED], ignore_errors=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

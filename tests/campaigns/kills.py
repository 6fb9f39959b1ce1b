"""Kills at random moments: commands are repeated until they succeed, and give the same bits.

    python tests/campaigns/kills.py --seed 0 --count 1000

Training (plain, replicates, stages, patience, annealed, streamed, with missing values and labels),
every method of evaluation, every other command that writes results, a table cell and a sweep (here
and on Ray) are ended by SIGKILL, SIGTERM or SIGINT, at a random write or after a random time. Each
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
"""Runs to train: what their experiment file adds to the common options."""

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
"""Other commands that write the results of a run."""

TRAINING_OF = {"classify": "labels"} | dict.fromkeys(("encode", "score", "impute"), "gaps")
"""The training behind a case, unless it is the plain one."""

QUEUES = {
    "reproduce": ("reproduce", "run", "two-clusters", "--epochs-scale", "0.005"),
    "sweep": ("sweep", "{folder}/sweep.toml", "--k", "5"),
    "ray": ("sweep", "{folder}/sweep.toml", "--k", "5", "--engine", "ray"),
}
"""Commands that train and evaluate several runs, or one cell of a table."""

CASES = (*TRAINING, *MEASURING, *OTHERS, *QUEUES)

CASE_SHARES = {"ray": 0.25, "figures": 0.25}
"""How often a slow case is chosen, relative to the others."""

SIGNAL_SHARES = {signal.SIGKILL: 0.6, signal.SIGTERM: 0.2, signal.SIGINT: 0.2}
"""The signals and their shares."""

LIMIT = 600.0
"""Seconds after which a command counts as hanging."""


class KillTime(NamedTuple):
    """When a command is killed: at a write if given, otherwise after some seconds."""

    number: signal.Signals
    write: int | None
    seconds: float


class ProcessResult(NamedTuple):
    """How a process ended: its exit status, or minus the signal, and its standard error."""

    status: int
    err: str
    writes: int
    seconds: float
    killed: bool


def command_arguments(case: str, folder: Path) -> tuple[str, ...]:
    """The arguments of a command, which resume it if it was started."""
    run = folder / "run"
    if case in QUEUES:
        arguments = (argument.format(folder=folder) for argument in QUEUES[case])
        return (*arguments, "--out", str(run), "--quiet")
    if case in TRAINING:
        return faults.train_arguments(run)
    if case in OTHERS:
        return tuple(argument.format(folder=folder, run=run) for argument in OTHERS[case])
    return ("evaluate", str(run), "--method", case, *MEASURING[case], "--quiet")


def write_incomplete_table(path: Path) -> None:
    """Write a table in which some values are missing."""
    values = np.random.default_rng(0).normal(size=(160, 4)).round(3)
    values[::3, 1] = np.nan
    lines = [",".join("" if np.isnan(one) else str(one) for one in row) for row in values]
    path.write_text("\n".join(["a,b,c,d", *lines, ""]))


def add_labels(path: Path) -> None:
    """Give each picture one of two labels."""
    pictures = dict(np.load(path))
    labels = {f"{name}_labels": np.arange(len(one)) % 2 for name, one in pictures.items()}
    np.savez(path, **pictures, **labels)


def prepare(case: str, folder: Path, trained: Path) -> None:
    """Prepare the folder in which a case starts."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    experiment = faults.experiment(folder)
    text = experiment.read_text()
    training = TRAINING_OF.get(case, case)
    (folder / "sweep.toml").write_text(text.replace("k = 2", "k = [1, 2]"))
    if training == "gaps":
        text = text.replace("pictures.npz", "table.csv")
        write_incomplete_table(folder / "table.csv")
    elif training == "labels":
        add_labels(folder / "pictures.npz")
    experiment.write_text(text.replace("epochs = 2\n", "epochs = 2\n" * (case != "stages")))
    if case == "streamed":
        faults.make_streamed(experiment)
    elif case in TRAINING:
        experiment.write_text(experiment.read_text() + TRAINING[case])
    if case in (*MEASURING, *OTHERS):
        shutil.copytree(trained / TRAINING_OF.get(case, "plain"), folder / "run")


def _run_in_child(
    arguments: tuple[str, ...], folder: Path, moment: KillTime | None, err: Path
) -> None:
    """Run a command in this process and exit."""
    status = 70
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        file = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        at = 0 if moment is None or moment.write is None else moment.write

        counter = faults.WriteCounter(at, lambda: -moment.number, persistent=False)
        hook.before_each_write(folder / "run", counter)
        from iwae.cli import main
        from iwae.experiments.cells import Measure, Wanted
        from iwae.results import unfinished
        from iwae.runs import start_and_resume
        from iwae.training import loop

        start_and_resume.CHECKPOINT_SECONDS, loop.DISPATCH_SECONDS = 0.05, 0.0
        unfinished.SAVE_SECONDS = 0.0
        Wanted.measures = lambda *_: (Measure((1, 5)),)  # L_5000 takes half a minute
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main(arguments)
        os.write(2, f"\nwrites {counter.count}".encode())
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def run(arguments: tuple[str, ...], folder: Path, moment: KillTime | None = None) -> ProcessResult:
    """Run a command in a fork of this process, and kill it at the given time."""
    err, start = folder / "err", time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _run_in_child(arguments, folder, moment, err)
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
    return ProcessResult(
        code, text, int(writes or 0), time.monotonic() - start, sent.is_set() or code != 0
    )


def check_killed_command(result: ProcessResult, moment: KillTime) -> str | None:
    """What is wrong with how a killed command ended, or None."""
    if result.status == -signal.SIGABRT:
        return "it hung"
    right = {-moment.number, 128 + moment.number, 0}
    if result.status not in right or "Traceback" in result.err or "Exception ignored" in result.err:
        return f"{moment.number.name} ended it with status {result.status}: {result.err[-1500:]}"
    return None


def case_contents(folder: Path) -> dict[str, str]:
    """Digests of all numbers in a folder; of the checkpoints, only of the newest."""
    digests = faults.run_contents(folder / "run")
    checkpoints = sorted(name for name in digests if "/checkpoints/" in f"/{name}")
    newest = {str(Path(name).parent): name for name in checkpoints if "abandoned" not in name}
    return {
        name: digest
        for name, digest in digests.items()
        if name not in checkpoints or name in newest.values()
    }


class Case(NamedTuple):
    """A case without kills: the contents of its folder, its writes and its seconds."""

    contents: dict[str, str]
    writes: int
    seconds: float


def run_uninterrupted(case: str, folder: Path, trained: Path) -> Case:
    """Run a case without kills."""
    prepare(case, folder, trained)
    result = run(command_arguments(case, folder), folder)
    if result.status != 0:
        raise AssertionError(f"{case} without a kill: {result.err[-3000:]}")
    return Case(case_contents(folder), result.writes, result.seconds)


def run_with_kills(
    name: str, case: Case, folder: Path, trained: Path, rng: np.random.Generator
) -> tuple[int, str | None]:
    """Run a case with kills; returns how many there were, and what is wrong, or None."""
    prepare(name, folder, trained)
    kills = 0
    for _ in range(int(rng.integers(1, 4))):
        number = list(SIGNAL_SHARES)[rng.choice(len(SIGNAL_SHARES), p=list(SIGNAL_SHARES.values()))]
        write = int(rng.integers(1, case.writes + 1)) if rng.random() < 0.6 else None
        moment = KillTime(number, write, float(rng.uniform(0, case.seconds)))
        result = run(command_arguments(name, folder), folder, moment)
        kills += result.killed
        if reason := check_killed_command(result, moment):
            return kills, reason
    result = run(command_arguments(name, folder), folder)
    if result.status != 0:
        return kills, f"afterwards: {result.err[-1500:]}"
    return kills, faults.compare_contents(case_contents(folder), case.contents)


def campaign(seed: int, count: int, only: Sequence[str]) -> tuple[int, int]:
    """Kill at least `count` times; returns the numbers of kills and of wrong outcomes."""
    done, wrong = Counter[str](), Counter[str]()
    names = list(only or CASES)
    shares = np.array([CASE_SHARES.get(name, 1.0) for name in names])
    with tempfile.TemporaryDirectory(prefix="iwae-kills-") as root:
        folder, trained = Path(root) / "case", Path(root) / "trained"
        for training in {
            TRAINING_OF.get(name, "plain") for name in {*names} & {*MEASURING, *OTHERS}
        }:
            run_uninterrupted(training, folder, trained)
            shutil.copytree(folder / "run", trained / training)
        cases: dict[str, Case] = {}
        i = 0
        while done.total() < count:
            rng = np.random.default_rng([seed, i])
            name, i = names[rng.choice(len(names), p=shares / shares.sum())], i + 1
            if name not in cases:
                cases[name] = run_uninterrupted(name, folder, trained)
            kills, reason = run_with_kills(name, cases[name], folder, trained, rng)
            done[name] += kills
            if reason is not None:
                wrong[name] += 1
                print(f"{name}, run {i - 1} of seed {seed}: {reason}", flush=True)
        for name in sorted(cases):
            print(f"{done[name]:8} kills of {name}, {wrong[name]} wrong")
    return done.total(), wrong.total()


def import_commands() -> None:
    """Import everything that commands import, before the first fork."""
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

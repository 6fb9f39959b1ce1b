"""Exhausted memory: a command's n-th large allocation is refused, or every one from there on.

    python tests/campaigns/memory.py --seed 0

Large allocations are arrays of NumPy and XLA of 2 KiB or more, and Python's own of 16 KiB or more.
A command must succeed, or fail with a one-line error and status 1, or be ended by a library.
Afterwards, the same command must give the same bits as without the fault and leave no partial file.
Needs Linux and a C compiler.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faults
import hook
import kills
import numpy as np

LIMIT = 2**46
"""Bytes of address space: too many to refuse any, but a limit, which the program checks for."""


CASES = ("plain", "streamed", *kills.MEASURING, *(one for one in kills.OTHERS if one != "figures"))
"""Commands of the campaign of kills; its others train and evaluate in the same way."""


def run_refusing_memory(
    case: str, folder: Path, at: int, *, persistent: bool
) -> tuple[faults.Result, int]:
    """Run a case and refuse allocations; returns how it ended, and how many it requested."""
    kills.prepare(case, folder / "case", folder / "trained")
    hook.refuse_memory(at, persistent=persistent)
    result = faults.run_command(kills.command_arguments(case, folder / "case"))
    return result, hook.allocations()


class Reference(NamedTuple):
    """A case without a fault: its number of large allocations, and the contents of its run."""

    allocations: int
    contents: dict[str, str]


def run_undisturbed(case: str, folder: Path) -> Reference:
    """Run a case twice, since the first run also compiles."""
    for _ in range(2):
        result, count = run_refusing_memory(case, folder, 0, persistent=False)
        if result.status:
            raise AssertionError(f"{case} without a fault: {result.err}")
    return Reference(count, kills.case_contents(folder / "case"))


def run_with_fault(
    case: str, folder: Path, at: int, reference: Reference, *, persistent: bool
) -> str | None:
    """Refuse memory to a case, then repeat its command; returns what is wrong, or None."""
    from iwae.errors import OUT_OF_MEMORY

    result, count = run_refusing_memory(case, folder, at, persistent=persistent)
    # Libraries print lines of their own about exceptions in callbacks.
    only_expected_lines = (
        result.err.startswith("Exception ignored in") or result.err.count("\n") == 1
    )
    one_line = only_expected_lines and result.err.endswith(f"iwae: {OUT_OF_MEMORY}\n")
    if not (result.status == 0 or (result.status == 1 and one_line)):
        return f"status {result.status}: {result.err[-1500:]}"
    if count < at:
        return f"it ended before: {result.err}" if result.status else None
    return check_recovery(case, folder, reference)


def check_recovery(case: str, folder: Path, reference: Reference) -> str | None:
    """Repeat a case without a fault; returns what is wrong, or None."""
    result = faults.run_command(kills.command_arguments(case, folder / "case"))
    if result.status:
        return f"afterwards: {result.err[-1500:]}"
    return faults.compare_contents(kills.case_contents(folder / "case"), reference.contents)


def in_fork(function: Callable[[], object]) -> int:
    """Call a function in a fork of this process, which has not used JAX; returns the exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_references(folder: Path, cases: Sequence[str]) -> dict[str, Reference]:
    """Run all cases without faults."""

    def work() -> None:
        for training in {kills.TRAINING_OF.get(case, "plain") for case in cases}:
            run_undisturbed(training, folder)
            shutil.copytree(folder / "case" / "run", folder / "trained" / training)
        references = {case: run_undisturbed(case, folder) for case in cases}
        (folder / "wholes.json").write_text(json.dumps(references))

    kills.prepare("streamed", folder / "case", folder)  # sets the block size in all forks
    if in_fork(work):
        raise AssertionError("a case failed without a fault")
    return {
        case: Reference(*one)
        for case, one in json.loads((folder / "wholes.json").read_text()).items()
    }


def campaign(seed: int, chosen: slice, cases: Sequence[str]) -> int:
    """Commit a slice of all faults in random order, and print and count what is wrong."""
    with tempfile.TemporaryDirectory(prefix="iwae-memory-") as root:
        folder = Path(root)
        references, log = run_references(folder, cases), folder / "log"
        trials = [
            (case, at, persistent)
            for case in cases
            for at in range(1, references[case].allocations + 1)
            for persistent in (False, True)
        ]
        todo = [trials[i] for i in np.random.default_rng(seed).permutation(len(trials))[chosen]]
        wrong, ended = Counter[str](), 0

        def work(first: int, *, repeat: bool) -> None:
            warm = set[str]()
            for i, (case, at, persistent) in enumerate(todo[first:], start=first):
                if repeat and i == first:
                    reason = check_recovery(case, folder, references[case])
                else:
                    if case not in warm:  # imports and compiles
                        run_refusing_memory(case, folder, 0, persistent=False)
                        warm.add(case)
                    reason = run_with_fault(
                        case, folder, at, references[case], persistent=persistent
                    )
                with log.open("a") as file:
                    file.write(json.dumps(reason) + "\n")

        status = in_fork(partial(work, 0, repeat=False))
        while status in (-signal.SIGABRT, -signal.SIGSEGV):  # a library ended the process
            ended += 1
            status = in_fork(partial(work, len(log.read_text().splitlines()), repeat=True))
        if status:
            raise AssertionError(f"the campaign itself failed with status {status}")
        reasons = map(json.loads, log.read_text().splitlines())
        for (case, at, persistent), reason in zip(todo, reasons, strict=True):
            if reason is not None:
                wrong[case] += 1
                print(f"{case}, allocation {at}{' and all later' * persistent} refused: {reason}")
        for case, n in sorted(Counter(case for case, *_ in todo).items()):
            print(
                f"{n:8} {case}, of {references[case].allocations} allocations, {wrong[case]} wrong"
            )
    print(
        f"memory: seed {seed}, {len(todo)} of {len(trials)} faults, {ended} ended the process, ",
        end="",
    )
    return wrong.total()


def main() -> int:
    """Run the campaign and print its summary; 1 if any outcome was wrong."""
    hook.load()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="faults to leave out")
    parser.add_argument("--count", type=int, help="faults chosen at random (default: all)")
    parser.add_argument("--case", nargs="*", choices=CASES, default=CASES)
    options = parser.parse_args()
    kills.import_commands()
    start = time.monotonic()
    end = None if options.count is None else options.first + options.count
    wrong = campaign(options.seed, slice(options.first, end), options.case)
    print(f"{wrong} wrong, {time.monotonic() - start:.0f} s")
    shutil.rmtree(os.environ[hook.LOADED], ignore_errors=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

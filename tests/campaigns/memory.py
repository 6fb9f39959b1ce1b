"""Exhausted memory: the n-th large allocation of a command is refused, or every one from there on.

    python tests/campaigns/memory.py --seed 0

Refused are arrays of NumPy and of XLA of 2 KiB or more, and what Python itself asks for from 16 KiB
on. Right are one line and the status 1, or success, or that a library ends the process; afterwards,
the same command ends with the same bits as without the fault, and nothing half written is left.
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
"""Bytes of address space: so many that none is refused, but a limit as the product looks for."""


CASES = ("plain", "streamed", *kills.MEASURING, *(one for one in kills.OTHERS if one != "figures"))
"""Commands of the campaign of kills: the others train and measure in the same way."""


def refused(case: str, folder: Path, at: int, *, lasting: bool) -> tuple[faults.Ended, int]:
    """Run a case of which allocations are refused; how it ended, and how many it asked for."""
    kills.prepare(case, folder / "case", folder / "trained")
    hook.refuse_memory(at, lasting=lasting)
    ended = faults.called(kills.command(case, folder / "case"))
    return ended, hook.allocations()


class Whole(NamedTuple):
    """A case without a fault: its large allocations, and what the run then holds."""

    allocations: int
    contents: dict[str, str]


def undisturbed(case: str, folder: Path) -> Whole:
    """Run a case twice, since the first time it also compiles."""
    for _ in range(2):
        ended, seen = refused(case, folder, 0, lasting=False)
        if ended.status:
            raise AssertionError(f"{case} without a fault: {ended.err}")
    return Whole(seen, kills.contents(folder / "case"))


def strike(case: str, folder: Path, at: int, whole: Whole, *, lasting: bool) -> str | None:
    """Refuse a case memory, then repeat its command; what is wrong then, or None."""
    from iwae.errors import OUT_OF_MEMORY

    ended, seen = refused(case, folder, at, lasting=lasting)
    # Libraries themselves tell of what they lost in callbacks.
    told = ended.err.startswith("Exception ignored in") or ended.err.count("\n") == 1
    one_line = told and ended.err.endswith(f"iwae: {OUT_OF_MEMORY}\n")
    if not (ended.status == 0 or (ended.status == 1 and one_line)):
        return f"status {ended.status}: {ended.err[-1500:]}"
    if seen < at:
        return f"it ended before: {ended.err}" if ended.status else None
    return afterwards(case, folder, whole)


def afterwards(case: str, folder: Path, whole: Whole) -> str | None:
    """Repeat a case without a fault; what is wrong then, or None."""
    again = faults.called(kills.command(case, folder / "case"))
    if again.status:
        return f"afterwards: {again.err[-1500:]}"
    return faults.difference(kills.contents(folder / "case"), whole.contents)


def in_fork(work: Callable[[], object]) -> int:
    """Work in a fork of this process, which JAX has not touched; its status, or minus a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def measured(folder: Path, cases: Sequence[str]) -> dict[str, Whole]:
    """All cases without faults."""

    def work() -> None:
        for training in {kills.OF.get(case, "plain") for case in cases}:
            undisturbed(training, folder)
            shutil.copytree(folder / "case" / "run", folder / "trained" / training)
        wholes = {case: undisturbed(case, folder) for case in cases}
        (folder / "wholes.json").write_text(json.dumps(wholes))

    kills.prepare("streamed", folder / "case", folder)  # sets the size of a block in all forks
    if in_fork(work):
        raise AssertionError("a case failed without a fault")
    return {
        case: Whole(*one) for case, one in json.loads((folder / "wholes.json").read_text()).items()
    }


def campaign(seed: int, chosen: slice, cases: Sequence[str]) -> int:
    """Commit a slice of all faults in random order and print what is wrong; returns how many."""
    with tempfile.TemporaryDirectory(prefix="iwae-memory-") as root:
        folder = Path(root)
        wholes, log = measured(folder, cases), folder / "log"
        found = [
            (case, at, lasting)
            for case in cases
            for at in range(1, wholes[case].allocations + 1)
            for lasting in (False, True)
        ]
        todo = [found[i] for i in np.random.default_rng(seed).permutation(len(found))[chosen]]
        wrong, ended = Counter[str](), 0

        def work(first: int, *, again: bool) -> None:
            warm = set[str]()
            for i, (case, at, lasting) in enumerate(todo[first:], start=first):
                if again and i == first:
                    reason = afterwards(case, folder, wholes[case])
                else:
                    if case not in warm:  # imports and compiles
                        refused(case, folder, 0, lasting=False)
                        warm.add(case)
                    reason = strike(case, folder, at, wholes[case], lasting=lasting)
                with log.open("a") as file:
                    file.write(json.dumps(reason) + "\n")

        status = in_fork(partial(work, 0, again=False))
        while status in (-signal.SIGABRT, -signal.SIGSEGV):  # a library ended it, in its way
            ended += 1
            status = in_fork(partial(work, len(log.read_text().splitlines()), again=True))
        if status:
            raise AssertionError(f"the campaign itself failed with status {status}")
        reasons = map(json.loads, log.read_text().splitlines())
        for (case, at, lasting), reason in zip(todo, reasons, strict=True):
            if reason is not None:
                wrong[case] += 1
                print(f"{case}, allocation {at}{' and all later' * lasting} refused: {reason}")
        for case, n in sorted(Counter(case for case, *_ in todo).items()):
            print(f"{n:8} {case}, of {wholes[case].allocations} allocations, {wrong[case]} wrong")
    print(
        f"memory: seed {seed}, {len(todo)} of {len(found)} faults, {ended} ended the process, ",
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

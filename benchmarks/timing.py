"""Time a function in blocks, and detect other programs that used the cores meanwhile."""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

# Use of the cores by other programs above which a block is disturbed: the threads of a matrix
# product wait for each other, so another program costs far more than its share.
QUIET_CORES = 0.1


class Block(NamedTuple):
    """Some calls timed together."""

    ms: float  # milliseconds per call
    others: float  # cores that other programs kept busy meanwhile; 0 where unknown


def cores() -> int:
    """Cores that this process may use."""
    return len(_own_cores())


def _own_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def busy_seconds() -> float:
    """CPU seconds that other programs have used on the cores of this one (Linux; elsewhere 0).

    Counted since the machine started, so only differences have a meaning.
    """
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    names = {f"cpu{core}" for core in _own_cores()}
    lines = [line.split() for line in stat.read_text().splitlines()]
    # user, nice, system, (idle, waiting for disks,) interrupts twice, stolen by other machines
    ticks = sum(sum(map(int, (*f[1:4], *f[6:9]))) for f in lines if f[0] in names)
    own = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system


class Stopwatch:
    """Times laps of several calls, and the use of the cores by other programs meanwhile."""

    def __init__(self) -> None:
        self.others, self.start = busy_seconds(), time.perf_counter()

    def lap(self, calls: int) -> Block:
        """The time of the `calls` calls since the last lap, or since the start."""
        others, start = self.others, self.start
        self.others, self.start = busy_seconds(), time.perf_counter()
        elapsed = self.start - start
        return Block(elapsed / calls * 1e3, max(0.0, self.others - others) / elapsed)


def time_blocks(
    call: Callable[[int], object], *, seconds: float, blocks: int = 5, warm_up: int = 10
) -> list[Block]:
    """Time `call(n)`, which does the work n times and waits for it, for `seconds` in total.

    The first call, which includes compilation, is not counted.
    """
    call(warm_up)
    watch = Stopwatch()
    call(warm_up)
    n = max(1, round(seconds * 1e3 / blocks / watch.lap(warm_up).ms))
    times = []
    for _ in range(blocks):
        call(n)
        times.append(watch.lap(n))
    return times


WARM_UP = 3  # dispatches: the first compiles, and the next ones are shorter than the target


def time_dispatches(
    run: Iterable[Any], seconds: float, warm: Callable[[], object] = lambda: None
) -> list[Block]:
    """Time the dispatches of a training loop, a block each, for `seconds` after the warm-up.

    Args:
        run: (state, best, report) of each dispatch.
        warm: called once after the warm-up.
    """
    blocks, watch, lasted = [], Stopwatch(), 0.0
    for number, (_, _, report) in enumerate(run, 1):
        block = watch.lap(report.steps)
        if number == WARM_UP:
            warm()
        elif number > WARM_UP:
            blocks.append(block)
            lasted += report.seconds
        if lasted > seconds:
            break
    return blocks


class Timing(NamedTuple):
    """A summary of blocks for a row of a table, milliseconds per call."""

    median: float
    low: float
    high: float
    quiet: int  # number of blocks without other programs
    others: float  # cores that other programs kept busy in the blocks used


def summary(blocks: list[Block]) -> Timing:
    """Median, minimum and maximum of the undisturbed blocks, or of all if all were disturbed."""
    quiet = [block for block in blocks if block.others <= QUIET_CORES]
    used = quiet or blocks
    times = [block.ms for block in used]
    others = statistics.fmean(block.others for block in used)
    return Timing(statistics.median(times), min(times), max(times), len(quiet), others)

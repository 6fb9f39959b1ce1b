"""Progress of a measurement on standard error: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from rich.progress import TimeRemainingColumn

from iwae.training.progress import LINE_SECONDS, make_bar


def measurement_progress(*, quiet: bool) -> Any:
    """A function (slabs, total examples, label) -> slabs that shows progress."""

    def track(slabs: Iterable[dict[str, np.ndarray]], total: int, label: str) -> Iterable[Any]:
        if quiet:
            return slabs
        show = _slab_bar if sys.stderr.isatty() else _slab_lines
        return show(slabs, total, label)

    return track


def _slab_bar(slabs: Iterable[dict[str, np.ndarray]], total: int, label: str) -> Iterator[Any]:
    with make_bar(TimeRemainingColumn()) as bar:
        task = bar.add_task(label, total=total, words="")
        for slab in slabs:
            bar.advance(task, len(next(iter(slab.values()))))
            yield slab


def _slab_lines(slabs: Iterable[dict[str, np.ndarray]], total: int, label: str) -> Iterator[Any]:
    """Print a line every few seconds; the first slab does not count for the time left."""
    done = first_done = 0
    first = last = time.monotonic()
    for slab in slabs:
        done += len(next(iter(slab.values())))
        now = time.monotonic()
        if first_done == 0:  # includes compilation or earlier work
            first, first_done = now, done
        elif now - last >= LINE_SECONDS and done < total:
            left = (now - first) / (done - first_done) * (total - done)
            print(
                f"{label}: {done} of {total} examples, {left / 60:.1f} min left",
                file=sys.stderr,
                flush=True,
            )
            last = now
        yield slab


def no_progress(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:  # noqa: ARG001
    """No progress bar."""
    return items

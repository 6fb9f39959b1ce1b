"""Progress on standard error: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from iwae.training import Report

LINE_SECONDS = 10.0
"""Time between plain lines where there is no terminal."""


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
        console=Console(stderr=True),
        transient=True,
    )


def show_training(reports: Iterable[Report], *, quiet: bool = False, verbose: bool = False) -> None:
    """Exhaust the reports of a run: epoch, steps per second, time left and the training bound.

    Args:
        quiet: show nothing.
        verbose: a line for every epoch.
    """
    if quiet:
        for _ in reports:
            pass
    elif sys.stderr.isatty() and not verbose:
        _training_bar(reports)
    else:
        _training_lines(reports, every=0.0 if verbose else LINE_SECONDS)


def _training_bar(reports: Iterable[Report]) -> None:
    with _bar() as bar:
        task = None
        for report in reports:
            if task is None:
                task = bar.add_task("training", total=1.0, words="")
            bar.update(task, completed=report.share, words=_words(report))


def _training_lines(reports: Iterable[Report], every: float) -> None:
    last = time.monotonic()
    first: tuple[float, float] | None = None
    report = shown = None
    for report in reports:
        now = time.monotonic()
        first = first or (now, report.share)
        if report.epoch_done and now - last >= every:
            left = _left(report, first, now)
            print(f"{_words(report)}{left}", file=sys.stderr, flush=True)
            last, shown = now, report
    if report is not None and report is not shown:
        print(_words(report), file=sys.stderr, flush=True)


def _left(report: Report, first: tuple[float, float], now: float) -> str:
    done = report.share - first[1]
    if done == 0 or now - first[0] < 5:
        return ""
    seconds = (now - first[0]) / done * (1 - report.share)
    return f", {seconds / 60:.0f} min left"


def _words(report: Report) -> str:
    bound = " ".join(f"{value:.2f}" for value in np.atleast_1d(report.bound))
    words = f"epoch {report.epoch}, {report.steps / report.seconds:.0f} steps/s, bound {bound}"
    if report.validation is not None:
        words += ", validation " + " ".join(f"{value:.2f}" for value in report.validation)
    return words


def tracker(*, quiet: bool) -> Any:
    """A function (slabs, total examples, label) -> slabs that shows progress."""

    def track(slabs: Iterable[dict[str, np.ndarray]], total: int, label: str) -> Iterable:
        if quiet:
            return slabs
        return (
            _slab_bar(slabs, total, label)
            if sys.stderr.isatty()
            else _slab_lines(slabs, total, label)
        )

    return track


def _slab_bar(slabs: Iterable[dict[str, np.ndarray]], total: int, label: str) -> Iterator:
    with _bar() as bar:
        task = bar.add_task(label, total=total, words="")
        for slab in slabs:
            bar.advance(task, len(next(iter(slab.values()))))
            yield slab


def _slab_lines(slabs: Iterable[dict[str, np.ndarray]], total: int, label: str) -> Iterator:
    """A line now and then; the time left is that of the examples measured since the first slab."""
    done = first_done = 0
    first = last = time.monotonic()
    for slab in slabs:
        done += len(next(iter(slab.values())))
        now = time.monotonic()
        if first_done == 0:  # compilation, or what was done before, says nothing of the speed
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

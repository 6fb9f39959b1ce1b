"""Progress on standard error: bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

from iwae.training.loop import Report

LINE_SECONDS = 10.0
"""Seconds between plain lines without a terminal."""


def make_bar(left: ProgressColumn) -> Progress:
    """A progress bar; `left` is the column for the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        left,
        TextColumn("{task.fields[words]}"),
        console=Console(stderr=True),
        transient=True,
    )


def show_training(reports: Iterable[Report], *, quiet: bool = False, verbose: bool = False) -> None:
    """Consume reports and show epoch, steps per second, training bound and time left.

    Args:
        quiet: print nothing.
        verbose: print a line for every epoch.
    """
    if quiet:
        for _ in reports:
            pass
    elif sys.stderr.isatty() and not verbose:
        _training_bar(reports)
    else:
        _training_lines(reports, every=0.0 if verbose else LINE_SECONDS)


def _training_bar(reports: Iterable[Report]) -> None:
    with make_bar(TextColumn("{task.fields[left]}")) as bar:
        task, speed = bar.add_task("training", total=1.0, words="", left=""), Speed()
        for report in reports:
            speed.add(report)
            left = _left(speed.left(report))
            bar.update(task, completed=report.share, words=_status_line(report), left=left)


def _training_lines(reports: Iterable[Report], every: float) -> None:
    last, speed = time.monotonic(), Speed()
    report = printed = None
    for report in reports:
        speed.add(report)
        now = time.monotonic()
        if report.epoch_done and now - last >= every:
            words = ", ".join(filter(None, (_status_line(report), _left(speed.left(report)))))
            print(words, file=sys.stderr, flush=True)
            last, printed = now, report
    if report is not None and report is not printed:
        print(_status_line(report), file=sys.stderr, flush=True)


class Speed:
    """Speed of a stage, without the work that is mostly compilation.

    This is the first dispatch, and the end of the first epoch with validation and logging.
    """

    def __init__(self) -> None:
        self.stage, self.start, self.seconds, self.last = -1, 0.0, 0.0, 0.0
        self.warm = False

    def add(self, report: Report) -> None:
        """Count a dispatch, including validation and logging since the previous one."""
        before, self.last = self.last, time.monotonic()
        self.warm &= report.stage == self.stage
        if report.stage != self.stage or (report.epoch_done and not self.warm):
            self.stage, self.start, self.seconds = report.stage, report.share, 0.0
            self.warm = report.epoch_done
        else:
            self.seconds += self.last - before

    def left(self, report: Report) -> float | None:
        """Seconds to the end of the run; None while it cannot be estimated."""
        done = report.share - self.start
        if self.seconds < 2 or done <= 0:
            return None
        return self.seconds / done * (1 - report.share)


def _left(seconds: float | None) -> str:
    """The time left, or nothing while it is unknown."""
    return "" if seconds is None else f"{format_progress_time(seconds)} left"


def format_progress_time(seconds: float) -> str:
    """A time in a suitable unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _status_line(report: Report) -> str:
    bound = " ".join(f"{value:.2f}" for value in np.atleast_1d(report.bound))
    words = f"epoch {report.epoch}, {report.steps / report.seconds:.0f} steps/s, bound {bound}"
    if report.validation is not None:
        words += ", validation " + " ".join(f"{value:.2f}" for value in report.validation)
    return words

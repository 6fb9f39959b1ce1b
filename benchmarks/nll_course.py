"""The clock of `time_to_nll.py`, and the points that a training run writes.

The arrays of a model are those of its dense layers in the order of the data: two hidden layers of
the encoder, means, log standard deviations, two hidden layers of the decoder, logits.
"""

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from timing import Stopwatch, cores

FIRST, GROWTH = 5.0, 1.25  # seconds of the first point, and ratio of each to the one before
POINTS = "points.jsonl"


class Course:
    """Writes weights at a geometric series of times; the clock stands still while writing."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder, self.budget, self.start = args.folder, args.seconds, args.start
        self.due, self.number, self.watch = FIRST, 0, Stopwatch()

    def elapsed(self) -> float:
        """Seconds since the process was started, less those spent on writing."""
        return time.time() - self.start

    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.elapsed() >= self.budget

    def is_due(self) -> bool:
        """Whether a point is to be written now."""
        return self.elapsed() >= self.due

    def save(self, epochs: int, layers: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Write a point after so many whole epochs; `layers` are weights [in, out] and biases."""
        seconds, others = self.elapsed(), self.watch.lap(1).others
        name = f"{self.number:03}.npz"
        np.savez(self.folder / name, *(np.asarray(array) for layer in layers for array in layer))
        point = {"seconds": seconds, "epochs": epochs, "others": others, "weights": name}
        with (self.folder / POINTS).open("a") as file:
            file.write(json.dumps(point) + "\n")
        self.number += 1
        while self.due <= seconds:
            self.due *= GROWTH
        self.start += self.elapsed() - seconds
        self.watch = Stopwatch()


def options(description: str) -> argparse.ArgumentParser:
    """The options common to all contestants."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, required=True, help="where points are written")
    parser.add_argument("--start", type=float, default=time.time(), help="of the clock (time.time)")
    parser.add_argument("--seconds", type=float, default=600.0, help="the budget")
    parser.add_argument("--threads", type=int, default=cores())
    return parser

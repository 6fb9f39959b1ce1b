"""Seeds of the runs of a sweep or a cell."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from iwae.errors import UserError


def seed_ranges(numbers: Sequence[int]) -> list[range]:
    """Increasing numbers as ranges of consecutive ones."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def refuse_shared_seeds(runs: Mapping[Path, range]) -> None:
    """Raise UserError if two runs of an experiment have a seed in common."""
    for (first, seeds), (second, others) in itertools.combinations(runs.items(), 2):
        if set(seeds) & set(others):
            raise UserError(f"{first} and {second} hold the same seeds: remove one of them")

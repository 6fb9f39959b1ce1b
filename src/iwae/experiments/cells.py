"""Cells of published tables: what to run for them, and what came of it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from iwae.config.experiment import TrainConfig
from iwae.config.presets import Preset, preset
from iwae.data import DATASETS
from iwae.errors import UserError
from iwae.experiments.sweep import contiguous, refuse_shared_seeds
from iwae.experiments.tasks import Measure, Task

SEEDS = re.compile(r"seeds?-(\d+)(?:-(\d+))?")
"""Name of the folder of a cell's seeds: seed-0, or seeds-1-4."""


class Wanted(NamedTuple):
    """Options for running cells.

    Attributes:
        seeds: 0 to `seeds - 1` of each.
        epochs_scale: 1 for the published schedule, less for a shortened one.
        temperatures: of annealed importance sampling beside L_5000; None to go without.
        examples: test examples to measure by annealing; None for all.
    """

    seeds: int = 1
    epochs_scale: float = 1.0
    temperatures: int | None = None
    examples: int | None = 1000

    def check(self) -> None:
        """Raise UserError unless this can be run."""
        if self.seeds < 1:
            raise UserError(f"seeds is {self.seeds}; give at least 1")
        if not 0 < self.epochs_scale <= 1:
            raise UserError(f"epochs_scale is {self.epochs_scale:g}; it must be in (0, 1]")
        if self.temperatures is not None:
            Measure(temperatures=self.temperatures, examples=self.examples).check()

    def measures(self, entry: Preset) -> tuple[Measure, ...]:
        """The measurements of a cell's models."""
        k = entry.config().k
        ks = {1, k, 64, 5000} if entry.nll_64 else {1, k, 5000}
        sampled = Measure(tuple(sorted(ks)))
        if self.temperatures is None:
            return (sampled,)
        data = DATASETS[entry.config().dataset]
        examples = None if self.examples is None else min(self.examples, data.sizes[2])
        return sampled, Measure(temperatures=self.temperatures, examples=examples)

    def epochs(self, entry: Preset) -> int:
        """Epochs of a cell."""
        return max(1, round(entry.config().epochs * self.epochs_scale))


def cell_folder(name: str, wanted: Wanted) -> Path:
    """Where the runs of a cell are, below the folder of all runs."""
    # Shortened runs have a folder of their own, so that none can be taken for a reproduction.
    scale = "" if wanted.epochs_scale == 1 else f"shortened-{wanted.epochs_scale:g}"
    return Path(scale) / name


def cell_runs(out: Path, folder: Path) -> dict[Path, range]:
    """The runs that there are of a cell, and the seeds of each.

    Folders are taken for what they are called; whoever reads a run sees whether it is that.

    Raises:
        UserError: if a folder's name is not of that kind, or two of them share seeds.
    """
    found: dict[Path, range] = {}
    for path in sorted((Path(out) / folder).glob("seed*")):
        name = SEEDS.fullmatch(path.name)
        if name is None or not (path / "config.toml").is_file():
            continue
        seeds = range(int(name[1]), int(name[2] or name[1]) + 1)
        if not seeds or path.name != _seeds_name(seeds):
            raise UserError(f"{path} is not named after its seeds, such as seed-0 or seeds-1-4")
        found[path] = seeds
    refuse_shared_seeds(found)
    return found


def plan(out: Path, cells: Iterable[str], wanted: Wanted) -> list[Task]:
    """The tasks for some cells, and for those that they start from, in order.

    Seeds that have a run keep it; the others are trained together, as replicates of one program.

    Raises:
        UserError: for seeds or epochs that are not possible.
    """
    wanted.check()
    tasks: dict[str, Task] = {}
    for name in cells:
        for one in filter(None, (preset(name).needs, name)):
            for task in _tasks(out, one, wanted):
                tasks.setdefault(task.name, task)
    return list(tasks.values())


def _tasks(out: Path, name: str, wanted: Wanted) -> list[Task]:
    """The tasks of one cell."""
    entry, folder = preset(name), cell_folder(name, wanted)
    if entry.needs is not None:  # a run for each run that it starts from, of the same seeds
        return [_warm_start(out, name, one, wanted) for one in _tasks(out, entry.needs, wanted)]
    there = cell_runs(out, folder)
    missing = sorted(set(range(wanted.seeds)).difference(*there.values()))
    chosen = [seeds for seeds in there.values() if seeds.start < wanted.seeds]
    chosen += contiguous(missing)
    return [
        Task(
            str(folder / _seeds_name(seeds)),
            _config(entry, seeds, wanted),
            wanted.measures(entry),
        )
        for seeds in sorted(chosen, key=lambda seeds: seeds.start)
    ]


def _warm_start(out: Path, name: str, needed: Task, wanted: Wanted) -> Task:
    """A run that starts from the models of another one."""
    entry, seeds = preset(name), Path(needed.name).name
    for path, its in cell_runs(out, cell_folder(name, wanted)).items():
        if path.name != seeds and set(its) & set(needed.config.seeds()):
            raise UserError(
                f"{path} is of seeds that {needed.name} now holds with others: remove one of them"
            )
    config = _config(entry, needed.config.seeds(), wanted)
    return Task(
        str(cell_folder(name, wanted) / seeds),
        config.model_copy(update={"init_from": Path(out).resolve() / needed.name}),
        wanted.measures(entry),
        needed.name,
    )


def _config(entry: Preset, seeds: range, wanted: Wanted) -> TrainConfig:
    return entry.config(epochs=wanted.epochs(entry), seed=seeds.start, replicates=len(seeds))


def _seeds_name(seeds: range) -> str:
    return f"seed-{seeds[0]}" if len(seeds) == 1 else f"seeds-{seeds[0]}-{seeds[-1]}"

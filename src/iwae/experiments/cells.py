"""Cells of published tables: their runs, and the tasks that complete them."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from iwae.config.experiment import TrainConfig
from iwae.config.presets import Preset, preset
from iwae.config.same_experiment import differing_settings, same_cell_experiment
from iwae.config.toml import config_toml_values, read_config
from iwae.data import DATASETS
from iwae.errors import UserError
from iwae.experiments.seeds import refuse_shared_seeds, seed_ranges
from iwae.experiments.tasks import Measure, Task

log = logging.getLogger(__name__)

SEEDS = re.compile(r"seeds?-(\d+)(?:-(\d+))?")
"""Name of the folder of some seeds of a cell: seed-0, or seeds-1-4."""


class Wanted(NamedTuple):
    """Options for running cells.

    Attributes:
        seeds: number of seeds of each cell, from 0.
        epochs_scale: 1 for the published schedule, less for a shortened one.
        temperatures: number for annealed importance sampling beside L_5000; None for no annealing.
        examples: number of test examples to anneal; None for all.
    """

    seeds: int = 1
    epochs_scale: float = 1.0
    temperatures: int | None = None
    examples: int | None = 1000

    def check(self) -> None:
        """Raise UserError for options out of range."""
        if self.seeds < 1:
            raise UserError(f"seeds is {self.seeds}; give at least 1")
        if not 0 < self.epochs_scale <= 1:
            raise UserError(f"epochs_scale is {self.epochs_scale:g}; it must be in (0, 1]")
        if self.temperatures is not None:
            Measure(temperatures=self.temperatures, examples=self.examples).check()

    def measures(self, entry: Preset) -> tuple[Measure, ...]:
        """The measurements of a cell's models."""
        config = entry.config()
        ks = {1, config.k, 5000} | ({64} if entry.nll_64 else set())
        sampled = Measure(tuple(sorted(ks)))
        if self.temperatures is None:
            return (sampled,)
        total = DATASETS[config.dataset].sizes[2]
        examples = None if self.examples is None else min(self.examples, total)
        return sampled, Measure(temperatures=self.temperatures, examples=examples)

    def epochs(self, entry: Preset) -> int:
        """Epochs of a cell."""
        return max(1, round(entry.config().epochs * self.epochs_scale))


def cell_folder(name: str, wanted: Wanted) -> Path:
    """The folder of a cell's runs, relative to that of all runs."""
    # Shortened runs have their own folder, so that none can be mistaken for a reproduction.
    scale = "" if wanted.epochs_scale == 1 else f"shortened-{wanted.epochs_scale:g}"
    return Path(scale) / name


def cell_runs(out: Path, folder: Path) -> dict[Path, range]:
    """The runs of a cell that exist, and the seeds of each.

    Names of folders are trusted; their contents are checked when they are read.

    Raises:
        UserError: if a folder is not named after its seeds, or two of them share seeds.
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


def plan_cells(out: Path, cells: Iterable[str], wanted: Wanted) -> list[Task]:
    """The tasks of some cells, each after those of the cell that it starts from.

    Seeds that have a run keep it; the others are trained together, as replicates of one program.

    Raises:
        UserError: for seeds or epochs that are not possible, and if existing runs share seeds or
            have seeds that were to be trained together.
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
    if entry.needs is not None:  # a run for each run that it starts from, with the same seeds
        return [_warm_start(out, name, task, wanted) for task in _tasks(out, entry.needs, wanted)]
    present = cell_runs(out, folder).values()
    missing = sorted(set(range(wanted.seeds)).difference(*present))
    chosen = [seeds for seeds in present if seeds.start < wanted.seeds] + seed_ranges(missing)
    measures = wanted.measures(entry)
    tasks = []
    for seeds in sorted(chosen, key=lambda seeds: seeds.start):
        own = folder / _seeds_name(seeds)
        config = _config(entry, seeds, wanted)
        if entry.is_fast and wanted.epochs_scale == 1:
            config = _begun_recipe(Path(out) / own, entry, config)
        tasks.append(Task(str(own), config, measures))
    return tasks


def _begun_recipe(run: Path, entry: Preset, config: TrainConfig) -> TrainConfig:
    """The configuration of a fast cell's run: its own if it was started with an earlier recipe."""
    path = run / "config.toml"
    if not path.is_file():
        return config
    try:
        found = read_config(path)
    except UserError:  # reported as the state of the task, so that other tasks go on
        return config
    same_seeds = found.seeds() == config.seeds()
    if not same_seeds or not same_cell_experiment(entry, config_toml_values(found)):
        return config
    if differing := differing_settings(config, found):
        log.warning(
            "%s was started with an earlier recipe (its %s differ) and keeps it; to use the "
            "current one, remove the folder",
            run,
            ", ".join(differing),
        )
        return found
    return config


def _warm_start(out: Path, name: str, needed: Task, wanted: Wanted) -> Task:
    """The task of a run that starts from the models of another task."""
    entry, folder, seeds = preset(name), cell_folder(name, wanted), needed.config.seeds()
    own_name = Path(needed.name).name
    for path, own_seeds in cell_runs(out, folder).items():
        if path.name != own_name and set(own_seeds) & set(seeds):
            raise UserError(
                f"{path} has seeds that {needed.name} now holds with others: remove one of them"
            )
    start = {"init_from": Path(out).resolve() / needed.name}
    config = _config(entry, seeds, wanted).model_copy(update=start)
    return Task(str(folder / own_name), config, wanted.measures(entry), needed.name)


def _config(entry: Preset, seeds: range, wanted: Wanted) -> TrainConfig:
    return entry.config(epochs=wanted.epochs(entry), seed=seeds.start, replicates=len(seeds))


def _seeds_name(seeds: range) -> str:
    return f"seed-{seeds[0]}" if len(seeds) == 1 else f"seeds-{seeds[0]}-{seeds[-1]}"

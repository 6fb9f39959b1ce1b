"""An experiment file with lists is a sweep: one run for each combination of their values."""

import hashlib
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iwae.config.comparison import differing
from iwae.config.experiment import TrainConfig, make_config, read_config
from iwae.config.toml import read_values
from iwae.errors import UserError, shorten
from iwae.experiments.tasks import Measure, Task
from iwae.runs.setup import data_place

log = logging.getLogger(__name__)

LISTS = ("latent_sizes", "latents", "shape", "columns", "drop", "id", "resize", "channels")
DEPTHS = {"hidden_sizes": 2, **dict.fromkeys(LISTS, 1)}
"""Settings that are lists themselves, and how deep: a sweep over one is a list of these."""


def read_sweep(path: Path, out: Path, measures: tuple[Measure, ...] = (Measure(),)) -> list[Task]:
    """The runs of an experiment file (TOML), in the order of its lists.

    Seeds that follow on one another are replicates of one run. Lists may grow, or become lists: a
    run of the same experiment that is in `out` is kept under its name, with the seeds that it has.
    A new one is named after what it does not share with the others, `k=5,objective=iwae`.

    Args:
        out: the folder of all runs.

    Raises:
        UserError: if the file cannot be read, one of its combinations is not valid, or two runs in
            `out` are of the same experiment and share seeds.
    """
    values = read_values(Path(path))
    swept = {name: value for name, value in values.items() if _depth(value) > DEPTHS.get(name, 0)}
    for name, value in swept.items():
        if not value:
            raise UserError(f"{path}: {shorten(name)} is an empty list; give it values")
    if "replicates" in swept or ("seed" in swept and "replicates" in values):
        raise UserError(f"{path}: a list of seeds is trained as replicates; leave replicates out")
    seeds = _whole_numbers(swept["seed"]) if "seed" in swept else None
    there, tasks = _runs_in(out), []
    choices = swept | {"seed": seeds[:1]} if seeds else swept
    for chosen in itertools.product(*choices.values()):
        settings = dict(zip(choices, chosen, strict=True))
        words = {name: f"{name}={_word(value)}" for name, value in settings.items()}
        which = shorten(",".join(words.values()) or "alone")
        config = make_config(values | settings, f"{path}, {which}")
        words = words or {"": Path(path).stem}
        # What is swept over is compared as it is written: at k = 1 two objectives are the same.
        names = swept.keys() - {"seed", "dataset", "init_from"}  # files and runs may be moved
        alike = {
            place: one
            for place, one in there.items()
            if all(getattr(config, name) == getattr(one, name) for name in names)
        }
        its = _runs(config, seeds or list(config.seeds()), words, alike)
        tasks += [Task(name, one, measures) for name, one in its]
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"{path}: two values of a list are the same, or too like to name a folder")
    return tasks


def _runs(
    config: TrainConfig,
    seeds: Sequence[int],
    words: Mapping[str, str],
    there: Mapping[Path, TrainConfig],
) -> list[tuple[str, TrainConfig]]:
    """Names and configurations of the runs of one experiment: those there are, and new ones."""
    kept: dict[Path, range] = {}
    for path, run in there.items():
        if _same_experiment(config, run) and set(run.seeds()) & set(seeds):
            kept[path] = run.seeds()
    refuse_shared_seeds(kept)
    found = [(its, path.name) for path, its in kept.items()]
    for its in contiguous(sorted(set(seeds).difference(*kept.values()))):
        seeds_word = f"seed={its[0]}" + f"-{its[-1]}" * (len(its) > 1)
        named = {**words, "seed": seeds_word} if kept or "seed" in words else words
        found.append((its, _short(",".join(filter(None, named.values())))))
    return [
        (name, config.model_copy(update={"seed": its[0], "replicates": len(its)}))
        for its, name in sorted(found, key=lambda one: one[0].start)
    ]


def _runs_in(out: Path) -> dict[Path, TrainConfig]:
    """The runs in a folder; one that cannot be read is none of ours, and is said so."""
    found = {}
    for path in sorted(Path(out).glob("*/config.toml")):
        try:
            found[path.parent] = read_config(path)
        except UserError as error:
            log.warning("%s; its run is left as it is", error)
    return found


def _same_experiment(wanted: TrainConfig, found: TrainConfig) -> bool:
    """Whether a run is of the experiment wanted, but for its seeds."""
    same_data = data_place(wanted.dataset) == data_place(found.dataset)
    starts = [one.init_from and one.init_from.resolve() for one in (wanted, found)]
    others = set(differing(wanted, found)) - {"seed", "replicates"}
    return same_data and starts[0] == starts[1] and not others


def _depth(value: Any) -> int:
    """The number of lists around the innermost value; the stages of one run are one value."""
    if not isinstance(value, list) or (value and all(isinstance(one, dict) for one in value)):
        return 0
    return 1 + max(map(_depth, value), default=0)


def _whole_numbers(seeds: Sequence[Any]) -> list[int]:
    """Seeds in their order, or UserError for what are none, or the same twice."""
    if any(not isinstance(seed, int) or isinstance(seed, bool) for seed in seeds):
        raise UserError(f"seed: {shorten(seeds)} are not whole numbers")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seed: two of {shorten(seeds)} are the same")
    return sorted(seeds)


def contiguous(numbers: Sequence[int]) -> list[range]:
    """The runs of numbers that follow on one another."""
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def refuse_shared_seeds(runs: Mapping[Path, range]) -> None:
    """Raise UserError if two runs of an experiment have a seed in common."""
    for (one, its), (other, others) in itertools.combinations(runs.items(), 2):
        if set(its) & set(others):
            raise UserError(f"{one} and {other} hold the same seeds: remove one of them")


def _word(value: Any) -> str:
    """A value as a part of a folder's name."""
    if isinstance(value, list):
        return "x".join(map(_word, value))
    if isinstance(value, dict):  # a stage
        return "-".join(f"{name}{_word(one)}" for name, one in value.items())
    if isinstance(value, str) and ("/" in value or Path(value).suffix in _FILES):
        value = Path(value).with_suffix("")
    return re.sub(r"[^\w.+-]+", "-", str(value))


_FILES = {".csv", ".tsv", ".parquet", ".npy", ".npz"}


LONGEST = 120
"""Characters of a folder's name; what is longer ends in a digest of itself."""


def _short(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

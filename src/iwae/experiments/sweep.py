"""Sweeps: a run for each combination of the values in an experiment file's lists."""

import hashlib
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iwae.config.experiment import TrainConfig, make_config
from iwae.config.same_experiment import differing_settings
from iwae.config.toml import read_config, read_toml
from iwae.data.own import resolved_own_data
from iwae.errors import UserError
from iwae.experiments.seeds import refuse_shared_seeds, seed_ranges
from iwae.experiments.tasks import Measure, Task
from iwae.wording import shorten_value

log = logging.getLogger(__name__)

LISTS = ("latent_sizes", "latents", "shape", "columns", "drop", "id", "resize", "channels")
DEPTHS = {"hidden_sizes": 2, **dict.fromkeys(LISTS, 1)}
"""Settings that are lists themselves -> their depth; a sweep over one is a list of these."""


def read_sweep(path: Path, out: Path, measures: tuple[Measure, ...] = (Measure(),)) -> list[Task]:
    """The runs of an experiment file (TOML), in the order of its lists.

    Consecutive seeds are replicates of one run. A list may grow, and a value become a list: a run
    of the same experiment in `out` keeps its name and its seeds. A new run is named after its
    values of the lists, such as `k=5,objective=iwae`.

    Args:
        out: folder of all runs.

    Raises:
        UserError: if the file cannot be read, one of its combinations is invalid, or two runs in
            `out` are of the same experiment and share seeds.
    """
    values = read_toml(Path(path))
    swept = {name: value for name, value in values.items() if _depth(value) > DEPTHS.get(name, 0)}
    for name, value in swept.items():
        if not value:
            raise UserError(f"{path}: {shorten_value(name)} is an empty list; give it values")
    if "replicates" in swept or ("seed" in swept and "replicates" in values):
        raise UserError(f"{path}: a list of seeds is trained as replicates; leave replicates out")
    seeds = _whole_numbers(swept["seed"]) if "seed" in swept else None
    present, tasks = _runs_in(out), []
    choices = swept | {"seed": seeds[:1]} if seeds else swept
    for chosen in itertools.product(*choices.values()):
        settings = dict(zip(choices, chosen, strict=True))
        labels = {name: f"{name}={_label(value)}" for name, value in settings.items()}
        where = shorten_value(",".join(labels.values()) or "alone")
        config = make_config(values | settings, f"{path}, {where}")
        labels = labels or {"": Path(path).stem}
        # Swept settings are compared as written: with k = 1, two objectives may be the same.
        names = swept.keys() - {"seed", "dataset", "init_from"}  # files and runs may be moved
        alike = {
            run: found
            for run, found in present.items()
            if all(getattr(config, name) == getattr(found, name) for name in names)
        }
        runs = _experiment_runs(config, seeds or list(config.seeds()), labels, alike)
        tasks += [Task(name, run_config, measures) for name, run_config in runs]
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"{path}: two values of a list are the same, or give the same folder name")
    return tasks


def _experiment_runs(
    config: TrainConfig,
    seeds: Sequence[int],
    labels: Mapping[str, str],
    present: Mapping[Path, TrainConfig],
) -> list[tuple[str, TrainConfig]]:
    """Names and configurations of the runs of one experiment, those present and new ones."""
    kept = {
        path: run.seeds()
        for path, run in present.items()
        if _same_experiment(config, run) and set(run.seeds()) & set(seeds)
    }
    refuse_shared_seeds(kept)
    found = [(its, path.name) for path, its in kept.items()]
    for its in seed_ranges(sorted(set(seeds).difference(*kept.values()))):
        seed_label = f"seed={its[0]}" + f"-{its[-1]}" * (len(its) > 1)
        named = {**labels, "seed": seed_label} if kept or "seed" in labels else labels
        found.append((its, _cut_name(",".join(filter(None, named.values())))))
    return [
        (name, config.model_copy(update={"seed": its[0], "replicates": len(its)}))
        for its, name in sorted(found, key=lambda run: run[0].start)
    ]


def _runs_in(out: Path) -> dict[Path, TrainConfig]:
    """The runs in a folder; one that cannot be read is skipped with a warning."""
    found = {}
    for path in sorted(Path(out).glob("*/config.toml")):
        try:
            found[path.parent] = read_config(path)
        except UserError as error:
            log.warning("%s; its run is left as it is", error)
    return found


def _same_experiment(wanted: TrainConfig, found: TrainConfig) -> bool:
    """Whether a run is of the experiment wanted, whatever its seeds."""
    same_data = resolved_own_data(wanted.dataset) == resolved_own_data(found.dataset)
    ours, theirs = (one.init_from and one.init_from.resolve() for one in (wanted, found))
    others = set(differing_settings(wanted, found)) - {"seed", "replicates"}
    return same_data and ours == theirs and not others


def _depth(value: Any) -> int:
    """The number of lists around the innermost value; the stages of one run are one value."""
    if not isinstance(value, list) or (value and all(isinstance(one, dict) for one in value)):
        return 0
    return 1 + max(map(_depth, value), default=0)


def _whole_numbers(seeds: Sequence[Any]) -> list[int]:
    """The seeds in increasing order; UserError for one that is repeated or not an integer."""
    if any(not isinstance(seed, int) or isinstance(seed, bool) for seed in seeds):
        raise UserError(f"seed: {shorten_value(seeds)} are not whole numbers")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seed: two of {shorten_value(seeds)} are the same")
    return sorted(seeds)


def _label(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, list):
        return "x".join(map(_label, value))
    if isinstance(value, dict):  # a stage
        return "-".join(f"{name}{_label(one)}" for name, one in value.items())
    if isinstance(value, str) and ("/" in value or Path(value).suffix in _FILES):
        value = Path(value).with_suffix("")
    return re.sub(r"[^\w.+-]+", "-", str(value))


_FILES = {".csv", ".tsv", ".parquet", ".npy", ".npz"}


LONGEST = 120
"""Characters of a folder's name; a longer name is cut and ends in a digest."""


def _cut_name(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

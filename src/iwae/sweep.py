"""An experiment file with lists is a sweep: one run for each combination of their values."""

import hashlib
import itertools
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from iwae._types import UserError
from iwae.config import make_config
from iwae.queue import Measure, Task

DEPTHS = {"latent_sizes": 1, "hidden_sizes": 2, "shape": 1, "columns": 1, "channels": 1}
"""Settings that are lists themselves, and how deep: a sweep over one is a list of these."""


def read_sweep(path: Path, measures: tuple[Measure, ...] = (Measure(),)) -> list[Task]:
    """The runs of an experiment file (TOML), in the order of its lists.

    A run is named after what it does not share with the others, `k=5,objective=iwae`. Seeds that
    follow on one another are replicates of one run.

    Raises:
        UserError: if the file cannot be read, or one of its combinations is not valid.
    """
    values = _read(path)
    swept = {name: value for name, value in values.items() if _depth(value) > DEPTHS.get(name, 0)}
    for name, value in swept.items():
        if not value:
            raise UserError(f"{path}: {name} is an empty list; give it values")
    if "seed" in swept and "replicates" in values:
        raise UserError(f"{path}: a list of seeds is trained as replicates; leave replicates out")
    options = [list(_options(name, value)) for name, value in swept.items()]
    tasks = []
    for chosen in itertools.product(*options):
        settings = dict(itertools.chain(values.items(), *(one.items() for _, one in chosen)))
        name = _short(",".join(word for word, _ in chosen) or Path(path).stem)
        tasks.append(Task(name, make_config(settings, f"{path}, {name}"), measures))
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"{path}: two values of a list are the same, or too like to name a folder")
    return tasks


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"no experiment file {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"experiment file {path} cannot be read: {error}") from error


def _depth(value: Any) -> int:
    """How many lists are around the innermost value."""
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _options(name: str, values: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a run is called for each value of a setting, and what it sets."""
    if name != "seed":
        for value in values:
            yield f"{name}={_word(value)}", {name: value}
    elif any(not isinstance(value, int) or isinstance(value, bool) for value in values):
        raise UserError(f"seed: {values} are not whole numbers")
    else:
        for first, count in contiguous(sorted(values)):
            word = f"seed={first}" if count == 1 else f"seed={first}-{first + count - 1}"
            yield word, {"seed": first, "replicates": count}


def contiguous(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first number and the length of each run of numbers that follow on one another."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and sum(found[-1]) == number:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((number, 1))
    return found


def _word(value: Any) -> str:
    """A value as a part of a folder's name."""
    if isinstance(value, list):
        return "x".join(map(_word, value))
    return re.sub(r"[^\w.+-]+", "-", str(Path(value).with_suffix("") if _is_path(value) else value))


LONGEST = 120
"""Characters of a folder's name; what is longer ends in a digest of itself."""


def _short(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (
        "/" in value or Path(value).suffix in {".npy", ".npz", ".csv"}
    )

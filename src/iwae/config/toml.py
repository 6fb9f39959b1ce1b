"""Experiment files (TOML): reading and writing them."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from iwae.config.experiment import TrainConfig, make_config
from iwae.errors import UserError
from iwae.files import atomic_write
from iwae.wording import shorten_value

LARGEST_FILE, MOST_DOTS = 2**17, 200
"""Maximum bytes of an experiment file, and dots in a line: a key costs the square of its parts."""


def read_config(path: Path) -> TrainConfig:
    """Read an experiment file (TOML).

    Raises:
        UserError: if it cannot be read or is not a valid configuration.
    """
    return make_config(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The values of an experiment file, unchecked; UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        _refuse_costly(content)
        return tomllib.loads(content.decode())
    except FileNotFoundError as error:
        raise UserError(f"no experiment file {path}") from error
    except (ValueError, RecursionError, OSError) as error:  # TOMLDecodeError is a ValueError
        reason = shorten_value(getattr(error, "strerror", None) or error)
        raise UserError(f"experiment file {path} cannot be read: {reason}") from error


def _refuse_costly(content: bytes) -> None:
    """Raise ValueError for a file that takes more time and memory to parse than a configuration."""
    if len(content) > LARGEST_FILE:
        raise ValueError(f"it is larger than {LARGEST_FILE:,} bytes")
    for number, line in enumerate(content.splitlines(), start=1):
        if line.count(b".") > MOST_DOTS:
            raise ValueError(f"line {number} has more than {MOST_DOTS} dots: break it")


def write_config(config: TrainConfig, path: Path) -> None:
    """Write an experiment file that trains the same model again."""
    with atomic_write(path) as temporary:
        temporary.write_text(tomli_w.dumps(config_toml_values(config)))


def config_toml_values(config: TrainConfig) -> dict[str, Any]:
    """The configuration as TOML values; None is omitted."""
    return config.model_dump(mode="json", exclude_none=True)

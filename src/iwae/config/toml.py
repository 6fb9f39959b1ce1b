"""Values of experiment files (TOML), from anywhere: what would be costly to read is refused."""

import tomllib
from pathlib import Path
from typing import Any

from iwae.errors import UserError, shorten


def read_values(path: Path) -> dict[str, Any]:
    """The values of an experiment file, unchecked; UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        _refuse_costly(content)
        return tomllib.loads(content.decode())
    except FileNotFoundError as error:
        raise UserError(f"no experiment file {path}") from error
    except (ValueError, RecursionError, OSError) as error:  # TOMLDecodeError is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"experiment file {path} cannot be read: {shorten(reason)}") from error


LARGEST_FILE, MOST_DOTS = 2**17, 200
"""Maximum bytes of an experiment file, and dots in a line: a key costs the square of its parts."""


def _refuse_costly(content: bytes) -> None:
    """Raise ValueError for a file that takes more time and memory to parse than a configuration."""
    if len(content) > LARGEST_FILE:
        raise ValueError(f"it is larger than {LARGEST_FILE:,} bytes")
    for number, line in enumerate(content.splitlines(), start=1):
        if line.count(b".") > MOST_DOTS:
            raise ValueError(f"line {number} has more than {MOST_DOTS} dots: break it")

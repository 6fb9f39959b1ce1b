"""Experiment files (TOML): their values, and one-line messages about invalid ones."""

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iwae.errors import UserError, shorten

LARGEST_FILE, MOST_DOTS = 2**17, 200
"""Maximum bytes of an experiment file, and dots in a line: a key costs the square of its parts."""


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


def _refuse_costly(content: bytes) -> None:
    """Raise ValueError for a file that takes more time and memory to parse than a configuration."""
    if len(content) > LARGEST_FILE:
        raise ValueError(f"it is larger than {LARGEST_FILE:,} bytes")
    for number, line in enumerate(content.splitlines(), start=1):
        if line.count(b".") > MOST_DOTS:
            raise ValueError(f"line {number} has more than {MOST_DOTS} dots: break it")


def explain(error: ValidationError) -> str:
    """The first of pydantic's errors, in one line."""
    first = error.errors()[0]
    reason, place = shorten(first["msg"].removeprefix("Value error, ")), first["loc"]
    if not place:
        return reason
    if place[0] == "stages" and len(place) > 1:
        setting = "".join(f"{name}: " for name in place[2:3])
        return f"stage {int(place[1]) + 1}: {setting}{reason}"
    return f"{place[0]}: {reason} (given: {shorten(repr(first['input']))})"


def unknown_key(key: str, known: Collection[str]) -> str:
    """A message that names the nearest known key, or all of them."""
    near = difflib.get_close_matches(key[:100].lower(), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {shorten(repr(key))}; {hint}"

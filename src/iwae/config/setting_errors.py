"""Messages about invalid settings."""

import difflib
from collections.abc import Collection

from pydantic import ValidationError

from iwae.wording import shorten_value


def first_setting_error(error: ValidationError) -> str:
    """The first of pydantic's errors, in one line."""
    first = error.errors()[0]
    reason, place = shorten_value(first["msg"].removeprefix("Value error, ")), first["loc"]
    if not place:
        return reason
    if place[0] == "stages" and len(place) > 1:
        setting = "".join(f"{name}: " for name in place[2:3])
        return f"stage {int(place[1]) + 1}: {setting}{reason}"
    return f"{place[0]}: {reason} (given: {shorten_value(repr(first['input']))})"


def unknown_setting_error(key: str, known: Collection[str]) -> str:
    """A message that names the nearest known key, or all of them."""
    near = difflib.get_close_matches(key[:100].lower(), known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {shorten_value(repr(key))}; {hint}"

"""The option `columns`: kinds of columns by name, such as `age=gaussian`."""

import re
from collections.abc import Sequence

from iwae.wording import unquoted_name

_COLUMN = re.compile(r'\s*("(?:[^"]|"")*"|[^=]+?)\s*=\s*([a-z-]+(?::[\w.+-]+)?)\s*(?:,|$)')
"""NAME=KIND up to the next comma; the name may be in quotes."""


def parse_column_option(words: Sequence[str]) -> dict[str, str]:
    """Parse words such as "age=gaussian, city=categorical" into a kind for each name.

    A name with an equals sign is in quotes. Without any equals sign the result is empty: the words
    are then kinds of all columns in order.

    Raises:
        ValueError: names the word that is not of this form, or a column that is given twice.
    """
    found: dict[str, str] = {}
    if not any("=" in word for word in words):
        return found
    for word in words:
        rest = word
        while rest:
            match = _COLUMN.match(rest)
            name = "" if match is None else unquoted_name(match[1])
            if match is None or name in found:
                reason = "is not NAME=KIND" if match is None else f"names {name!r} twice"
                raise ValueError(
                    f'columns: {rest!r} {reason}: give such as "age=gaussian, city=categorical"'
                )
            found[name] = match[2]
            rest = rest[match.end() :]
    return found

"""The exception raised for a user's mistake."""

from typing import Any


class UserError(ValueError):
    """A user's mistake: one line that says what is wrong and what to do about it.

    The command line prints the message and exits with status 2.
    """


def counted(n: int, noun: str, form: str = "") -> str:
    """So many of something, such as "1 row" or "20 rows", the number in a format."""
    return f"{n:{form}} {noun}{'s' * (n != 1)}"


def shorten(words: Any) -> str:
    """A text, or what is in its place, cut to what a message can hold."""
    text = " ".join(str(words).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."

"""The exception raised for a user's mistake."""

from typing import Any


class UserError(ValueError):
    """A user's mistake: one line that says what is wrong and what to do about it.

    The command line prints the message and exits with status 2.
    """


def shorten(words: Any) -> str:
    """A text, or what is in its place, cut to what a message can hold."""
    text = " ".join(str(words).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."

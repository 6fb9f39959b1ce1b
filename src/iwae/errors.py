"""The exception raised for a user's mistake."""

import re
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A user's mistake: one line that says what is wrong and what to do about it.

    The command line prints the message and exits with status 2.
    """


OUT_OF_MEMORY = "out of memory: choose a smaller k, batch size or model"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or JAX was refused memory."""
    if isinstance(error, SystemError):  # of NumPy's indexing or Python's compiler
        return re.search("without (setting an )?exception", str(error)) is not None
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return True  # no memory for its stack
    if isinstance(error, ImportError):  # no memory for a library
        return "failed to map segment" in str(error)
    # Recognised by name, since JAX may not have been imported.
    named = type(error).__name__ == "JaxRuntimeError" and "Out of memory" in str(error)
    in_jax = named or str(error).startswith("RESOURCE_EXHAUSTED")  # JAX also raises ValueError
    return in_jax or isinstance(error, MemoryError)


def counted(n: int, noun: str, form: str = "") -> str:
    """A number with its noun, such as "1 row" or "20 rows"; `form` formats the number."""
    return f"{n:{form}} {noun}{'s' * (n != 1)}"


def listed(words: Iterable[str], most: int) -> str:
    """The first words of a list, separated by commas."""
    words = [*words]
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or its type if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def shorten(words: Any) -> str:
    """A value as text on a single line, cut to a length that fits a message."""
    text = " ".join(str(words).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."

"""The exception raised for a user's mistake."""

import re
from typing import Any


class UserError(ValueError):
    """A user's mistake: one line that says what is wrong and what to do about it.

    The command line prints the message and exits with status 2.
    """


OUT_OF_MEMORY = "out of memory: choose a smaller k, batch size or model"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or JAX was refused memory."""
    if isinstance(error, SystemError):  # NumPy's indexing and Python's compiler say no more
        return re.search("without (setting an )?exception", str(error)) is not None
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return True  # its stack does not fit
    if isinstance(error, ImportError):  # of a library that does not fit
        return "failed to map segment" in str(error)
    # Recognised by name, since JAX may not have been imported.
    named = type(error).__name__ == "JaxRuntimeError" and "Out of memory" in str(error)
    in_jax = named or str(error).startswith("RESOURCE_EXHAUSTED")  # also a ValueError's
    return in_jax or isinstance(error, MemoryError)


def counted(n: int, noun: str, form: str = "") -> str:
    """So many of something, such as "1 row" or "20 rows", the number in a format."""
    return f"{n:{form}} {noun}{'s' * (n != 1)}"


def shorten(words: Any) -> str:
    """A text, or what is in its place, cut to what a message can hold."""
    text = " ".join(str(words).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


def reason_of(error: BaseException) -> str:
    """The first line of a library's message, or the name of an error without one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]

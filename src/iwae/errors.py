"""The exception raised for a user's mistake, checks that raise it, and errors of memory."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A user's mistake: one line that says what is wrong and what to do about it.

    The command line prints the message and exits with status 2.
    """


def require_positive(name: str, value: int) -> None:
    """Raise UserError if a size or count is less than 1."""
    if value < 1:
        raise UserError(f"{name} is {value}; it must be at least 1")


def require_known_name(name: str, table: Iterable[str], kind: str) -> str:
    """The name itself; UserError with the nearest name if the table lacks it."""
    if name not in table:
        near = get_close_matches(name.lower(), table, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no {kind} {name!r}; {hint}known: {', '.join(table)}")
    return name


OUT_OF_MEMORY = "out of memory: choose a smaller k, batch size or model"


def is_memory_error(error: BaseException) -> bool:
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

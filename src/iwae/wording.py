"""Wording of messages and options: counts, lists and values in a few words; names in quotes."""

from collections.abc import Iterable, Sequence
from typing import Any


def shorten_value(words: Any) -> str:
    """A value as text on a single line, cut to a length that fits a message."""
    text = " ".join(str(words).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


def count_in_words(n: int, noun: str, form: str = "") -> str:
    """A number with its noun, such as "1 row" or "20 rows"; `form` formats the number."""
    return f"{n:{form}} {noun}{'s' * (n != 1)}"


def listed_words(words: Iterable[str], most: int) -> str:
    """The first words of a list, separated by commas."""
    words = [*words]
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def quoted_words(names: Sequence[str]) -> str:
    """The first of several names, quoted."""
    return shorten_value(listed_words(map(repr, names), 10))


def first_error_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or its type if there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


def unquoted_name(word: str) -> str:
    """A word without its quotes; those inside are doubled, as in a .csv file."""
    is_quoted = len(word) > 1 and word[0] == word[-1] == '"'
    return word[1:-1].replace('""', '"') if is_quoted else word


def quoted_name(name: str) -> str:
    """The inverse of `unquoted_name`: a name, in quotes if it has an equals sign or a quote."""
    return '"' + name.replace('"', '""') + '"' if {"=", '"'} & {*name} else name

"""Parsing and exit statuses, shared by the commands."""

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import ValidationError

from iwae.cli.options import option_rules
from iwae.config.setting_errors import first_setting_error
from iwae.errors import UserError

USAGE_ERROR, FAILURE = 2, 1

SEED_LIMIT = 2**31

Weights = Annotated[
    Literal["final", "best"],
    tyro.conf.arg(help="The final weights, or those with the best validation bound"),
]
SomeWeights = Annotated[
    Literal["final", "best", "both"],
    tyro.conf.arg(help="The final or best weights of each run, or both beside each other."),
]
DataDir = Annotated[
    Path | None,
    tyro.conf.arg(help="Folder to search first for data files (default: $IWAE_DATA)."),
]
Json = Annotated[bool, tyro.conf.arg(help="Print exactly one JSON object to standard output")]
Quiet = Annotated[bool, tyro.conf.arg(help="Show no progress")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of all commands that read the models of one run."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    weights: Weights = "final"


def parse(
    kind: type,
    name: str,
    arguments: Sequence[str],
    *,
    hidden: Collection[str] = (),
    **options: Any,
) -> Any:
    """Parse the options that `kind` declares; exit with status 2 for any other.

    Args:
        hidden: options to omit from the help.
    """
    try:
        found = tyro.cli(
            kind,
            prog=f"iwae {name}",
            args=list(arguments),
            registry=option_rules(hidden),
            config=(tyro.conf.PositionalMetavarFromFieldName,),
            **options,
        )
    except ValidationError as error:
        raise UserError(first_setting_error(error)) from error
    seed = getattr(found, "seed", None)
    if seed is not None and not 0 <= seed < SEED_LIMIT:
        raise UserError(f"seed is {seed}; it must be at least 0 and below {SEED_LIMIT}")
    return found


def matching(table: Iterable[str], pattern: str, kind: str) -> list[str]:
    """The names that match a pattern; UserError if none does."""
    names = [name for name in table if fnmatch(name, pattern)]
    if not names:
        raise UserError(f"no {kind} matches {pattern!r}; list all with `iwae {kind}s`")
    return names

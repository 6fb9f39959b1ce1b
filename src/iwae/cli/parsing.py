"""Parsing, exit statuses and JAX set-up shared by the commands."""

import contextlib
import dataclasses
import gc
import os
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import ValidationError

from iwae.cli.options import registry
from iwae.config.toml import explain
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
            registry=registry(hidden),
            config=(tyro.conf.PositionalMetavarFromFieldName,),
            **options,
        )
    except ValidationError as error:
        raise UserError(explain(error)) from error
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


CACHE_BYTES = 2**30
"""Maximum size of the cache of compiled programs; the least recently used ones are removed."""


def set_up_jax() -> None:
    """Use float32 and one JAX device per CPU core, and cache compiled programs on disk."""
    # Imported and traced objects stay alive. With the default thresholds, garbage collection
    # traverses them so often that it takes a tenth of a short run.
    gc.set_threshold(50_000, 20, 100)
    import jax
    import platformdirs

    jax.config.update("jax_enable_x64", False)
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", len(cores()))
    cache = Path(platformdirs.user_cache_dir("iwae")) / "compiled"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _is_writable(cache):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        trim(cache, CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _is_writable(folder: Path) -> bool:
    """Whether files can be written to a folder, which is created if necessary."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def trim(folder: Path, limit: int) -> None:
    """Remove the least recently used files of a folder until it holds at most `limit` bytes.

    JAX's own limit stops caching for good once a process is killed between its two writes of an
    entry.
    """
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may trim too
            status = path.stat()
            files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    excess = sum(size for _, size, _ in files) - limit
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size


def cores() -> list[int]:
    """CPU cores available to this process; all cores if the system does not report them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))

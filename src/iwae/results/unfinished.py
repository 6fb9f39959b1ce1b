"""Results of an interrupted measurement, so that repeating it resumes there."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from iwae.files import atomic_write
from iwae.results.record_files import DAMAGES, load_record_arrays
from iwae.wording import first_error_line

log = logging.getLogger(__name__)

Slab = dict[str, np.ndarray]

SAVE_SECONDS = 10.0
"""Time between writes of partial results."""


class Unfinished:
    """Per-example results, in a file for each series of them, until the record is written.

    A file is named by a digest of everything that its numbers depend on, so another model, seed or
    method never resumes from it.
    """

    def __init__(self, run: Path):
        self.folder = Path(run) / "evaluations" / "unfinished"
        self.used: list[Path] = []

    def slabs(
        self, settings: dict[str, Any], make: Callable[[int], Iterator[Slab]]
    ) -> Iterator[Slab]:
        """Yield the known results, then `make(first)` from the first example without one.

        Results are written every few seconds, and when the caller or an interruption ends this.
        """
        path = self._path(settings)
        parts = [] if (done := _read_slab(path)) is None else [done]
        yield from parts
        written, last = len(parts), time.monotonic()
        try:
            for slab in make(sum(len(next(iter(part.values()))) for part in parts)):
                parts.append(slab)
                if time.monotonic() - last > SAVE_SECONDS:
                    _write_slabs(path, parts)
                    written, last = len(parts), time.monotonic()
                yield slab
        finally:
            if len(parts) > written:
                _write_slabs(path, parts)

    def array(self, settings: dict[str, Any], make: Callable[[], np.ndarray]) -> np.ndarray:
        """`make()`, or its result from before an interruption."""
        done = self.kept(settings) or {}
        if "array" not in done:
            done = {"array": make()}
            self.keep(settings, done)
        return done["array"]

    def keep(self, settings: dict[str, Any], slab: Slab) -> None:
        """Write arrays for `kept` to read, until `forget`."""
        _write_slabs(self._path(settings), [slab])

    def kept(self, settings: dict[str, Any]) -> Slab | None:
        """The arrays of an interrupted call; None without one."""
        return _read_slab(self._path(settings))

    def forget(self) -> None:
        """Remove the used files, whose numbers are in a record now."""
        for path in self.used:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, settings: dict[str, Any]) -> Path:
        text = json.dumps(settings, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
        self.used.append(path)
        return path


def _write_slabs(path: Path, parts: list[Slab]) -> None:
    with atomic_write(path) as temporary:
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        np.savez(temporary, allow_pickle=False, **joined)


def _read_slab(path: Path) -> Slab | None:
    try:
        slab = load_record_arrays(path)
        if len({len(values) for values in slab.values()}) != 1:
            raise ValueError("its arrays are not of the same examples")
        return slab
    except FileNotFoundError:
        return None
    except DAMAGES as error:
        log.warning(
            "%s is damaged (%s): its examples are measured again", path, first_error_line(error)
        )
        return None

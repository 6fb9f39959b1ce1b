"""Damaged files of every kind that the program reads: each loads or gives a one-line error.

    python tests/campaigns/inputs.py --seed 0 --count 100000

Anything else is a wrong outcome: another exception, a message of several lines or excessive length,
a warning, more than ten seconds or 1 GB, code executed or files written, and changed numbers in
spite of a checksum. `--keep FOLDER` keeps the files behind wrong outcomes.
"""

import argparse
import gzip
import io
import logging
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import kinds
import numpy as np

from iwae.data.readers import DamagedError
from iwae.errors import UserError

SECONDS, BYTES, MAX_MESSAGE = 10, 2**30, 3000
"""Limits on the time and memory for a file, and on the length of a message."""

Mutation = Callable[[bytes, np.random.Generator], bytes]


# --- mutations ------------------------------------------------------------------------------


def _span(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """Where a random piece of the content begins and ends."""
    first = int(rng.integers(0, len(content) + 1))
    return first, min(len(content), first + int(rng.geometric(0.1)))


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for at in rng.integers(0, max(1, len(content)), rng.integers(1, 4)) if content else ():
        changed[at] ^= 1 << int(rng.integers(0, 8))
    return bytes(changed)


def overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(content, rng)
    fill = [b"\0", b"\xff", rng.bytes(1), b"9", b'"'][rng.integers(0, 5)]
    return content[:first] + fill * (last - first) + content[last:]


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _span(content, rng)[0]]


def remove(content: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(content, rng)
    return content[:first] + content[last:]


def repeat(content: bytes, rng: np.random.Generator) -> bytes:
    first, last = _span(content, rng)
    return content[:last] + content[first:last] * int(rng.integers(1, 50)) + content[last:]


def insert(content: bytes, rng: np.random.Generator) -> bytes:
    first, _ = _span(content, rng)
    tokens = [rng.bytes(9), b"[" * 3000, b"{" * 999, b"(" * 999, b"\0" * 99, b'"', b"a." * 5000]
    return content[:first] + tokens[rng.integers(0, len(tokens))] + content[first:]


NUMBERS = rb"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
EXTREMES = [
    *(b"0", b"-1", b"1e999", b"-1e999", b"nan", b"NaN", b"inf", b"null", b"true", b'"x"', b"1.5"),
    *(b"[]", b"{}", b"1" * 5000, b"9" * 25, b"4294967296", b"1e300", b"[[1]]", b"1e-320", b"''"),
]


def replace_number(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace a number by another value."""
    return _substitute(NUMBERS, content, EXTREMES[rng.integers(0, len(EXTREMES))], rng)


def replace_word(content: bytes, rng: np.random.Generator) -> bytes:
    """Replace a word by another one."""
    words = re.findall(rb"[A-Za-z_]{2,}", content) or [b"x"]
    new = [words[rng.integers(0, len(words))], b"x" * 5000, b"\xc3\xa9", b"__class__", b""]
    return _substitute(rb"[A-Za-z_]{2,}", content, new[rng.integers(0, len(new))], rng)


def _substitute(pattern: bytes, content: bytes, new: bytes, rng: np.random.Generator) -> bytes:
    matches = list(re.finditer(pattern, content))
    if not matches:
        return flip(content, rng)
    match = matches[rng.integers(0, len(matches))]
    return content[: match.start()] + new + content[match.end() :]


MUTATIONS: list[Mutation] = [
    flip,
    overwrite,
    truncate,
    remove,
    repeat,
    insert,
    replace_number,
    replace_word,
]


def mutate_archive(content: bytes, mutate: Mutation, rng: np.random.Generator) -> bytes:
    """Mutate one member of an archive, or all of a gzip file, within valid compression."""
    if content.startswith(b"\x1f\x8b"):
        return gzip.compress(mutate(gzip.decompress(content), rng), 1)
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        names = old.namelist()
        chosen = names[rng.integers(0, len(names))]
        for name in names:
            member = old.read(name)
            new.writestr(name, mutate(member, rng) if name == chosen else member)
    return packed.getvalue()


def mutate_content(content: bytes, rng: np.random.Generator) -> tuple[bytes, bool]:
    """The content mutated once or twice, and whether its checksums were recomputed."""
    mutate = MUTATIONS[rng.integers(0, len(MUTATIONS))]
    is_packed = content[:2] in (b"PK", b"\x1f\x8b")
    if is_packed and rng.random() < 0.5:
        return mutate_archive(content, mutate, rng), True
    content = mutate(content, rng)
    if rng.random() < 0.3:
        content = MUTATIONS[rng.integers(0, len(MUTATIONS))](content, rng)
    return content, False


# --- forbidden effects ----------------------------------------------------------------------

FORBIDDEN = {
    *("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"),
    *("os.fork", "os.forkpty", "socket.connect", "socket.getaddrinfo", "os.remove", "os.mkdir"),
    *("shutil.rmtree", "os.rename", "ctypes.dlopen"),
}
audit: dict[str, Any] = {"on": False, "seen": None}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Record an event that reading a file must not cause."""
    if not audit["on"]:
        return
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and Path(arguments[0]).is_dir():
        return  # an unnamed file in that folder, which vanishes once closed
    if event in FORBIDDEN or writes:
        audit["seen"] = f"{event} {arguments[:1]}"[:200]


class HangError(BaseException):
    """Raised if reading takes too long."""


def _raise_hang(*_: Any) -> None:
    raise HangError


def _peak_memory() -> int:
    """The peak memory since the last call, in bytes."""
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1])
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * peak


class Outcome(NamedTuple):
    """How reading a file ended: `loaded`, `refused`, or a description of what is wrong."""

    description: str
    wrong: bool
    value: Any = None


def read(kind: kinds.Kind, folder: Path) -> Outcome:
    """Read the files in a folder and judge the outcome."""
    _peak_memory()
    before = resource.getrusage(resource.RUSAGE_SELF)
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    audit.update(on=True, seen=None)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        outcome = Outcome("loaded", wrong=False, value=kind.read(folder))
    except (UserError, DamagedError) as error:
        wrong = "\n" in str(error) or not str(error) or len(str(error)) > MAX_MESSAGE
        description = f"message of {len(str(error)):,} characters {str(error)[:200]!r}"
        outcome = Outcome(description if wrong else "refused", wrong)
    except HangError:
        outcome = Outcome("more than ten seconds", wrong=True)
    except Exception as error:
        lines = traceback.format_exception(error)
        outcome = Outcome(f"{type(error).__name__}: {error}"[:300] + lines[-2], wrong=True)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        audit["on"] = False
    used = resource.getrusage(resource.RUSAGE_SELF)
    if audit["seen"]:
        return Outcome(f"did {audit['seen']}", wrong=True)
    if used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime > SECONDS:
        return Outcome("more than ten seconds", wrong=True)
    if (peak := _peak_memory() - memory) > BYTES:
        return Outcome(f"{peak / 2**30:.1f} GiB of memory", wrong=True)
    return outcome


# --- the campaign ---------------------------------------------------------------------------


def campaign(seed: int, count: int, only: str | None = None, keep: Path | None = None) -> Counter:
    """Damage and read `count` files; returns how often each outcome occurred."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="iwae-inputs-") as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        undamaged = {
            kind: _make_undamaged(KINDS[kind], Path(name) / kind) for kind in [only] if kind
        } or {kind: _make_undamaged(one, Path(name) / kind) for kind, one in KINDS.items()}
        shares = np.array([KINDS[kind].share for kind in undamaged])
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            kind = list(undamaged)[rng.choice(len(undamaged), p=shares / shares.sum())]
            outcome = _damage_and_read(KINDS[kind], Path(name) / kind, *undamaged[kind], rng)
            outcomes[f"{kind} {outcome.description if not outcome.wrong else 'WRONG'}"] += 1
            if outcome.wrong:
                print(f"{kind}, number {i} of seed {seed}: {outcome.description}", flush=True)
                if keep is not None:
                    shutil.copytree(Path(name) / kind, keep / f"{kind}-{seed}-{i}")
            for path, content in undamaged[kind][0].items():
                path.write_bytes(content)
    return outcomes


def _make_undamaged(kind: kinds.Kind, folder: Path) -> tuple[dict[Path, bytes], Any]:
    """The undamaged files of a kind, and what they load as."""
    folder.mkdir(parents=True)
    kind.make(folder)
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    kind.read(folder)  # a first time, which imports and compiles
    undamaged = read(kind, folder)
    if undamaged.wrong or undamaged.description != "loaded":
        raise AssertionError(
            f"an undamaged file of the kind {folder.name}: {undamaged.description}"
        )
    return files, undamaged.value


def _damage_and_read(
    kind: kinds.Kind,
    folder: Path,
    files: dict[Path, bytes],
    undamaged: Any,
    rng: np.random.Generator,
) -> Outcome:
    """Damage one of the files of a kind and read them."""
    path = list(files)[rng.integers(0, len(files))]
    content, is_resealed = mutate_content(files[path], rng)
    path.write_bytes(content)
    outcome = read(kind, folder)
    if not kind.exact or is_resealed or outcome.description != "loaded":
        return outcome
    same = (
        outcome.value <= undamaged
        if isinstance(undamaged, frozenset)
        else outcome.value == undamaged
    )
    return outcome if same else Outcome("changed numbers were accepted", wrong=True)


KINDS = kinds.KINDS


def main() -> int:
    """Run the campaign and print its summary; 1 if any outcome was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    sys.addaudithook(_audit)
    logging.disable()
    signal.signal(signal.SIGPROF, _raise_hang)
    start = time.monotonic()
    outcomes = campaign(options.seed, options.count, options.kind, options.keep)
    for label, n in sorted(outcomes.items()):
        print(f"{n:8} {label}")
    wrong = sum(n for label, n in outcomes.items() if label.endswith("WRONG"))
    loaded = sum(n for label, n in outcomes.items() if label.endswith("loaded"))
    print(
        f"inputs: seed {options.seed}, {options.count} files, {loaded} loaded, "
        f"{options.count - loaded - wrong} refused, {wrong} wrong, "
        f"{time.monotonic() - start:.0f} s"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

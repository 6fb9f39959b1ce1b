"""Damaged files of every kind that is read: each is a valid load or one line, and nothing else.

    python tests/campaigns/inputs.py --seed 0 --count 100000

Wrong outcomes are any other exception, a message of several lines or of great length, a warning,
more than ten seconds or 1 GB, anything executed or written, and numbers that changed where a
checksum exists. `--keep FOLDER` keeps the files behind them.
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

SECONDS, BYTES, LONGEST = 10, 2**30, 3000
"""Limits of time and memory for a file, and of the length of a message."""

Mutation = Callable[[bytes, np.random.Generator], bytes]


# --- mutations ------------------------------------------------------------------------------


def _span(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """Where a piece of the content begins and ends."""
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


def number(content: bytes, rng: np.random.Generator) -> bytes:
    """Put another value in the place of a number."""
    return _instead(NUMBERS, content, EXTREMES[rng.integers(0, len(EXTREMES))], rng)


def word(content: bytes, rng: np.random.Generator) -> bytes:
    """Put another word in the place of a word."""
    words = re.findall(rb"[A-Za-z_]{2,}", content) or [b"x"]
    new = [words[rng.integers(0, len(words))], b"x" * 5000, b"\xc3\xa9", b"__class__", b""]
    return _instead(rb"[A-Za-z_]{2,}", content, new[rng.integers(0, len(new))], rng)


def _instead(pattern: bytes, content: bytes, new: bytes, rng: np.random.Generator) -> bytes:
    found = list(re.finditer(pattern, content))
    if not found:
        return flip(content, rng)
    one = found[rng.integers(0, len(found))]
    return content[: one.start()] + new + content[one.end() :]


MUTATIONS: list[Mutation] = [flip, overwrite, truncate, remove, repeat, insert, number, word]


def repacked(content: bytes, mutate: Mutation, rng: np.random.Generator) -> bytes:
    """The content with one member of its archive, or all of it, mutated within the packing."""
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


def mutated(content: bytes, rng: np.random.Generator) -> tuple[bytes, bool]:
    """The content mutated once or twice, and whether its checksums were made to fit."""
    mutate = MUTATIONS[rng.integers(0, len(MUTATIONS))]
    is_packed = content[:2] in (b"PK", b"\x1f\x8b")
    if is_packed and rng.random() < 0.5:
        return repacked(content, mutate, rng), True
    content = mutate(content, rng)
    if rng.random() < 0.3:
        content = MUTATIONS[rng.integers(0, len(MUTATIONS))](content, rng)
    return content, False


# --- what must not happen -------------------------------------------------------------------

FORBIDDEN = {
    *("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"),
    *("os.fork", "os.forkpty", "socket.connect", "socket.getaddrinfo", "os.remove", "os.mkdir"),
    *("shutil.rmtree", "os.rename", "ctypes.dlopen"),
}
watched: dict[str, Any] = {"on": False, "seen": None}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what reading a file must not do."""
    if not watched["on"]:
        return
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and Path(arguments[0]).is_dir():
        return  # a nameless file in that folder, which is gone when it is closed
    if event in FORBIDDEN or writes:
        watched["seen"] = f"{event} {arguments[:1]}"[:200]


class HangError(BaseException):
    """Reading takes too long."""


def _hang(*_: Any) -> None:
    raise HangError


def _peak() -> int:
    """The most memory since the last call, bytes."""
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1])
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * peak


class Outcome(NamedTuple):
    """How reading a file ended: `loaded`, `refused`, or the words of what is wrong."""

    words: str
    wrong: bool
    value: Any = None


def read(kind: kinds.Kind, folder: Path) -> Outcome:
    """Read the files in a folder, and judge what happens."""
    _peak()
    before = resource.getrusage(resource.RUSAGE_SELF)
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    watched.update(on=True, seen=None)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        outcome = Outcome("loaded", wrong=False, value=kind.read(folder))
    except (UserError, DamagedError) as error:
        wrong = "\n" in str(error) or not str(error) or len(str(error)) > LONGEST
        words = f"message of {len(str(error)):,} characters {str(error)[:200]!r}"
        outcome = Outcome(words if wrong else "refused", wrong)
    except HangError:
        outcome = Outcome("more than ten seconds", wrong=True)
    except Exception as error:
        lines = traceback.format_exception(error)
        outcome = Outcome(f"{type(error).__name__}: {error}"[:300] + lines[-2], wrong=True)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watched["on"] = False
    used = resource.getrusage(resource.RUSAGE_SELF)
    if watched["seen"]:
        return Outcome(f"did {watched['seen']}", wrong=True)
    if used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime > SECONDS:
        return Outcome("more than ten seconds", wrong=True)
    if (peak := _peak() - memory) > BYTES:
        return Outcome(f"{peak / 2**30:.1f} GiB of memory", wrong=True)
    return outcome


# --- the campaign ---------------------------------------------------------------------------


def campaign(seed: int, count: int, only: str | None = None, keep: Path | None = None) -> Counter:
    """Damage and read `count` files; returns how often each outcome was seen."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="iwae-inputs-") as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        made = {kind: _make(KINDS[kind], Path(name) / kind) for kind in [only] if kind} or {
            kind: _make(one, Path(name) / kind) for kind, one in KINDS.items()
        }
        shares = np.array([KINDS[kind].share for kind in made])
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            kind = list(made)[rng.choice(len(made), p=shares / shares.sum())]
            outcome = _once(KINDS[kind], Path(name) / kind, *made[kind], rng)
            outcomes[f"{kind} {outcome.words if not outcome.wrong else 'WRONG'}"] += 1
            if outcome.wrong:
                print(f"{kind}, number {i} of seed {seed}: {outcome.words}", flush=True)
                if keep is not None:
                    shutil.copytree(Path(name) / kind, keep / f"{kind}-{seed}-{i}")
            for path, content in made[kind][0].items():
                path.write_bytes(content)
    return outcomes


def _make(kind: kinds.Kind, folder: Path) -> tuple[dict[Path, bytes], Any]:
    """The files of a kind, undamaged, and what they load as."""
    folder.mkdir(parents=True)
    kind.make(folder)
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    kind.read(folder)  # once before, so that nothing has to be imported or compiled
    whole = read(kind, folder)
    if whole.wrong or whole.words != "loaded":
        raise AssertionError(f"an undamaged file of the kind {folder.name}: {whole.words}")
    return files, whole.value


def _once(
    kind: kinds.Kind,
    folder: Path,
    files: dict[Path, bytes],
    whole: Any,
    rng: np.random.Generator,
) -> Outcome:
    """Damage one of the files of a kind, and read them."""
    path = list(files)[rng.integers(0, len(files))]
    content, refitted = mutated(files[path], rng)
    path.write_bytes(content)
    outcome = read(kind, folder)
    if not kind.exact or refitted or outcome.words != "loaded":
        return outcome
    same = outcome.value <= whole if isinstance(whole, frozenset) else outcome.value == whole
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
    sys.addaudithook(_watch)
    logging.disable()
    signal.signal(signal.SIGPROF, _hang)
    start = time.monotonic()
    outcomes = campaign(options.seed, options.count, options.kind, options.keep)
    for words, number_of in sorted(outcomes.items()):
        print(f"{number_of:8} {words}")
    wrong = sum(n for words, n in outcomes.items() if words.endswith("WRONG"))
    loaded = sum(n for words, n in outcomes.items() if words.endswith("loaded"))
    print(
        f"inputs: seed {options.seed}, {options.count} files, {loaded} loaded, "
        f"{options.count - loaded - wrong} refused, {wrong} wrong, "
        f"{time.monotonic() - start:.0f} s"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Memory for files larger than it: the peak of each command, for a small file and a large one.

    python benchmarks/large_files.py [--gigabytes 0.3 3] [--suffixes .npy .parquet] [--json FILE]

A file of float64 rows, sorted by their first column, is written in blocks. `train` makes one epoch
with a tenth held out, streamed, and validates; `train in memory` loads the same file, as a run
without streaming does, and stops after the first dispatch; `encode` writes the latents of all rows.
Each runs in a process of its own, whose largest resident set is reported, with its seconds.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np

from iwae.data.rows import stored
from iwae.files import atomic_write

COLUMNS, ROWS = 200, 2**15
SUFFIXES = (".npy", ".parquet")


def write(path: Path, gigabytes: float) -> None:
    """Write a file of about this size, sorted by its first column."""
    rng = np.random.default_rng(0)
    n = round(gigabytes * 1e9 / COLUMNS / 8)
    loadings = rng.normal(size=(5, COLUMNS))
    about = {"descr": "<f8", "fortran_order": False, "shape": (n, COLUMNS)}
    with path.open("wb") as file:  # mapped memory would count as that of the commands too
        np.lib.format.write_array_header_1_0(file, about)
        for start in range(0, n, ROWS):
            count = min(ROWS, n - start)
            noise = rng.standard_normal((count, COLUMNS), np.float32)
            rows = rng.normal(size=(count, 5)) @ loadings + 0.1 * noise
            rows[:, 0] = np.arange(start, start + count) / n
            file.write(rows.data)


def to_parquet(source: Path, path: Path) -> None:
    """Write the same rows as a table."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = stored(np.load(source, mmap_mode="r"))
    names = [f"c{i}" for i in range(COLUMNS)]
    with parquet.ParquetWriter(path, pa.schema([(name, pa.float64()) for name in names])) as writer:
        for start in range(0, len(rows), ROWS):
            columns = np.ascontiguousarray(rows[start : start + ROWS].T)
            writer.write_table(pa.table(dict(zip(names, columns, strict=True))))


def train(file: Path, run: Path, *, stream: bool) -> None:
    """An epoch of a small model, or the first dispatch of one in memory."""
    from iwae import TrainConfig, start_run

    config = TrainConfig(
        dataset=str(file),
        observation="gaussian",
        epochs=1,
        validation=0.1,
        objective="vae",
        latent_sizes=(5,),
        hidden_sizes=((50,),),
        batch_size=1000,
        stream=stream,
    )
    for _ in start_run(config, run):
        if not stream:
            break


def encode(file: Path, run: Path) -> None:
    """The latents of all rows, as an array."""
    from iwae.cli.answers import encode

    encode([str(run), str(file), "--out", str(run.parent / "latents.npy"), "--overwrite"])


COMMANDS = {
    "train": lambda file, run: train(file, run, stream=True),
    "train in memory": lambda file, run: train(file, run.with_name("memory"), stream=False),
    "encode": encode,
}


def measured(name: str, file: Path, run: Path) -> dict[str, float]:
    """Peak of a command in GB, and its seconds, in a process of its own."""
    words = [sys.executable, __file__, "--command", name, str(file), str(run)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the peak of each command for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[0.3, 3.0])
    parser.add_argument("--suffixes", nargs="+", choices=SUFFIXES, default=[*SUFFIXES])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    parser.add_argument("--folder", type=Path, help="where there is room for the files")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--command", nargs=3, metavar=("NAME", "FILE", "RUN"), help="used inside")
    options = parser.parse_args()
    if options.command:
        name, file, run = options.command
        start = time.perf_counter()
        COMMANDS[name](Path(file), Path(run))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({"peak": round(peak, 3), "seconds": round(time.perf_counter() - start)}))
        return
    results = []
    for size, suffix in product(options.gigabytes, options.suffixes):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            file = Path(folder) / "rows.npy"
            write(file, size)
            if suffix == ".parquet":
                to_parquet(file, file.with_suffix(".parquet"))
                file.unlink()
            file, run = file.with_suffix(suffix), Path(folder) / "run"
            found = {name: measured(name, file, run) for name in options.commands}
        results.append({"gigabytes": size, "suffix": suffix, "commands": found})
        print(f"{size:g} GB of {suffix}: {json.dumps(found)}", flush=True)
    if options.json:
        record = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "version": version("iwae"),
            "results": results,
        }
        with atomic_write(options.json) as path:
            path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

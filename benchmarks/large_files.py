"""Peak memory of commands on a small and a large file.

    python benchmarks/large_files.py [--gigabytes 0.3 3] [--suffixes .npy .parquet] [--json FILE]
    python benchmarks/large_files.py --csv 100000 [--json FILE]

A file of float64 rows, sorted by their first column, is written in blocks. `train` streams one
epoch with a tenth held out, and validates; `train in memory` loads the same file, as a run without
streaming does, and stops after the first dispatch; `encode` writes the latents of all rows.

With `--csv`, a table of that many rows with empty cells is written instead. `read` parses it, and
`score` is `iwae score --k 100` on all its rows, with a model of the default size.

Each command runs in its own process. Its maximum resident set, its seconds and, since other
processes may share the cores, its processor time are reported.
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
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from iwae.data.rows import stored
from iwae.files import atomic_write

COLUMNS, ROWS = 200, 2**15
CSV_COLUMNS, EMPTY = 50, 0.1
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


def write_csv(path: Path, n: int) -> None:
    """Write a table of dependent real numbers, a tenth of whose cells are empty."""
    import pandas as pd

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, 5)) @ rng.normal(size=(5, CSV_COLUMNS))
    rows += 0.1 * rng.normal(size=rows.shape)
    rows[rng.random(rows.shape) < EMPTY] = np.nan
    names = [f"c{i}" for i in range(CSV_COLUMNS)]
    pd.DataFrame(rows, columns=names).to_csv(path, index=False, float_format="%.6g")


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
    from iwae.cli.answers import encode_command

    encode_command([str(run), str(file), "--out", str(run.parent / "latents.npy"), "--overwrite"])


def train_csv(file: Path, run: Path) -> None:
    """An epoch of a model of the default size for tables."""
    from iwae import TrainConfig, start_run

    config = TrainConfig(
        dataset=str(file), missing="at-random", epochs=1, validation=0.1, batch_size=1000
    )
    for _ in start_run(config, run):
        pass


def read(file: Path, run: Path) -> None:  # noqa: ARG001 - as the other commands
    """Parse the file."""
    from iwae.data.tables import read_table

    read_table(file)


def score(file: Path, run: Path) -> None:
    """Log-likelihoods of all rows, and their p-values."""
    from iwae.cli.answers import score_command

    score_command([str(run), str(file), "--k", "100", "--out", str(run.with_suffix(".csv"))])


COMMANDS = {
    "train": lambda file, run: train(file, run, stream=True),
    "train in memory": lambda file, run: train(file, run.with_name("memory"), stream=False),
    "encode": encode,
}
CSV_COMMANDS = {"read": read, "train csv": train_csv, "score": score}


def measure(name: str, file: Path, run: Path) -> None:
    """Run a command in this process, and print its peak in GB and its seconds."""
    start = time.perf_counter()
    {**COMMANDS, **CSV_COMMANDS}[name](file, run)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "peak": round(used.ru_maxrss * 1024 / 1e9, 3),
        "seconds": round(seconds, 1),
        "processor": round(used.ru_utime + used.ru_stime, 1),
    }
    print(json.dumps(found))


def measured(name: str, file: Path, run: Path) -> dict[str, float]:
    """Peak of a command in GB, and its seconds, in its own process."""
    words = [sys.executable, __file__, "--command", name, str(file), str(run)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def of_size(gigabytes: float, suffix: str, commands: list[str], folder: Path) -> dict[str, Any]:
    """Measure memory and time of each command on an array of one size."""
    file, run = folder / "rows.npy", folder / "run"
    write(file, gigabytes)
    if suffix == ".parquet":
        to_parquet(file, file.with_suffix(suffix))
        file.unlink()
    found = {name: measured(name, file.with_suffix(suffix), run) for name in commands}
    return {"gigabytes": gigabytes, "suffix": suffix, "commands": found}


def of_csv(rows: int, folder: Path) -> dict[str, Any]:
    """Measure memory and time of each command on a table of text."""
    file = folder / "table.csv"
    write_csv(file, rows)
    found = {name: measured(name, file, folder / "run") for name in CSV_COMMANDS}
    size = round(file.stat().st_size / 1e9, 3)
    return {"gigabytes": size, "rows": rows, "columns": CSV_COLUMNS, "commands": found}


def main() -> None:
    """Print the peak of each command for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", nargs="+", type=float, default=[0.3, 3.0])
    parser.add_argument("--suffixes", nargs="+", choices=SUFFIXES, default=[*SUFFIXES])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    parser.add_argument("--csv", type=int, help="instead: rows of a table with empty cells")
    parser.add_argument("--folder", type=Path, help="where there is room for the files")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--command", nargs=3, metavar=("NAME", "FILE", "RUN"), help="used inside")
    options = parser.parse_args()
    if options.command:
        name, file, run = options.command
        measure(name, Path(file), Path(run))
        return
    cases = [
        partial(of_size, size, suffix, options.commands)
        for size, suffix in product(options.gigabytes, options.suffixes)
    ]
    results = []
    for case in cases if options.csv is None else [partial(of_csv, options.csv)]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results.append(case(Path(folder)))
        print(json.dumps(results[-1]), flush=True)
    if options.json:
        record = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "version": version("iwae"),
            "results": results,
        }
        with atomic_write(options.json) as path:
            path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Overhead of the queue, and of Ray, in training and measuring a run.

    python benchmarks/queue_overhead.py [--epochs 400] [--rounds 3] [--ray] [--json FILE]

One run on the bundled digits is trained and measured by `iwae train` and `iwae evaluate`, by
`iwae sweep`, and by `iwae sweep --engine ray` with its own Ray. Programs are compiled beforehand.
The differences, taken within each round, are seconds per call whatever the length of the run. They
are printed with their range over the rounds and as a share of ten minutes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RUN = """
dataset = "digits"
latent_sizes = [10]
hidden_sizes = [[50, 50]]
k = 5
epochs = {epochs}
"""

TEN_MINUTES = 600.0
IWAE = (sys.executable, "-m", "iwae")


def main() -> None:
    """Print the median seconds of each way, and how much longer it takes than the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="also with Ray")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "run.toml"
        file.write_text(RUN.format(epochs=options.epochs))
        ways: dict[str, Callable[[str], list[list[str]]]] = {
            "train and evaluate": lambda out: [
                ["train", str(file), "--out", out],
                ["evaluate", out, "--k", "5000"],
            ],
            "sweep": lambda out: [["sweep", str(file), "--out", out]],
        }
        if options.ray:
            ways["sweep on Ray"] = lambda out: [
                ["sweep", str(file), "--out", out, "--engine", "ray"]
            ]
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):  # the first is for compilation
            for way, commands in ways.items():
                out = str(Path(name) / f"{number}-{way.replace(' ', '-')}")
                start = time.perf_counter()
                for command in commands(out):
                    subprocess.run([*IWAE, *command, "--quiet"], check=True, capture_output=True)
                if number:
                    times[way].append(time.perf_counter() - start)
    first = times["train and evaluate"]
    longer = {way: [b - a for a, b in zip(first, each, strict=True)] for way, each in times.items()}
    for way, each in times.items():
        more = statistics.median(longer[way])
        print(
            f"{way}: {statistics.median(each):.1f} s, {more:+.1f} s "
            f"({min(longer[way]):+.1f} to {max(longer[way]):+.1f}), "
            f"{more / TEN_MINUTES:+.2%} of ten minutes"
        )
    if options.json:
        record = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "version": version("iwae"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "epochs": options.epochs,
            "seconds": times,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

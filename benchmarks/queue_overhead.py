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


def commands(file: Path, out: str, *, ray: bool) -> dict[str, list[list[str]]]:
    """The commands of each method, which train and measure the run of a file."""
    sweep = ["sweep", str(file), "--out", out]
    found = {
        "train and evaluate": [
            ["train", str(file), "--out", out],
            ["evaluate", out, "--k", "5000"],
        ],
        "sweep": [sweep],
    }
    return found | ({"sweep on Ray": [[*sweep, "--engine", "ray"]]} if ray else {})


def seconds(file: Path, rounds: int, *, ray: bool) -> dict[str, list[float]]:
    """Seconds of each method in each round; the methods take turns."""
    times: dict[str, list[float]] = {name: [] for name in commands(file, "", ray=ray)}
    for number in range(rounds + 1):  # the first compiles
        for place, name in enumerate(times):
            out = str(file.with_name(f"{number}-{place}"))
            start = time.perf_counter()
            for command in commands(file, out, ray=ray)[name]:
                subprocess.run([*IWAE, *command, "--quiet"], check=True, capture_output=True)
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    """Print the median seconds of each method, and its overhead over the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="also with Ray")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.toml"
        file.write_text(RUN.format(epochs=options.epochs))
        times = seconds(file, options.rounds, ray=options.ray)
    first = times["train and evaluate"]
    for name, each in times.items():
        longer = [b - a for a, b in zip(first, each, strict=True)]
        more = statistics.median(longer)
        print(
            f"{name}: {statistics.median(each):.1f} s, {more:+.1f} s "
            f"({min(longer):+.1f} to {max(longer):+.1f}), "
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

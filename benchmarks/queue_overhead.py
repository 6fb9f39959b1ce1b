"""What the queue, and Ray, add to training and measuring a run.

    python benchmarks/queue_overhead.py [--epochs 400] [--rounds 3] [--ray]

One run on the bundled digits is trained and measured by `iwae train` and `iwae evaluate`, by
`iwae sweep`, and by `iwae sweep --engine ray` with a Ray of its own. Programs are compiled before.
The differences are seconds per call, whatever the run's length: their share of ten minutes is
shown.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RUN = """
dataset = "digits"
latent_sizes = [10]
hidden_sizes = [[50, 50]]
k = 5
epochs = {epochs}
"""

IWAE = (sys.executable, "-m", "iwae")


def main() -> None:
    """Print the median seconds of each way, and what they are above the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="with Ray too")
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
    medians = {way: statistics.median(each) for way, each in times.items()}
    first = medians["train and evaluate"]
    for way, seconds in medians.items():
        more = seconds - first
        print(f"{way}: {seconds:.1f} s, {more:+.1f} s, {more / 600:+.2%} of ten minutes")


if __name__ == "__main__":
    main()

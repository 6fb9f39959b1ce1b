"""How fast a training step is: the trainer, plain PyTorch, and what the cores can do at most.

    python benchmarks/train_step.py [--k 1 5 50] [--json FILE] [--torch-python PYTHON]

Every measurement runs in a process of its own, with as many threads as there are cores, or with
`--cores N` bound to N of them. All take turns, round after round, so that a slow minute of the
machine meets every one; blocks during which other programs used the same cores are left out.

A step is one IWAE update of a one-layer model (784-200-200-50, batch 20, fresh binarisation,
Adam); see `torch_step.py` for the other side of the comparison. Its multiplications are counted
from the shapes and set against the fastest float32 matrix product of the same session.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from matmul_peak import gigaflops
from timing import Block, Timing, cores, summary

HERE = Path(__file__).resolve().parent
MISSING_TORCH = """\
PyTorch is not installed for {python}: only the trainer is measured.
    pip install "iwae[bench]"       installs it next to the trainer, or
    --torch-python PYTHON           names another interpreter that has it
(PyTorch's build for CPUs is the small one)
"""


class Contestant(NamedTuple):
    """Something that can be timed in a process of its own."""

    name: str
    python: str
    script: str
    arguments: tuple[str, ...]


class Measured(NamedTuple):
    """What the processes of one contestant reported, in the order of the rounds."""

    blocks: list[Block]
    version: str
    working_mib: float | None = None


def step_flops(k: int, batch: int = 20) -> int:
    """Floating-point operations of the matrix products in one step.

    A product costs 2 per multiply-add; the backward pass has two products for each one of the
    forward pass, except that nobody asks for the gradient of the pixels.
    """
    pixels, hidden, latent = 784, 200, 50
    encoder = pixels * hidden + hidden * hidden + hidden * 2 * latent
    decoder = latent * hidden + hidden * hidden + hidden * pixels
    return 2 * batch * (3 * (encoder + k * decoder) - pixels * hidden)


def contestants(ks: list[int], torch_python: str | None) -> list[Contestant]:
    """All that take turns in one round."""
    ours = sys.executable
    peaks = [("numpy", ours), ("jax", ours)] + [("torch", torch_python)] * bool(torch_python)
    listed = [
        Contestant(f"peak {library}", python, "matmul_peak.py", ("--library", library))
        for library, python in peaks
    ]
    for k in ks:
        samples = ("--k", str(k))
        if torch_python:
            listed += [
                Contestant(f"torch {variant} k={k}", torch_python, "torch_step.py", arguments)
                for variant in ("eager", "compiled", "max-autotune")
                for arguments in [(*samples, "--variant", variant)]
            ]
        listed.append(Contestant(f"iwae k={k}", ours, "iwae_step.py", samples))
    return listed


def measure(contestant: Contestant, seconds: float) -> Measured | None:
    """Run one contestant once; None, with a message, if it fails."""
    command = [contestant.python, HERE / contestant.script, *contestant.arguments]
    command += ["--seconds", str(seconds)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(cores())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{contestant.name} failed: {reason}", file=sys.stderr)
        return None
    answer = json.loads(done.stdout.splitlines()[-1])
    blocks = [Block(*block) for block in answer["blocks"]]
    return Measured(blocks, answer["version"], answer.get("working_mib"))


def use_cores(n: int) -> None:
    """Leave only n cores to this process and its children, and as many threads."""
    if n < cores():
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n])
    os.environ |= {"OMP_NUM_THREADS": str(n), "MKL_NUM_THREADS": str(n)}


def run_rounds(
    listed: list[Contestant], rounds: int, seconds: float
) -> dict[str, tuple[Timing, Measured]]:
    """Let all contestants take turns, and summarise each; those that fail drop out."""
    gathered: dict[str, Measured] = {}
    running = list(listed)
    for number in range(rounds):
        for contestant in list(running):
            print(f"round {number + 1}/{rounds}: {contestant.name}", file=sys.stderr)
            measured = measure(contestant, seconds)
            if measured is None:
                running.remove(contestant)
                continue
            before = gathered.get(contestant.name, measured._replace(blocks=[]))
            gathered[contestant.name] = measured._replace(blocks=before.blocks + measured.blocks)
    return {name: (summary(measured.blocks), measured) for name, measured in gathered.items()}


def table(results: dict[str, tuple[Timing, Measured]], ks: list[int], peak: float) -> list[str]:
    """Lines of the report; `peak` is in GFLOP/s.

    Nothing is compared with a row that has no undisturbed block (marked busy): threads that wait
    for a neighbour's can be a hundred times slower, and one framework suffers more than another.
    """
    lines = [f"{'':24}{'ms/step':>9}{'min':>9}{'max':>9}{'vs torch':>10}{'of peak':>9}{'quiet':>8}"]
    for k in ks:
        rows = {name: row for name, row in results.items() if name.endswith(f" k={k}")}
        rivals = [timing for name, (timing, _) in rows.items() if name.startswith("torch")]
        fair = bool(rivals) and all(rival.quiet for rival in rivals)
        for name, (timing, measured) in rows.items():
            ratio = share = "busy"
            if timing.quiet:
                share = f"{step_flops(k) / timing.median / 1e6 / peak:.0%}"
                best = min(rival.median for rival in rivals) if fair else float("nan")
                ratio = f"{best / timing.median:.2f}x" if fair else "-"
            lines.append(
                f"{name:24}{timing.median:9.3f}{timing.low:9.3f}{timing.high:9.3f}"
                f"{ratio:>10}{share:>9}{timing.quiet:>5}/{len(measured.blocks)}"
            )
    return lines


def has_torch(python: str) -> bool:
    """Whether that interpreter can import PyTorch."""
    command = [python, "-c", "import torch"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 5, 50], help="samples per example")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with PyTorch")
    parser.add_argument("--json", type=Path, help="write all blocks there too")
    parser.add_argument("--cores", type=int, default=cores(), help="use only so many")
    args = parser.parse_args()
    use_cores(args.cores)
    torch_python = args.torch_python if has_torch(args.torch_python) else None
    if torch_python is None:
        print(MISSING_TORCH.format(python=args.torch_python), file=sys.stderr)
    results = run_rounds(contestants(args.k, torch_python), args.rounds, args.seconds)
    # The peak is the best that any library managed in any block: nothing about it is typical.
    peaks = {n: m for n, (_, m) in results.items() if n.startswith("peak ")}
    peak = max((gigaflops(b) for m in peaks.values() for b in m.blocks), default=float("nan"))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{platform.machine()}, {args.cores} of {os.cpu_count()} cores in use")
    print("; ".join(dict.fromkeys(m.version for _, m in results.values())))
    print(f"matrix-product peak {peak:.0f} GFLOP/s; load average at the end {load:.1f}\n")
    print("\n".join(table(results, args.k, peak)))
    if args.json:
        record = {"peak_gflops": peak, "load": load, "cores": args.cores, "results": results}
        record["flops_per_step"] = {str(k): step_flops(k) for k in args.k}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

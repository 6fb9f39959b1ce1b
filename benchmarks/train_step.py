"""Speed of a training step: the trainer, plain PyTorch, and the limit of the cores.

    python benchmarks/train_step.py [--k 1 5 50] [--batch 20 100] [--backward 8] [--json FILE]

Each measurement runs in a process of its own, with as many threads as there are cores, or with
`--cores N` bound to N of them. They take turns, round after round, so that a slow minute of the
machine affects them all; blocks during which other programs used the same cores are left out.

A step is one IWAE update of a one-layer model (784-200-200-50, fresh binarisation, Adam); see
`torch_step.py` for the other side of the comparison. Its multiplications are counted from the
shapes and compared with the fastest float32 matrix product of the same session. With `--backward S`
the trainer is also timed with a gradient through S of the k particles. Each row is compared with
the fastest PyTorch step with as many particles and examples, whose gradient goes through all.
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

BATCH = 20  # the published one
VARIANTS = ("eager", "compiled", "max-autotune")  # of the PyTorch step
HERE = Path(__file__).resolve().parent
MISSING_TORCH = """\
PyTorch is not installed for {python}: only the trainer is measured.
    pip install "iwae[bench]"       installs it next to the trainer, or
    --torch-python PYTHON           names another interpreter with it
(PyTorch's build for CPUs is the small one)
"""


class Contestant(NamedTuple):
    """Something that can be timed in a process of its own."""

    name: str
    python: str
    script: str
    arguments: tuple[str, ...]


class Measured(NamedTuple):
    """The reports of a contestant's processes, in the order of the rounds."""

    blocks: list[Block]
    version: str
    working_mib: float | None = None


class Setting(NamedTuple):
    """The settings of a step."""

    k: int
    batch: int

    def __str__(self) -> str:
        return f"k={self.k}" + (f" batch={self.batch}" if self.batch != BATCH else "")


def step_flops(k: int, batch: int = BATCH, backward: int | None = None) -> int:
    """Floating-point operations of the matrix products in one step.

    A product costs 2 per multiply-add. The backward pass has two products for each one of the
    forward pass, except that the gradient of the pixels is not needed. If the gradient goes through
    a few particles, those go forward a second time.
    """
    pixels, hidden, latent = 784, 200, 50
    encoder = pixels * hidden + hidden * hidden + hidden * 2 * latent
    decoder = latent * hidden + hidden * hidden + hidden * pixels
    decoders = 3 * k if backward is None else k + 3 * backward
    return 2 * batch * (3 * encoder + decoders * decoder - pixels * hidden)


def contestants(
    settings: list[Setting], torch_python: str | None, backward: int | None
) -> list[Contestant]:
    """All contestants of a round."""
    ours = sys.executable
    peaks = [("numpy", ours), ("jax", ours)] + [("torch", torch_python)] * bool(torch_python)
    listed = [
        Contestant(f"peak {library}", python, "matmul_peak.py", ("--library", library))
        for library, python in peaks
    ]
    for setting in settings:
        shape = ("--k", str(setting.k), "--batch", str(setting.batch))
        if torch_python:
            listed += [
                Contestant(f"torch {variant} {setting}", torch_python, "torch_step.py", arguments)
                for variant in VARIANTS
                for arguments in [(*shape, "--variant", variant)]
            ]
        listed.append(Contestant(f"iwae {setting}", ours, "iwae_step.py", shape))
        if backward and backward < setting.k:
            few = (*shape, "--backward", str(backward))
            name = f"iwae {setting} backward={backward}"
            listed.append(Contestant(name, ours, "iwae_step.py", few))
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


def table(
    results: dict[str, tuple[Timing, Measured]],
    settings: list[Setting],
    backward: int | None,
    peak: float,
) -> list[str]:
    """Lines of the report; `peak` is in GFLOP/s.

    A row without an undisturbed block is marked busy and not compared: threads that wait for those
    of another program can be a hundred times slower, and frameworks suffer differently.
    """
    lines = [f"{'':36}{'ms/step':>9}{'min':>9}{'max':>9}{'vs torch':>10}{'of peak':>9}{'quiet':>8}"]
    for setting in settings:
        few = f" {setting} backward={backward}"
        rows = {n: row for n, row in results.items() if n.endswith((f" {setting}", few))}
        rivals = [timing for name, (timing, _) in rows.items() if name.startswith("torch")]
        fair = bool(rivals) and all(rival.quiet for rival in rivals)
        for name, (timing, measured) in rows.items():
            ratio = share = "busy"
            if timing.quiet:
                flops = step_flops(*setting, backward if name.endswith(few) else None)
                share = f"{flops / timing.median / 1e6 / peak:.0%}"
                best = min(rival.median for rival in rivals) if fair else float("nan")
                ratio = f"{best / timing.median:.2f}x" if fair else "-"
            lines.append(
                f"{name:36}{timing.median:9.3f}{timing.low:9.3f}{timing.high:9.3f}"
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
    parser.add_argument("--batch", type=int, nargs="+", default=[BATCH], help="examples per step")
    parser.add_argument("--backward", type=int, help="also a gradient through this many samples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with PyTorch")
    parser.add_argument("--json", type=Path, help="also write all blocks to this file")
    parser.add_argument("--cores", type=int, default=cores(), help="use only this many cores")
    args = parser.parse_args()
    use_cores(args.cores)
    torch_python = args.torch_python if has_torch(args.torch_python) else None
    if torch_python is None:
        print(MISSING_TORCH.format(python=args.torch_python), file=sys.stderr)
    settings = [Setting(k, batch) for batch in args.batch for k in args.k]
    listed = contestants(settings, torch_python, args.backward)
    results = run_rounds(listed, args.rounds, args.seconds)
    # The peak is the best of any library in any block, not a typical value.
    peaks = {n: m for n, (_, m) in results.items() if n.startswith("peak ")}
    peak = max((gigaflops(b) for m in peaks.values() for b in m.blocks), default=float("nan"))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{platform.machine()}, {args.cores} of {os.cpu_count()} cores in use")
    print("; ".join(dict.fromkeys(m.version for _, m in results.values())))
    print(f"matrix-product peak {peak:.0f} GFLOP/s; load average at the end {load:.1f}\n")
    print("\n".join(table(results, settings, args.backward, peak)))
    if args.json:
        record = {"peak_gflops": peak, "load": load, "cores": args.cores, "results": results}
        record["flops_per_step"] = {str(s).removeprefix("k="): step_flops(*s) for s in settings}
        record["backward"] = args.backward
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

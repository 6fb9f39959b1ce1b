"""Speed of annealed chains: this program, a plain PyTorch loop, and the limit of the cores.

    python benchmarks/annealing.py [--rounds 3] [--json FILE] [--torch-python PYTHON]

The unit of work is a chain-leapfrog: one leapfrog step of one chain, which evaluates the decoder
50-200-200-784 and its gradient in z once. 16 chains for each of 64 binary images start from q(z|x)
and pass the same few temperatures, with 10 leapfrog steps per move and the same step size; see
`torch_annealing.py` for PyTorch.

Each measurement runs in its own process. They take turns, round after round; blocks during which
other programs used the same cores are left out. Multiplications are counted from the shapes and
compared with the fastest float32 matrix product of the same session.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from matmul_peak import gigaflops
from timing import Block, Timing, cores, time_blocks
from train_step import MISSING_TORCH, Contestant, has_torch, run_rounds, use_cores

IMAGES, CHAINS, MOVES, LEAPFROG, STEP_SIZE = 64, 16, 5, 10, 0.05
LEAPFROGS = IMAGES * CHAINS * MOVES * LEAPFROG
"""Chain-leapfrogs of one sweep over the temperatures."""

FLOPS = 2 * 2 * (50 * 200 + 200 * 200 + 200 * 784)
"""Operations in the matrix products of a chain-leapfrog: forward, and back to z, not weights."""


def time_annealing(devices: int, seconds: float) -> list[Block]:
    """Milliseconds per sweep of annealed chains, mapped over examples as evaluation does it."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)  # before anything computes
    import equinox as eqx
    import numpy as np

    from iwae.evaluation.examples import gather_examples, map_examples
    from iwae.inference.annealing import annealed_particles
    from iwae.inference.temperatures import linear_schedule
    from iwae.models.vae import VAE

    options = {"betas": linear_schedule(MOVES + 1), "step_size": STEP_SIZE, "n_leapfrog": LEAPFROG}

    def log_weights(model: VAE, x: jax.Array, key: jax.Array) -> jax.Array:
        return annealed_particles(model, x, key, CHAINS, **options)[0].log_w

    model = VAE(784, key=jax.random.key(0))
    x = np.random.default_rng(0).integers(0, 2, (IMAGES, 784), np.uint8)
    fn: Any = eqx.Partial(log_weights)

    def sweep(n: int) -> None:
        for i in range(n):
            slabs = map_examples(fn, model, x, jax.random.key(i), batch_size=IMAGES // devices)
            if not np.isfinite(gather_examples(slabs)).all():
                raise FloatingPointError("a log weight is not finite")

    return time_blocks(sweep, seconds=seconds, warm_up=2)


def contestants(torch_python: str | None) -> list[Contestant]:
    """All contestants of a round."""
    ours = sys.executable
    pythons = {"numpy": ours, "jax": ours} | ({"torch": torch_python} if torch_python else {})
    listed = [
        Contestant(f"peak {library}", python, "matmul_peak.py", ("--library", library))
        for library, python in pythons.items()
    ]
    if torch_python:
        listed.append(Contestant("torch", torch_python, "torch_annealing.py", torch_arguments()))
    for devices in dict.fromkeys((1, cores())):
        name = f"iwae, {devices} JAX device{'s' * (devices > 1)}"
        listed.append(Contestant(name, ours, "annealing.py", ("--devices", str(devices))))
    return listed


def torch_arguments() -> tuple[str, ...]:
    """Arguments that give PyTorch the same work."""
    sizes = {"images": IMAGES, "chains": CHAINS, "moves": MOVES, "leapfrog": LEAPFROG}
    return tuple(
        word
        for name, value in (sizes | {"step-size": STEP_SIZE}).items()
        for word in (f"--{name}", str(value))
    )


def row(name: str, timing: Timing, peak: float, rival: Timing | None) -> str:
    """One row of the table; blocks disturbed by other programs are not compared."""
    ratio = share = "busy"
    rate = LEAPFROGS / timing.median * 1e3
    if timing.quiet:
        share = f"{rate * FLOPS / 1e9 / peak:.0%}"
        fair = rival is not None and rival.quiet
        ratio = f"{rival.median / timing.median:.2f}x" if rival is not None and fair else "-"
    return f"{name:24}{rate:14,.0f}{timing.median:12.1f}{ratio:>10}{share:>9}{timing.quiet:>7}"


def main() -> None:
    """Measure and print the table; with `--devices`, time `iwae` alone in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter with PyTorch")
    parser.add_argument("--json", type=Path, help="also write all blocks to this file")
    parser.add_argument("--cores", type=int, default=cores(), help="use only this many cores")
    parser.add_argument("--devices", type=int, help="time only iwae, in this process; print JSON")
    args = parser.parse_args()
    if args.devices:
        blocks = time_annealing(args.devices, args.seconds)
        import jax

        print(json.dumps({"blocks": blocks, "version": f"jax {jax.__version__}"}))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Time all contestants in turn, and print the table."""
    use_cores(args.cores)
    torch_python = args.torch_python if has_torch(args.torch_python) else None
    if torch_python is None:
        print(MISSING_TORCH.format(python=args.torch_python), file=sys.stderr)
    results = run_rounds(contestants(torch_python), args.rounds, args.seconds)
    sides = {n: timing for n, (timing, _) in results.items() if not n.startswith("peak ")}
    peaks = [b for n, (_, m) in results.items() if n not in sides for b in m.blocks]
    peak = max(map(gigaflops, peaks), default=float("nan"))
    print(f"{platform.machine()}, {args.cores} of {os.cpu_count()} cores in use")
    print("; ".join(dict.fromkeys(m.version for _, m in results.values())))
    print(f"matrix-product peak {peak:.0f} GFLOP/s\n")
    heads = ("leapfrogs/s", 14), ("ms/sweep", 12), ("vs torch", 10), ("of peak", 9), ("quiet", 7)
    print(" " * 24 + "".join(f"{head:>{width}}" for head, width in heads))
    for name, timing in sides.items():
        print(row(name, timing, peak, sides.get("torch")))
    if args.json:
        record = {"peak_gflops": peak, "leapfrogs": LEAPFROGS, "flops": FLOPS, "results": results}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""The peak of float32 operations per second in a matrix product on this machine.

    python benchmarks/matmul_peak.py --library jax                  # prints one JSON object

Steps are compared with this rather than with a data sheet: it is the rate of the cores at their
current clock, with all cores in use.
"""

import argparse
import json
from collections.abc import Callable

from timing import Block, time_blocks

SIZE = 2000
FLOPS = 2 * SIZE**3


def numpy_product() -> tuple[Callable[[int], object], str]:
    """NumPy's product of two matrices, repeated n times, and the version."""
    import numpy as np

    a = np.ones((SIZE, SIZE), np.float32)
    out = np.empty_like(a)

    def run(n: int) -> None:
        for _ in range(n):
            np.matmul(a, a, out=out)

    return run, f"numpy {np.__version__}"


def jax_product() -> tuple[Callable[[int], object], str]:
    """The same in JAX, compiled."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((SIZE, SIZE), jnp.float32)
    product = jax.jit(jnp.matmul)

    def run(n: int) -> None:
        for _ in range(n):
            product(a, a).block_until_ready()

    return run, f"jax {jax.__version__}"


def torch_product() -> tuple[Callable[[int], object], str]:
    """The same in PyTorch."""
    import torch

    a = torch.ones(SIZE, SIZE)
    out = torch.empty_like(a)

    def run(n: int) -> None:
        for _ in range(n):
            torch.matmul(a, a, out=out)

    return run, f"torch {torch.__version__}"


LIBRARIES = {"numpy": numpy_product, "jax": jax_product, "torch": torch_product}


def gigaflops(block: Block) -> float:
    """GFLOP/s of one block of products."""
    return FLOPS / block.ms / 1e6


def main() -> None:
    """Measure one library in this process and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    run, version = LIBRARIES[args.library]()
    blocks = time_blocks(run, seconds=args.seconds, warm_up=2)
    print(json.dumps({"blocks": blocks, "version": version}))


if __name__ == "__main__":
    main()

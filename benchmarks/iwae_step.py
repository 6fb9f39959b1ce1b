"""Time the trainer's step through the functions that `iwae train` and `iwae evaluate` call.

python benchmarks/iwae_step.py --k 5 --replicates 8             # prints one JSON object
python benchmarks/iwae_step.py --declare '{"objective": "miwae", "m": 2, "k": 5}'
python benchmarks/iwae_step.py --k 50 --batch 100 --backward 8
python benchmarks/iwae_step.py --k 5 --network conv
python benchmarks/iwae_step.py --k 5000 --evaluate

JAX_NUM_CPU_DEVICES should be the number of cores, as `iwae` on the command line sets it.
"""

import argparse
import json
import re
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from iwae.evaluation.likelihood import log_likelihoods
from iwae.models.networks import NETWORKS, make_network
from iwae.models.vae import VAE
from iwae.objectives.building import build_objective
from iwae.objectives.declaration import Declaration
from iwae.training.loop import Plan, init_best, training_loop
from iwae.training.optimizers import adam
from iwae.training.schedules import staged_schedule
from iwae.training.steps import Settings, init_state
from timing import Block, time_blocks, time_dispatches

PIXELS, BATCH, IMAGES = 784, 20, 60_000
EPOCHS = 1000  # more than will be run
PROCESS = Path("/proc/self")


def random_images() -> np.ndarray:
    """Random grey images [IMAGES, PIXELS], uint8, like the training set."""
    return np.random.default_rng(0).integers(0, 256, (IMAGES, PIXELS), np.uint8)


def resident(field: str) -> float | None:
    """MiB of this process now (VmRSS) or at its peak (VmHWM); None where it is not reported."""
    if not (PROCESS / "status").is_file():
        return None
    return int(re.search(rf"{field}:\s+(\d+) kB", (PROCESS / "status").read_text())[1]) / 1024


def forget_peak() -> float | None:
    """Reset the peak; return the MiB of the process now, or None if that is not possible."""
    if not (PROCESS / "clear_refs").exists():
        return None
    (PROCESS / "clear_refs").write_text("5")
    return resident("VmRSS")


def time_steps(
    declared: dict, replicates: int, seconds: float, batch: int, network: str, blocks: int
) -> tuple[list[Block], float | None]:
    """Milliseconds per step and replicate, and peak memory besides data, states and programs, MiB.

    Each dispatch of the training loop, which chooses its length, is a block; the short ones at the
    start are left out.
    """
    shaped = make_network(network, blocks=blocks, shape=(28, 28))
    models = [VAE(PIXELS, network=shaped, key=jax.random.key(s)) for s in range(replicates)]
    settings = Settings(build_objective(Declaration(**declared), 1), adam(), batch, "dynamic")
    state = init_state(models, jax.random.split(jax.random.key(replicates), replicates), settings)
    schedule, plan = staged_schedule([1e-3], [EPOCHS], IMAGES // batch), Plan(EPOCHS)
    run = training_loop(
        state, init_best(state), random_images(), schedule, models[0], settings, plan
    )
    idle: list[float | None] = [None]
    timed = time_dispatches(run, seconds, lambda: idle.append(forget_peak()))
    peak = resident("VmHWM")
    working = None if peak is None or idle[-1] is None else peak - idle[-1]
    return [Block(block.ms / replicates, block.others) for block in timed], working


def time_evaluation(k: int, seconds: float) -> list[Block]:
    """Milliseconds per example of L_k, in batches as in `iwae evaluate`."""
    model, examples = VAE(PIXELS, key=jax.random.key(0)), 80
    x = (random_images()[:examples] > 127).astype(np.uint8)

    def evaluate(n: int) -> None:
        for _ in range(n):
            log_likelihoods(model, x, jax.random.key(1), k=k)

    blocks = time_blocks(evaluate, seconds=seconds, warm_up=1)
    return [Block(block.ms / examples, block.others) for block in blocks]


def main() -> None:
    """Measure one thing in this process and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, default=5, help="samples per example")
    parser.add_argument("--declare", type=json.loads, default={}, help="JSON of a declaration")
    parser.add_argument("--batch", type=int, default=BATCH, help="examples per step")
    parser.add_argument("--backward", type=int, help="particles that the gradient goes through")
    parser.add_argument("--replicates", type=int, default=1, help="models trained at once")
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    parser.add_argument("--blocks", type=int, default=0, help="residual blocks after each layer")
    parser.add_argument("--evaluate", action="store_true", help="time L_k instead of the step")
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    if args.evaluate:
        blocks, working = time_evaluation(args.k, args.seconds), None
    else:
        few = {"backward": args.backward} if args.backward else {}
        declared = {"objective": "iwae", "k": args.k, **few, **args.declare}
        shape = args.replicates, args.seconds, args.batch
        blocks, working = time_steps(declared, *shape, args.network, args.blocks)
    about = {
        "version": f"iwae {version('iwae')}, jax {jax.__version__}",
        "working_mib": working,
    }
    print(json.dumps({"blocks": blocks, **about}))


if __name__ == "__main__":
    main()

"""Time of a training step with each prior and posterior, beside N(0, I) and Gaussians.

    python benchmarks/prior_step.py --clock cpu --json results/benchmarks/prior_step.json

The network of table 1 with one stochastic layer and binary images of 28 x 28 pixels. Times are
medians of blocks that take turns, so that a busy machine affects all equally; with `--clock cpu`
they are processor time, which other programs do not lengthen.
"""

import argparse
import json
import os
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from iwae.models.vae import VAE
from iwae.objectives.bounds import iwae
from iwae.objectives.particle_objectives import bound

CASES: dict[str, dict[str, str]] = {
    "prior normal": {},
    "prior mixture:500": {"prior": "mixture:500"},
    "prior vamp:500": {"prior": "vamp:500"},
    "prior flow:4": {"prior": "flow:4"},
    "posterior flow:4": {"posterior": "flow:4"},
}


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def make_step(options, k):
    """A function that takes a step, and its first state."""
    model = VAE(784, (50,), ((200, 200),), **options, key=jax.random.key(0))
    objective = bound(iwae, k=k)

    @eqx.filter_jit(donate="all-except-first")
    def step(data, state):
        model, squares, number = state
        key = jax.random.fold_in(jax.random.key(1), number)

        def loss(model):
            keys = jax.random.split(key, len(data))
            each = jax.vmap(lambda x, key: objective(*model.condition(x), key))(data, keys)
            return -jnp.mean(each)

        grads = eqx.filter_grad(loss)(model)
        squares = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g**2, squares, grads)
        rates = jax.tree.map(lambda g, s: -1e-3 * g / (jnp.sqrt(s) + 1e-4), grads, squares)
        return eqx.apply_updates(model, rates), squares, number + 1

    squares = jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
    return step, (model, squares, jnp.int32(0))


def repeated(step, data, state, n):
    """The state after n steps."""
    for _ in range(n):
        state = step(data, state)
    return jax.block_until_ready(state)


def main():
    """Print the milliseconds of each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="also write the times to this file")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    data = jnp.float32(np.random.default_rng(0).random((options.batch, 784)) < 0.2)
    running = {name: make_step(case, options.k) for name, case in CASES.items()}
    times = {name: [] for name in running}
    for block in range(options.blocks + 1):
        for name, (step, state) in running.items():
            start = clock()
            running[name] = step, repeated(step, data, state, options.steps)
            if block:  # the first compiles
                times[name].append(1e3 * (clock() - start) / options.steps)
    usual = np.median(times["prior normal"])
    if options.json:
        about = {name: getattr(options, name) for name in ("k", "batch", "steps", "clock")}
        about |= {"jax": jax.__version__, "cores": len(os.sched_getaffinity(0))}
        options.json.write_text(json.dumps({**about, "ms_per_step": times}, indent=1) + "\n")
    print(f"k = {options.k}, batches of {options.batch}, on {jax.devices()[0].device_kind}")
    for name, each in times.items():
        ms = np.median(each)
        print(f"{name:18} {ms:8.2f} ms a step   {ms / usual:5.2f} times   (least {min(each):.2f})")


if __name__ == "__main__":
    main()

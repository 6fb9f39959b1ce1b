"""Schemes for drawing the few particles that a gradient goes through, on trained models.

    python experiments/resampling.py

For each number of particles k, number drawn S, gradient and scheme: the variance that the draw adds
to the gradient, and the seconds of one gradient. Existing cells (run, gradient, k) of
`results/benchmarks/resampling.json` are kept. Then `python docs/tools/tables.py` makes the table.

Given the particles, a gradient through a few of them has the gradient through all as its mean. The
added variance is therefore the mean squared difference between the two on the same particles. The
variance of the full gradient is half the mean squared difference between two of the same batch.
Both are summed over all parameters. Times are processor seconds, which other programs affect less
than wall-clock seconds; the gradients that are compared take turns.
"""

import json
import os
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from iwae.evaluation.gradient_signal import gradient_signal_sample
from iwae.files import atomic_write
from iwae.inference.resampling import Draw, Drawn, resample_few
from iwae.models.vae import VAE
from iwae.objectives.bounds import iwae
from iwae.objectives.gradient_estimators import dreg
from iwae.objectives.particle_objectives import bound
from iwae.objectives.surrogates import REPARAM, Estimator
from iwae.results.provenance import record_provenance
from iwae.results.subjects import make_subject, subject_model_facts
from iwae.results.summaries import summarise_mean
from iwae.typing import PRNGKey, Scalar

RESULTS = Path(__file__).resolve().parents[1] / "results"
RECORD = RESULTS / "benchmarks" / "resampling.json"

RUNS = ("mnist-1l-iwae-k5-100epochs", "table1/mnist/1l/vae-k1/seed-0")
GRADIENTS: dict[str, Estimator] = {"reparam": REPARAM, "dreg": dreg()}
DRAWS = {50: 48, 5: 160, 500: 12}
"""k -> draws of each gradient, each on another batch; the usual k first."""
COUNTS = (1, 2, 4, 8, 16)
BATCH = 20
SEED = 0


def in_proportion(shares: Float[Array, " k"], points: Float[Array, " S"]) -> Drawn:
    """The particles, with duplicates, whose segments of [0, 1) contain the points."""
    chances = shares / jnp.sum(shares)
    index = jnp.sum(jnp.cumsum(chances)[:, None] <= points[None], axis=0)
    index = jnp.minimum(index, shares.size - 1)
    chosen = chances[index]
    factor = 1 / (points.size * jnp.where(chosen > 0, chosen, 1.0))
    return index, jnp.where(chosen > 0, factor, 0.0)


def systematic_with_duplicates(key: PRNGKey, shares: Float[Array, " k"], count: int) -> Drawn:
    """Systematic resampling: one uniform number for all points."""
    points = (jax.random.uniform(key) + jnp.arange(count, dtype=jnp.float32)) / count
    return in_proportion(shares, points)


def stratified_with_duplicates(key: PRNGKey, shares: Float[Array, " k"], count: int) -> Drawn:
    """Stratified resampling: a uniform number in each of S equal parts."""
    numbers = jax.random.uniform(key, (count,))
    return in_proportion(shares, (numbers + jnp.arange(count, dtype=jnp.float32)) / count)


SCHEMES: dict[str, Draw] = {
    "systematic": systematic_with_duplicates,
    "stratified": stratified_with_duplicates,
    "largest exactly": resample_few,
}


@lru_cache
def program(gradient: str, k: int, count: int | None) -> Any:
    """(model, examples, key, scheme) -> a gradient of IWAE, through `count` particles or all.

    The scheme is a number, so that all schemes share a program except for the draw.
    """

    @eqx.filter_jit
    def run(model: VAE, xs: Array, key: PRNGKey, scheme: Array) -> PyTree:
        def draw(key: PRNGKey, shares: Array, count: int) -> Drawn:
            branches = [lambda key, shares, f=f: f(key, shares, count) for f in SCHEMES.values()]
            return jax.lax.switch(scheme, branches, key, shares)

        objective = bound(iwae, k=k, estimator=GRADIENTS[gradient], backward=count, draw=draw)
        return gradient_signal_sample(objective)(model, xs, key)

    return run


@eqx.filter_jit
def squared_distance(a: PyTree, b: PyTree) -> Scalar:
    """The sum of squared differences over all parameters."""
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), a, b)))


def timed(run: Any, *arguments: Any) -> tuple[PyTree, float]:
    """The value of a program, and its processor seconds."""
    begin = time.process_time()
    result = jax.block_until_ready(run(*arguments))
    return result, time.process_time() - begin


def measured(model: VAE, batches: Array, gradient: str, k: int) -> dict[str, Any]:
    """The full gradient, and gradients through a few particles by scheme, on the same particles."""
    cases = [(name, count) for count in COUNTS if count < k for name in SCHEMES]
    full_run = program(gradient, k, None)
    schemes = {name: jnp.asarray(i) for i, name in enumerate(SCHEMES)}
    key = jax.random.key(SEED)
    for count in (None, *(count for _, count in cases)):
        timed(program(gradient, k, count), model, batches[0], key, schemes["systematic"])
    added: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    seconds: dict[Any, list[float]] = {case: [] for case in (None, *cases)}
    own, across, last = [], [], None
    for i, xs in enumerate(batches):
        one, other = (jax.random.fold_in(jax.random.fold_in(key, i), half) for half in (0, 1))
        full, spent = timed(full_run, model, xs, one, schemes["systematic"])
        again, _ = timed(full_run, model, xs, other, schemes["systematic"])
        seconds[None].append(spent)
        own.append(float(squared_distance(full, again)) / 2)
        if i % 2:
            across.append(float(squared_distance(full, last)) / 2)
        last = full
        for name, count in cases:
            found, spent = timed(program(gradient, k, count), model, xs, one, schemes[name])
            added[name, count].append(float(squared_distance(found, full)))
            seconds[name, count].append(spent)
    base = float(np.median(seconds[None]))
    variance, variance_stderr = summarise_mean(np.array(own))
    of_batches, of_batches_stderr = summarise_mean(np.array(across))
    return {
        "variance": variance,
        "variance_stderr": variance_stderr,
        "variance_of_batches": of_batches,
        "variance_of_batches_stderr": of_batches_stderr,
        "seconds": base,
        "few": [
            few_row(name, count, added[name, count], own, seconds[name, count], base)
            for name, count in cases
        ],
    }


def few_row(
    name: str,
    count: int,
    added: Sequence[float],
    own: Sequence[float],
    seconds: Sequence[float],
    base: float,
) -> dict[str, Any]:
    """The variance that a scheme adds to that of the full gradient, and its cost."""
    relative, error = ratio_of_means(added, own)
    mean, stderr = summarise_mean(np.array(added))
    ratio = float(np.median(seconds)) / base
    return {
        "draw": name,
        "backward": count,
        "added_variance": mean,
        "added_variance_stderr": stderr,
        "relative": relative,
        "relative_stderr": error,
        "seconds": float(np.median(seconds)),
        "variance_times_seconds": (1 + relative) * ratio,
        "variance_times_seconds_stderr": error * ratio,
    }


def ratio_of_means(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """The ratio of two means over the same draws, and its jackknife standard error."""
    pairs = np.array([above, below], np.float64)
    n = pairs.shape[1]
    without = (pairs.sum(axis=1, keepdims=True) - pairs) / (n - 1)
    ratios = without[0] / without[1]
    error = np.sqrt((n - 1) / n * ((ratios - ratios.mean()) ** 2).sum())
    means = pairs.mean(axis=1)
    return float(means[0] / means[1]), float(error)


def main() -> None:
    """Measure the cells that the record lacks."""
    cells = json.loads(RECORD.read_text())["cells"] if RECORD.exists() else []
    done = {(cell["run"], cell["gradient"], cell["k"]) for cell in cells}
    for k, draws in DRAWS.items():
        for run in RUNS:
            subject = make_subject(RESULTS / run, split="train", examples=draws * BATCH, seed=SEED)
            replicate, model = next(subject.models())
            shuffled = np.random.default_rng(SEED).permutation(subject.data)
            batches = jnp.asarray(shuffled, jnp.float32).reshape(draws, BATCH, -1)
            for gradient in GRADIENTS:
                if (run, gradient, k) in done:
                    continue
                cell = {"run": run, "gradient": gradient, "k": k, "draws": draws}
                cell |= {"examples": BATCH, "seed": SEED, **subject_model_facts(subject, replicate)}
                cell |= {**record_provenance(), **measured(model, batches, gradient, k)}
                cells.append(cell)
                with atomic_write(RECORD) as path:
                    path.write_text(json.dumps({"cells": cells}, indent=1) + "\n")
                print(f"{run}, {gradient}, k = {k}: {cell['seconds'] * 1e3:.1f} ms", flush=True)


if __name__ == "__main__":
    main()

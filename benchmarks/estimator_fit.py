"""Overhead of the estimator: `fit` against `training_loop` with the same steps.

    python benchmarks/estimator_fit.py [--rows 10000] [--epochs 20] [--rounds 5]

Both run once to compile and then take turns; the ratio is that of the medians.
"""

import argparse
import statistics
import time
import warnings

import jax
import numpy as np

from iwae import VAE, ImportanceWeightedAutoencoder, objective, train


def main() -> None:
    """Print milliseconds per step of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--columns", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = np.random.default_rng(0).normal(size=(options.rows, options.columns))
    steps = options.epochs * (options.rows // 100)

    def fit() -> None:
        ImportanceWeightedAutoencoder(
            max_iter=options.epochs,
            batch_size=100,
            ema=None,
            early_stopping=False,
            random_state=0,
        ).fit(rows)

    def trainer() -> None:
        init_key, train_key = jax.random.split(jax.random.key(0))
        model = VAE(options.columns, (10,), ((100, 100),), observation="gaussian", key=init_key)
        train(
            model,
            rows.astype(np.float32),
            objective("iwae", 5),
            key=train_key,
            epochs=options.epochs,
            batch_size=100,
        )

    times: dict[str, list[float]] = {"fit": [], "training": []}
    warnings.simplefilter("ignore")
    fit()
    trainer()
    for _ in range(options.rounds):
        for name, act in (("fit", fit), ("training", trainer)):
            start = time.perf_counter()
            act()
            times[name].append((time.perf_counter() - start) / steps * 1e3)
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, ms in medians.items():
        print(f"{name}: {ms:.3f} ms per step (best {min(times[name]):.3f})")
    print(f"ratio {medians['fit'] / medians['training']:.3f}")


if __name__ == "__main__":
    main()

"""Averaged weights in the estimator: held-out likelihoods with them and without.

    python benchmarks/averages.py [--tables wine] [--seeds 3] [--json FILE]

The estimator is fitted with its defaults, with `ema=None` and with other decays. Log-likelihoods
(L_1000) of a fifth of the rows, nats per row, are differences from no average.

The rows that `benchmarks/own_data.py` tests on are left out, since a default follows from these
numbers. Each seed has its own split and initial weights.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from iwae import ImportanceWeightedAutoencoder
from iwae.data.held_out import own_split
from own_data import TABLES, K, paired, write

DECAYS = (None, 0.99)
NAMES = ("diabetes", "wine", "breast cancer", "iris")


def compared(name: str, seed: int) -> dict[str, Any]:
    """Each decay's gain in nats per row over no average, and the passes of its fit."""
    frame = TABLES[name]()
    rest, _, _ = own_split(len(frame))
    rows = frame.iloc[rest].sample(frac=1.0, random_state=seed).to_numpy()
    train, test, _ = own_split(len(rows))
    fits = {
        decay: ImportanceWeightedAutoencoder(ema=decay, random_state=seed, score_k=K).fit(
            rows[train]
        )
        for decay in DECAYS
    }
    log_p = {decay: fit.score_samples(rows[test]) for decay, fit in fits.items()}
    return {
        str(decay): {"passes": fit.n_iter_, **paired(log_p[decay], log_p[None])}
        for decay, fit in fits.items()
    }


def main() -> None:
    """Print what each decay reaches on each table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file, or into it")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    known = options.json is not None and options.json.is_file()
    results: dict[str, Any] = json.loads(options.json.read_text())["results"] if known else {}
    for name in options.tables:
        for seed in range(options.seeds):
            start = time.perf_counter()
            found = compared(name, seed)
            results.setdefault(name, {})[str(seed)] = found
            print(f"{name}, {time.perf_counter() - start:.0f} s: {json.dumps(found)}", flush=True)
            if options.json:
                write(options.json, results)


if __name__ == "__main__":
    main()

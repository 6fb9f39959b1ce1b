"""Averaged weights in the estimator: held-out likelihoods with and without them.

    python benchmarks/averages.py [--tables wine] [--seeds 3] [--json FILE]

The estimator is fitted with its defaults but for several decays. Log-likelihoods (L_1000) of a
fifth of the rows, nats per row, are differences from no average.

The test rows of `benchmarks/own_data.py` are left out, since a default follows from these numbers.
Each seed has its own split and initial weights.
"""

import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from iwae import ImportanceWeightedAutoencoder
from iwae.data.held_out import hold_out_fifth
from own_data import TABLES, K, over_seeds, paired

DECAYS = (None, 0.99)
NAMES = ("diabetes", "wine", "breast cancer", "iris")


def compared(name: str, seed: int) -> dict[str, Any]:
    """The gain of each decay over no average, nats per row, and the epochs of its fit."""
    frame = TABLES[name]()
    rest, _, _ = hold_out_fifth(len(frame))
    rows = frame.iloc[rest].sample(frac=1.0, random_state=seed).to_numpy()
    train, test, _ = hold_out_fifth(len(rows))
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


if __name__ == "__main__":
    warnings.simplefilter("ignore", ConvergenceWarning)
    over_seeds(compared, NAMES, __doc__)

"""Random choices of rows, each addressed by a seed and by its purpose.

Only `Generator.random` on PCG64 is used, whose bits NumPy guarantees, so that a choice is the same
on every machine.
"""

import numpy as np

from iwae.data.rows import Examples, row_subset

# The purpose of a stream of random numbers: the second word of its seed.
TRAIN_DRAW, VALIDATION_DRAW, TEST_DRAW, HOLD_OUT, TEST_ROWS, PSEUDO_INPUTS = range(6)
SAMPLE, BLOCK_ROWS, FOLDS = 6, 7, 8

SAMPLED = 2**22
"""The most values of the sample that replaces data which do not fit into memory."""

LEAST = 1000
"""The fewest rows of that sample."""


def sampling_generator(seed: int, stream: int) -> np.random.Generator:
    """The generator of a seed and a purpose."""
    return np.random.Generator(np.random.PCG64([seed, stream]))


def choose(n: int, count: int, *, seed: int = 0, stream: int = HOLD_OUT) -> np.ndarray:
    """Choose `count` of the rows 0..n-1 without replacement, in ascending order.

    A prefix would not be a sample, because files are often sorted (the test set of static MNIST by
    digit, OMNIGLOT by alphabet).
    """
    return np.sort(sampling_order(n, seed=seed, stream=stream)[:count])


def sampling_order(n: int, *, seed: int = 0, stream: int = HOLD_OUT) -> np.ndarray:
    """The rows 0..n-1 in a random order."""
    return np.argsort(sampling_generator(seed, stream).random(n), kind="stable")


def sample(rows: Examples, most: int = SAMPLED) -> Examples:
    """The rows `[n, d]`, or a fixed random sample of them with at most about `most` values."""
    count = max(LEAST, most // max(1, rows.shape[1]))
    return rows if count >= len(rows) else row_subset(rows, choose(len(rows), count, stream=SAMPLE))

"""Moments, sums and gaps of columns that are read in blocks.

NumPy sums a column pairwise, in a tree of halves. The same tree is followed here block by block, so
that the moments are bit-identical whether the data are in memory or not.
"""

from collections.abc import Callable, Generator, Iterator

import numpy as np

from iwae.data.rows import Examples, row_blocks

LEAF = 2**16
"""The most numbers that NumPy sums at once; the tree above them is followed here."""


def column_moments(
    rows: Examples, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of the observed values of columns, and whether the values vary.

    Args:
        rows: `[n, d]`, NaN where missing.
        columns: indices of the m columns.

    Returns:
        Three arrays `[m]`. Mean and standard deviation are bit-identical to `mean()` and `std()` of
        the column in float64; 0 if it has no value, infinite or NaN if they are beyond float64.
    """
    count, low, high = (np.full(len(columns), start) for start in (0, np.inf, -np.inf))
    for j, values in _pieces(rows, columns):
        count[j] += len(values)
        low[j] = min(low[j], values.min(initial=np.inf))
        high[j] = max(high[j], values.max(initial=-np.inf))
    with np.errstate(over="ignore", invalid="ignore"):
        mean = _sums(rows, columns, count, lambda values, _: values) / np.maximum(count, 1)
        squares = _sums(rows, columns, count, lambda values, j: np.square(values - mean[j]))
        return mean, np.sqrt(squares / np.maximum(count, 1)), low < high


def column_sums(rows: Examples) -> np.ndarray:
    """The sum of each column in float64, row by row as in NumPy; NaN counts as 0."""
    total = np.zeros(rows.shape[1])
    for _, block in row_blocks(rows, 2**19):
        values = np.where(np.isnan(block), 0.0, block.astype(np.float64))
        total = np.add.reduce(np.vstack([total, values]), axis=0)
    return total


def count_column_gaps(rows: Examples) -> np.ndarray:
    """The number of missing values of each column, `[d]`."""
    counts = np.zeros(rows.shape[1], np.int64)
    for _, block in row_blocks(rows):
        counts += np.isnan(block).sum(axis=0)
    return counts


def _pieces(rows: Examples, columns: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The observed values of each column in float64, block by block."""
    for _, block in row_blocks(rows):
        # In float32, squares may overflow.
        wide = np.ascontiguousarray(block[:, columns].T, np.float64)
        gaps = np.isnan(wide)
        for j, values in enumerate(wide):
            yield j, values[~gaps[j]] if gaps[j].any() else values


def _sums(
    rows: Examples,
    columns: np.ndarray,
    count: np.ndarray,
    term: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """The pairwise sum over each column of a function of its values and its index."""
    running = [_PairwiseSum(int(n)) for n in count]
    for j, values in _pieces(rows, columns):
        running[j].add(term(values, j))
    return np.array([one.total for one in running])


class _PairwiseSum:
    """The sum of n numbers that come in pieces, bit-identical to `np.add.reduce` of them all."""

    def __init__(self, n: int):
        self.total, self._kept, self._tree = 0.0, np.empty(0), _pairwise(n)
        self._need = next(self._tree) if n else 1

    def add(self, values: np.ndarray) -> None:
        kept = np.concatenate([self._kept, values]) if len(self._kept) else values
        while len(kept) >= self._need:
            leaf, kept = kept[: self._need], kept[self._need :]
            try:
                self._need = self._tree.send(leaf)
            except StopIteration as end:
                self.total = end.value
                return
        self._kept = kept.copy()  # not a view, which would keep the whole block


def _pairwise(n: int) -> Generator[int, np.ndarray, float]:
    """Sum n numbers pairwise: yield the size of each leaf in order, and receive its numbers."""
    if n <= LEAF:
        return float(np.add.reduce((yield n)))
    half = n // 2
    half -= half % 8
    left = yield from _pairwise(half)
    right = yield from _pairwise(n - half)
    return left + right

"""Binarise grey values, and convert stored values to the values that are measured.

Every random choice is addressed: it depends on a seed, on its purpose (the streams of `sampling`)
and on the row concerned, never on earlier draws.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from iwae.data.dataset import Dataset, test_sha256
from iwae.data.kinds import KINDS
from iwae.data.rows import ALL, Examples, Index, convert_rows, row_subset, rows_in_memory
from iwae.data.sampling import TEST_DRAW, sampling_generator
from iwae.data.scaling import Scaling
from iwae.errors import UserError

BINARIZATIONS = ("dynamic", "static", "threshold", "none")
OBSERVATIONS = tuple(KINDS)

FIXED = {
    "none": "its values are measured as they are stored",
    "static": "it is binarised once, for training and testing (static)",
    "threshold": "it is binarised by a threshold, not by chance",
}
"""The reason why a test set has a single draw, by its binarisation."""


def resolve(values: str, observation: str | None, binarization: str | None) -> tuple[str, str]:
    """The observation and binarisation for a kind of values; rejects contradictory choices.

    ========  =============  =================================================
    values    observation    binarisation
    ========  =============  =================================================
    binary    bernoulli      none (static and threshold have no effect)
    grey      bernoulli      dynamic (or static, threshold)
    real      gaussian       none
    any       any other      none
    ========  =============  =================================================
    """
    for name, value, known in (
        ("observation", observation, OBSERVATIONS),
        ("binarization", binarization, BINARIZATIONS),
    ):
        if value is not None and value not in known:
            raise UserError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    if values == "real" and observation == "bernoulli":
        raise UserError(
            "these data are not bernoulli: they are real values, not 0/1, bytes (uint8) or within "
            "[0, 1]: use observation 'gaussian', or rescale them (grey levels: divide by 255)"
        )
    observation = observation or ("gaussian" if values == "real" else "bernoulli")
    if observation != "bernoulli":
        if binarization not in (None, "none"):
            raise UserError(
                f"binarization {binarization!r} contradicts observation {observation!r}: use 'none'"
                + ("" if values == "real" else ", or observation 'bernoulli'")
            )
        return observation, "none"
    if values == "binary":
        if binarization == "dynamic":
            raise UserError("these data are already binary: use binarization 'none', not 'dynamic'")
        return observation, "none"
    if binarization == "none":
        raise UserError(
            "a Bernoulli likelihood of grey values is not a density: binarise them ('dynamic', "
            "'static' or 'threshold'), or use binarization 'none' with observation 'gaussian'"
        )
    return observation, binarization or "dynamic"


def binarise_at_random(
    grey: np.ndarray, rows: np.ndarray | None = None, *, seed: int, stream: int
) -> np.ndarray:
    """0/1 uint8 draws with probabilities `grey` (uint8 / 255, or float in [0, 1]), `[n, d]`.

    Pixel (row, column) has its own uniform number, whichever rows are drawn together.

    Args:
        rows: number of each row of `grey` in the whole array, `[n]`; counted from 0 if None.
    """
    rows = np.arange(len(grey)) if rows is None else rows
    width = grey.shape[1]
    uniform = sampling_generator(seed, stream)
    start = uniform.bit_generator.state
    drawn = np.empty((len(rows), width), np.uint8)
    for run in _consecutive(rows):
        uniform.bit_generator.state = start
        uniform.bit_generator.advance(int(rows[run.start]) * width)  # type: ignore[attr-defined]
        drawn[run] = uniform.random((run.stop - run.start, width)) < _ink(grey[run])
    return drawn


def _consecutive(rows: np.ndarray, longest: int = 1024) -> Iterator[slice]:
    """Slices of consecutive entries of `rows`, limited in length: one generator jump for each."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(rows)], strict=True):
        for first in range(start, stop, longest):
            yield slice(first, min(first + longest, stop))


def _ink(grey: np.ndarray, dtype: type[np.floating] = np.float64) -> np.ndarray:
    """Ink probabilities: bytes / 255; floats are probabilities already."""
    if grey.dtype == np.uint8:
        return np.divide(grey, 255, dtype=dtype)
    return grey.astype(dtype)


class Conversion(NamedTuple):
    """The conversion of stored values (see `splits.Raw`) to the values that are measured."""

    values: str
    observation: str
    binarization: str
    seed: int
    scaling: Scaling | None

    def __call__(self, array: Examples, stream: int, rows: Index = ALL) -> Examples:
        """Rows as they are measured: 0/1 uint8, float32 for Gaussian kinds, or as stored."""
        if self.binarization in ("dynamic", "static"):
            draw = partial(binarise_at_random, seed=self.seed, stream=stream)
            return convert_rows(array, draw, np.uint8, rows=rows)
        if self.binarization == "threshold":
            # Bytes from 128 up are above one half: 127 / 255 < 0.5 < 128 / 255.
            half = 127 if array.dtype == np.uint8 else 0.5
            return convert_rows(
                array, lambda block, _: (block > half).astype(np.uint8), np.uint8, rows=rows
            )
        if (scaling := self.scaling) is not None:
            return convert_rows(
                array, lambda block, _: scaling.inwards(block), np.float32, rows=rows
            )
        as_bytes = self.observation == "bernoulli" or KINDS[self.observation].as_stored
        is_grey = self.values == "grey"
        if (array.dtype == np.uint8 and as_bytes) or (array.dtype == np.float32 and not is_grey):
            return row_subset(array, rows)
        unit = _ink if is_grey else np.ndarray.astype
        return convert_rows(array, lambda block, _: unit(block, np.float32), np.float32, rows=rows)


def redraw_binarisation(dataset: Dataset, number: int) -> Dataset:
    """The data set with draw `number` of its test pixels; draw 0 is its own.

    Draw i has the binarisation seed of the data set plus i, so that it can be loaded as any other.

    Raises:
        UserError: if the test set has a single draw.
    """
    if dataset.grey_test is None or dataset.binarization in FIXED:
        raise UserError(
            f"the test set of {dataset.name} has no other draws: {FIXED[dataset.binarization]}; "
            "leave out binarizations"
        )
    if number == 0:
        return dataset
    seed = dataset.identity["binarization_seed"] + number
    draw = partial(binarise_at_random, seed=seed, stream=TEST_DRAW)
    lazy = convert_rows(dataset.grey_test, draw, np.uint8)
    test: Examples = lazy if dataset.is_streamed else rows_in_memory(lazy)
    if isinstance(test, np.ndarray):
        test.setflags(write=False)
    identity = {**dataset.identity, "binarization_seed": seed, "test_sha256": test_sha256(test)}
    return replace(dataset, test=test, identity=identity)

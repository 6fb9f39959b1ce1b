"""Other draws of the pixels of a test set that is binarised by chance."""

from dataclasses import replace
from functools import partial

import numpy as np

from iwae.data.rows import Examples, converted, kept
from iwae.data.sampling import TEST_DRAW
from iwae.data.splits import Dataset, bernoulli, test_sha256
from iwae.errors import UserError

FIXED = {
    "none": "its values are measured as they are stored",
    "static": "it is binarised once, for training and testing (static)",
    "threshold": "it is binarised by a threshold, not by chance",
}
"""Why a test set has one draw only, by the binarisation."""


def redrawn(dataset: Dataset, number: int) -> Dataset:
    """The data set with draw `number` of its test pixels; draw 0 is the one that it has.

    Draw i is that of the binarisation seed plus i, so that it can be loaded as any other.

    Raises:
        UserError: if its test set has one draw only.
    """
    if dataset.grey_test is None or dataset.binarization in FIXED:
        raise UserError(
            f"the test set of {dataset.name} has no other draws: {FIXED[dataset.binarization]}; "
            "leave out binarizations"
        )
    if number == 0:
        return dataset
    seed = dataset.identity["binarization_seed"] + number
    draw = partial(bernoulli, seed=seed, stream=TEST_DRAW)
    lazy = converted(dataset.grey_test, draw, np.uint8)
    test: Examples = lazy if dataset.is_streamed else kept(lazy)
    if isinstance(test, np.ndarray):
        test.setflags(write=False)
    identity = {**dataset.identity, "binarization_seed": seed, "test_sha256": test_sha256(test)}
    return replace(dataset, test=test, identity=identity)

"""Other draws of the pixels of a test set that is binarised by chance."""

from dataclasses import replace

from iwae.data.splits import TEST_DRAW, Dataset, bernoulli, test_sha256
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
    test = bernoulli(dataset.grey_test, seed=seed, stream=TEST_DRAW)
    test.setflags(write=False)
    identity = {**dataset.identity, "binarization_seed": seed, "test_sha256": test_sha256(test)}
    return replace(dataset, test=test, identity=identity)

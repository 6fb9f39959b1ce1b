"""A data set as the rest of the program sees it: three splits, their labels and their identity."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from iwae.data.columns import Column
from iwae.data.grey_levels import are_grey_bytes
from iwae.data.kinds import BERNOULLI, Kind
from iwae.data.rows import Examples, Rows, convert_rows, row_blocks, rows_in_memory
from iwae.data.scaling import Scaling
from iwae.errors import UserError


class Labels(NamedTuple):
    """The label of each example of a split, `[n]`: an index into `Dataset.classes`."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __call__(self, split: str) -> np.ndarray:
        """The labels of a split by its name."""
        return getattr(self, split)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in three splits, whose validation and test examples are binarised once.

    `train` is uint8 `[n, d]`: grey 0..255 if it is binarised afresh at every access (`dynamic`),
    else 0/1; or float32: real values, or ink probabilities that bytes cannot represent exactly.
    `validation` and `test` are 0/1 (uint8) for Bernoulli observations, float32 for Gaussian ones.
    Levels, counts, categories and tables are as stored in all three, uint8 or float32. Arrays with
    missing values (NaN) are float32. `draw` turns a row of any of them into a model's input. The
    arrays are read-only. Splits of streamed data are `rows.Rows` instead, which read and convert
    rows on demand.

    With a `scaling`, real values are standardised in all three: `scaling.outwards` gives them in
    the units of the data, and a model needs `log_scale=data.log_scale` for densities in these.

    If labels were requested, they are in `labels`, and `examples` has both.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    shape: tuple[int, ...]  # of one example; d is its product
    observation: str  # the name of `kind`
    binarization: str
    identity: dict[str, Any]  # JSON-able: all that the results depend on
    train_mean: np.ndarray  # of the training rows, float64 [d], in a model's units (pixels: [0, 1])
    log_density: Callable[[np.ndarray], np.ndarray] | None = field(default=None, repr=False)
    kind: Kind = BERNOULLI
    classes: tuple[str, ...] = ()  # names of the labels 0, 1, ...; empty if there are none
    columns: tuple[Column, ...] = ()  # of a table that names them
    scaling: Scaling | None = None  # of the values, if they are standardised
    given_labels: Labels | None = field(default=None, repr=False)
    grey_test: Examples | None = field(default=None, repr=False)  # [n, d] before binarisation
    remarks: tuple[str, ...] = ()  # on how the data were read, for a person

    @property
    def log_scale(self) -> np.ndarray | None:
        """log |d data / d model| of each value, `[d]`; None if values are not standardised."""
        return None if self.scaling is None else self.scaling.log_scale

    def outwards(self, rows: np.ndarray) -> np.ndarray:
        """Rows `[..., d]` (no labels) in the units of the data, from those of a model."""
        return rows if self.scaling is None else self.scaling.outwards(rows)

    @property
    def n_values(self) -> int:
        """The number of values of an example, d, without its label."""
        return math.prod(self.shape)

    @property
    def labels(self) -> Labels:
        """The labels of the splits, such as `labels.test` `[n]`: indices into `classes`."""
        if self.given_labels is None:
            raise UserError(
                f"{self.name} was loaded without labels: use load_dataset(..., labels=True)"
            )
        return self.given_labels

    @property
    def is_streamed(self) -> bool:
        """Whether rows are read on demand instead of kept in memory."""
        return isinstance(self.train, Rows)

    def examples(self, split: str) -> Examples:
        """The examples of a split as a model takes them, in the units of the split.

        These are its rows `[n, d]` or, with labels, `[n, d + C]` for a conditional model: each row
        is followed by its label, one-hot over the C `classes`, with 255 for the one if the row
        holds bytes to be binarised.
        """
        rows: Examples = getattr(self, split)
        if self.given_labels is None:
            return rows
        one_hot, labels = np.eye(len(self.classes), dtype=rows.dtype), self.given_labels(split)
        one_hot *= 255 if split == "train" and are_grey_bytes(rows, self.binarization) else 1
        width = rows.shape[1] + len(self.classes)

        def labelled(values: np.ndarray, places: np.ndarray) -> np.ndarray:
            return np.concatenate([values, one_hot[labels[places]]], axis=1)

        found = convert_rows(rows, labelled, rows.dtype, row_shape=(width,))
        return found if self.is_streamed else rows_in_memory(found)


def test_sha256(array: Examples) -> str:
    """SHA-256 of an array's dtype, shape and values: equal if and only if the tensors are."""
    dtype = array.dtype.newbyteorder("<")
    digest = hashlib.sha256(f"{dtype.str}{array.shape}".encode())
    for _, block in row_blocks(array):
        digest.update(np.ascontiguousarray(block, dtype).data)
    return digest.hexdigest()


test_sha256.__test__ = False  # type: ignore[attr-defined]  # keeps pytest from collecting it

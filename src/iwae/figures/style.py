"""What all figures share: resolution, fonts, colours, and the check of what they are given."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from iwae._types import UserError

Numbers: TypeAlias = np.ndarray | Sequence[float | int]

DPI = 150
SMALL, NORMAL = 8, 9  # font sizes, points
INK, FAINT, GREY, PALE = "#222222", "#8a8a8a", "#b4b4b4", "#e8e8e8"
# Okabe and Ito's colours, which people with any common colour blindness tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def checked(values: object, name: str, axes: str) -> Float[np.ndarray, "..."]:
    """The values as float64 with the named axes ("n h w"), not empty and all finite."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} must be an array of numbers, but its type is {array.dtype}")
    if array.ndim != len(axes.split()):
        wanted = axes.replace(" ", ", ")
        raise UserError(f"{name} must have the axes [{wanted}], but its shape is {array.shape}")
    if array.size == 0:
        raise UserError(f"{name} is empty: its shape is {array.shape}")
    array = array.astype(np.float64)
    broken = np.count_nonzero(~np.isfinite(array))
    if broken:
        raise UserError(f"{name} has {broken} of {array.size} values that are NaN or infinite")
    return array


def same_shape(first: np.ndarray, second: np.ndarray, names: str) -> None:
    """Refuse two arrays of different shapes."""
    if first.shape != second.shape:
        raise UserError(
            f"{names} must have the same shape, but have {first.shape} and {second.shape}"
        )

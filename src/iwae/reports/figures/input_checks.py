"""Checks of the arrays that figures are given."""

import numpy as np
from jaxtyping import Float

from iwae.errors import UserError


def checked_input(values: object, name: str, axes: str | None = None) -> Float[np.ndarray, "..."]:
    """The values as a float64 array, non-empty and finite, with the axes if named ("n h w")."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} must be an array of numbers, but its type is {array.dtype}")
    if axes is not None and array.ndim != len(axes.split()):
        wanted = axes.replace(" ", ", ")
        raise UserError(f"{name} must have the axes [{wanted}], but its shape is {array.shape}")
    if array.size == 0:
        raise UserError(f"{name} is empty: its shape is {array.shape}")
    array = array.astype(np.float64)
    broken = np.count_nonzero(~np.isfinite(array))
    if broken:
        raise UserError(f"{name} has {broken} of {array.size} values that are NaN or infinite")
    return array


def check_figure_input_shapes(first: np.ndarray, second: np.ndarray, names: str) -> None:
    """Raise UserError for two arrays of different shapes."""
    if first.shape != second.shape:
        raise UserError(
            f"{names} must have the same shape, but have {first.shape} and {second.shape}"
        )

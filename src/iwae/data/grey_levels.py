"""Grey levels: as bytes and as colour."""

import numpy as np

from iwae.data.rows import Examples


def are_exact_grey_levels(grey: np.ndarray) -> bool:
    """Whether grey float32 in [0, 1] is exact as uint8 0..255."""
    return np.array_equal(_byte_levels(grey) / np.float32(255), grey)


def grey_to_bytes(grey: np.ndarray) -> np.ndarray:
    """Grey float32 in [0, 1] as uint8 0..255 if that is exact, else unchanged."""
    return _byte_levels(grey).astype(np.uint8) if are_exact_grey_levels(grey) else grey


def _byte_levels(grey: np.ndarray) -> np.ndarray:
    return np.rint(grey * np.float32(255))


def are_grey_bytes(train: Examples, binarization: str) -> bool:
    """Whether training rows are bytes that are binarised afresh at every access."""
    return train.dtype == np.uint8 and binarization == "dynamic"


def grey_to_colour(grey: np.ndarray) -> np.ndarray:
    """Grey pixels `[..., h, w]` as three equal channels `[..., h, w, 3]`."""
    return np.repeat(grey[..., None], 3, axis=-1)

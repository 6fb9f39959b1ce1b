"""Saving figures and animations, atomically and with reproducible bytes."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from iwae.errors import UserError
from iwae.files import atomic_write

# Omit dates, versions and random identifiers.
_METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}
# `savefig` has no arguments for two settings; the lock protects them from other threads.
_settings_lock = threading.RLock()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as .png, .pdf or .svg, atomically; the same figure gives the same bytes."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _METADATA:
        raise UserError(f"cannot save a figure as '{path.name}': end it in .png, .pdf or .svg")
    with (
        atomic_write(path, parents=False) as temporary,
        _settings_lock,
        mpl.rc_context({"svg.hashsalt": "iwae", "savefig.bbox": "standard"}),
    ):
        figure.savefig(temporary, format=suffix[1:], dpi="figure", metadata=_METADATA[suffix])


def save_animation(frames: Sequence[np.ndarray], path: str | os.PathLike[str]) -> None:
    """Write frames, uint8 [height, width, 3] of one shape, as a looping .gif, atomically.

    Each frame lasts 0.3 seconds, and the last one two. A frame that equals the one before is not
    stored again; the earlier one lasts longer instead.
    """
    from PIL import Image

    times = [300] * (len(frames) - 1) + [2000]  # milliseconds
    first, *others = [Image.fromarray(frame) for frame in frames]
    with atomic_write(Path(path), parents=False) as temporary:
        first.save(
            temporary, format="GIF", save_all=True, append_images=others, duration=times, loop=0
        )

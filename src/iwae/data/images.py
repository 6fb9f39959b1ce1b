"""Read a folder of images: one array of bytes, with labels from sub-folders."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from iwae.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


class Images(NamedTuple):
    """The images of a folder.

    Attributes:
        pixels: `[n, h, w]` if all are grey, else `[n, h, w, 3]`, uint8.
        labels: `[n]`, the names of the sub-folders; None if there are none.
        ids: `[n]`, the paths of the files in the folder.
        sha256: a digest of the names and the content of all files.
        remarks: how images of several modes were made alike, as lines for a person.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    ids: np.ndarray
    sha256: str
    remarks: tuple[str, ...] = ()


def read_images(folder: Path, resize: int | Sequence[int] | None = None) -> Images:
    """Read the PNG and JPEG files of a folder, or of its sub-folders, whose names are labels.

    They are turned as their EXIF orientation says.

    Args:
        folder: path of the folder; hidden files are ignored.
        resize: height and width of the images, or one number for both, by area-preserving
            (antialiased) bilinear interpolation; None if all have one size.

    Raises:
        UserError: if there are no images, some cannot be read, or their sizes differ.
    """
    size, paths = _size(resize), _files(folder)
    inside = {path.parent == folder for path in paths}
    if len(inside) > 1:
        raise UserError(
            f"{folder} holds images beside sub-folders of images: move them into one, or apart"
        )
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    read = [_pixels(path, size) for path in paths]
    arrays, modes = [array for array, _ in read], [mode for _, mode in read]
    if not all(array.ndim == 2 for array in arrays):
        arrays = [one if one.ndim == 3 else in_colour(one) for one in arrays]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise UserError(
                f"{path} has {array.shape[0]} x {array.shape[1]} pixels, but {paths[0].name} "
                f"{arrays[0].shape[0]} x {arrays[0].shape[1]}: give all one size (--resize 28)"
            )
    ids = np.array([path.relative_to(folder).as_posix() for path in paths], object)
    labels = None if inside == {True} else np.array([path.parent.name for path in paths])
    return Images(np.stack(arrays), labels, ids, digest.hexdigest(), _remarks(modes, ids))


def in_colour(grey: np.ndarray) -> np.ndarray:
    """Grey pixels `[..., h, w]` as three equal channels `[..., h, w, 3]`."""
    return np.repeat(grey[..., None], 3, axis=-1)


def _remarks(modes: Sequence[str], ids: np.ndarray) -> tuple[str, ...]:
    """A line if images of several modes, or with palettes, were made alike."""
    first = {_MODES[mode]: str(ids[modes.index(mode)]) for mode in reversed(modes)}
    if first.keys() in ({"are grey"}, {"are in colour"}):
        return ()
    counts = Counter(_MODES[mode] for mode in modes)
    kinds = ", ".join(f"{count:,} {kind} (such as {first[kind]})" for kind, count in counts.items())
    taken = "colour" if {"RGB", "P"} & {*modes} else "grey"
    return (f"images: {kinds}; all are read as {taken}",)


def _files(folder: Path) -> list[Path]:
    """The image files of a folder and its sub-folders, in the order of their names."""
    found = sorted(path for path in _visible(folder) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(
            f"{folder} holds no images ({', '.join(SUFFIXES)}), in it or in its sub-folders"
        )
    return found


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from (one for one in path.iterdir() if not one.name.startswith("."))
        else:
            yield path


def _size(resize: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width."""
    if resize is None:
        return None
    size = (resize, resize) if isinstance(resize, int) else tuple(resize) * (3 - len(resize))
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"resize must be one or two positive numbers of pixels, not {resize!r}")
    return size


_MODES = {
    "L": "are grey",
    "1": "are black and white",
    "RGB": "are in colour",
    "P": "have a palette",
}
"""Modes that are read, and what they are called."""


def _pixels(path: Path, size: tuple[int, int] | None) -> tuple[np.ndarray, str]:
    """The pixels of a file, grey `[h, w]` or colour `[h, w, 3]`, and its mode."""
    try:
        with Image.open(path) as image:
            if image.mode not in _MODES or "transparency" in image.info:
                found = f"the mode {image.mode}" if image.mode not in _MODES else "transparency"
                raise UserError(
                    f"{path} has {found}: save grey or colour images of 8 bits, without "
                    "transparency"
                )
            upright = ImageOps.exif_transpose(image)  # cameras note how they were held
            plain = upright.convert("L" if image.mode in ("L", "1") else "RGB")
            if size is not None:
                plain = plain.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(plain, np.uint8), image.mode
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no image that can be read: {reason}") from None

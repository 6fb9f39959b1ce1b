"""Read a folder of images as one array of bytes, with labels from sub-folders."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from iwae.data.grey_levels import grey_to_colour
from iwae.errors import UserError
from iwae.wording import first_error_line

SUFFIXES = (".png", ".jpg", ".jpeg")


class Images(NamedTuple):
    """The images of a folder.

    Attributes:
        pixels: `[n, h, w]` if all are grey, else `[n, h, w, 3]`, uint8.
        labels: `[n]`, the names of the sub-folders; None if there are none.
        ids: `[n]`, the paths of the files in the folder.
        sha256: a digest of the names and the content of all files.
        remarks: how images of several modes were converted, as lines.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    ids: np.ndarray
    sha256: str
    remarks: tuple[str, ...] = ()


def read_images(folder: Path, resize: int | Sequence[int] | None = None) -> Images:
    """Read the PNG and JPEG files of a folder, or of its sub-folders, whose names are labels.

    Images are rotated by their EXIF orientation.

    Args:
        folder: path of the folder; hidden files are ignored.
        resize: height and width of the images, or one number for both, by area-preserving
            (antialiased) bilinear interpolation; None if all have one size.

    Raises:
        UserError: if there are no images, some cannot be read, or their sizes differ.
    """
    size, paths = _size(resize), _image_files(folder)
    inside = {path.parent == folder for path in paths}
    if len(inside) > 1:
        raise UserError(
            f"{folder} holds images beside sub-folders of images: move them into one, or apart"
        )
    ids = [path.relative_to(folder).as_posix() for path in paths]
    digest = hashlib.sha256()
    for path, name in zip(paths, ids, strict=True):
        digest.update(f"{name}\n".encode() + path.read_bytes())
    read = [_read_image(path, size) for path in paths]
    arrays, modes = [array for array, _ in read], [mode for _, mode in read]
    if not all(array.ndim == 2 for array in arrays):
        arrays = [one if one.ndim == 3 else grey_to_colour(one) for one in arrays]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise UserError(
                f"{path} has {array.shape[0]} x {array.shape[1]} pixels, but {paths[0].name} "
                f"{arrays[0].shape[0]} x {arrays[0].shape[1]}: give all one size (--resize 28)"
            )
    labels = None if inside == {True} else np.array([path.parent.name for path in paths])
    remarks = _remarks(modes, ids)
    return Images(np.stack(arrays), labels, np.array(ids, object), digest.hexdigest(), remarks)


def _remarks(modes: Sequence[str], ids: Sequence[str]) -> tuple[str, ...]:
    """A line on the conversion of images of several modes, or with palettes."""
    first = {_MODES[mode]: ids[modes.index(mode)] for mode in reversed(modes)}
    if first.keys() in ({"are grey"}, {"are in colour"}):
        return ()
    counts = Counter(_MODES[mode] for mode in modes)
    kinds = ", ".join(f"{count:,} {kind} (such as {first[kind]})" for kind, count in counts.items())
    taken = "colour" if {"RGB", "P"} & {*modes} else "grey"
    return (f"images: {kinds}; all are read as {taken}",)


def _image_files(folder: Path) -> list[Path]:
    """The image files of a folder and its sub-folders, in order of their names."""
    found = sorted(path for path in _visible(folder) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(
            f"{folder} holds no images ({', '.join(SUFFIXES)}), in it or in its sub-folders"
        )
    return found


def _visible(folder: Path) -> Iterator[Path]:
    """The files of a folder and its sub-folders, except hidden ones."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from (one for one in path.iterdir() if not one.name.startswith("."))
        else:
            yield path


def _size(resize: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width; None if images keep their size."""
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
"""The modes that are read, in words."""


def _read_image(path: Path, size: tuple[int, int] | None) -> tuple[np.ndarray, str]:
    """The pixels of a file, grey `[h, w]` or colour `[h, w, 3]`, and its mode."""
    try:
        with Image.open(path) as image:
            if image.mode not in _MODES or "transparency" in image.info:
                found = f"the mode {image.mode}" if image.mode not in _MODES else "transparency"
                raise UserError(
                    f"{path} has {found}: save grey or colour images of 8 bits, without "
                    "transparency"
                )
            upright = ImageOps.exif_transpose(image)  # cameras store their orientation
            plain = upright.convert("L" if image.mode in ("L", "1") else "RGB")
            if size is not None:
                plain = plain.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(plain, np.uint8), image.mode
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as an image: {first_error_line(error)}") from None

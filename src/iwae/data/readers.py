"""Readers of published file formats: gzip, idx (MNIST), amat (static MNIST), mat (OMNIGLOT).

A reader takes the unpacked bytes of one file and the shapes that its splits must have. It returns
one array `[n, d]` per split: uint8 0..255 (grey), uint8 0/1 (binary), or float32 in [0, 1] (grey
that bytes cannot represent exactly). Other content is a `DamagedError` with the reason.
"""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Mapping

import numpy as np

from iwae.data.grey_levels import grey_to_bytes

Shapes = Mapping[str, tuple[int, ...]]
Splits = dict[str, np.ndarray]


class DamagedError(Exception):
    """Unexpected content of a file; the message is the reason, without the name of the file."""


def unpack(packed: bytes) -> bytes:
    """The content of a file, decompressed if its first bytes mark it as gzip, whatever its name."""
    if not packed:
        raise DamagedError("the file is empty")
    if not packed.startswith(b"\x1f\x8b"):
        return packed
    try:
        return gzip.decompress(packed)
    except EOFError:
        raise DamagedError("truncated: the gzip stream ends too early") from None
    except (OSError, zlib.error, struct.error) as error:
        raise DamagedError(f"corrupt gzip: {error}") from None


def _only(shapes: Shapes) -> tuple[str, tuple[int, ...]]:
    """The name and shape of the only split in a file."""
    ((split, shape),) = shapes.items()
    return split, shape


def read_idx_images(content: bytes, shapes: Shapes) -> Splits:
    """Grey images `[n, h * w]`, uint8, from an idx3-ubyte file (big-endian header of 16 bytes).

    Source: http://yann.lecun.com/exdb/mnist/, "File formats".
    """
    split, shape = _only(shapes)
    if content[:4] == b"\x00\x00\x08\x01":
        raise DamagedError("an idx file of labels, not of images")
    if content[:4] != b"\x00\x00\x08\x03":
        raise DamagedError(
            f"not an idx file of images: starts with 0x{content[:4].hex()}, not 0x00000803"
        )
    if len(content) < 16:
        raise DamagedError(f"truncated: {len(content)} bytes, less than the 16-byte header")
    found = struct.unpack(">iii", content[4:16])
    if found != shape:
        raise DamagedError(f"holds images of shape {_times(found)}, not {_times(shape)}")
    size, expected = len(content) - 16, math.prod(shape)
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise DamagedError(f"{what}: {size:,} bytes of pixels, not {expected:,}")
    pixels = np.frombuffer(content, np.uint8, offset=16)
    return {split: pixels.reshape(shape[0], -1)}


def read_idx_labels(content: bytes, shapes: Shapes) -> Splits:
    """Labels `[n]`, uint8, from an idx1-ubyte file (big-endian header of 8 bytes)."""
    split, (count,) = _only(shapes)
    if content[:4] != b"\x00\x00\x08\x01":
        raise DamagedError(
            f"not an idx file of labels: starts with 0x{content[:4].hex()}, not 0x00000801"
        )
    if len(content) != 8 + count or struct.unpack(">i", content[4:8]) != (count,):
        raise DamagedError(f"holds {len(content) - 8:,} labels, not {count:,}")
    labels = np.frombuffer(content, np.uint8, offset=8)
    if labels.max() > 9:
        raise DamagedError(f"holds the label {labels.max()}, not 0 to 9")
    return {split: labels}


def read_amat(content: bytes, shapes: Shapes) -> Splits:
    """Binary images `[n, d]`, uint8, from text with one image per line and 0 or 1 for each pixel.

    The published layout (one digit, one separator) is read in one pass over 16-bit words; other
    white space (tabs, CRLF, trailing blanks) is read more slowly into the same array.
    """
    split, (count, *dims) = _only(shapes)
    width = math.prod(dims)
    data = _amat_words(content, width)
    if data is None:
        data = _amat_lines(content, width)
    if len(data) != count:
        what = "truncated" if len(data) < count else "too long"
        raise DamagedError(f"{what}: {len(data):,} rows, not {count:,}")
    return {split: data}


def _amat_words(content: bytes, width: int) -> np.ndarray | None:
    """Read the published layout, digits separated by one blank; None for another layout."""
    if len(content) % (2 * width):
        return None
    words = np.frombuffer(content, "<u2").reshape(-1, width)
    # A word is digit + 256 * separator. Subtracting "0" and its separator leaves 0 or 1; a smaller
    # byte wraps round to a large number, so that one comparison detects every deviation.
    zero = np.full(width, ord("0") + 256 * ord(" "), np.uint16)
    zero[-1] = ord("0") + 256 * ord("\n")
    data = np.empty(words.shape, np.uint8)
    for start in range(0, len(words), 4096):
        digits = words[start : start + 4096] - zero
        if digits.max() > 1:
            return None
        data[start : start + 4096] = digits
    return data


def _amat_lines(content: bytes, width: int) -> np.ndarray:
    """Read digits separated by any white space; an error names the line."""
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != width:
            raise DamagedError(f"line {number} has {len(cells)} values, not {width}")
        digits = b"".join(cells)
        row = np.frombuffer(digits, np.uint8) - ord("0")
        if len(digits) != width or row.max() > 1:
            column, cell = next((i, c) for i, c in enumerate(cells, 1) if c not in (b"0", b"1"))
            text = cell[:20].decode("latin-1")
            raise DamagedError(f"line {number}, value {column} is {text!r}, not 0 or 1")
        rows.append(row)
    return np.array(rows, np.uint8).reshape(-1, width)


ALPHABETS = 50
"""The number of rows of OMNIGLOT's `target`."""


def read_omniglot_mat(content: bytes, shapes: Shapes) -> Splits:
    """Upright OMNIGLOT images, row-major `[n, 784]`, from `chardata.mat` or `omniglot28.mat`.

    The file has one image per column, and a column's pixels run down the image (MATLAB's order).
    """
    keys = {"train": "data", "test": "testdata"}
    matrices = _matrices(content, {keys[one]: (h * w, n) for one, (n, h, w) in shapes.items()})
    found = {}
    for split, (count, height, width) in shapes.items():
        matrix = matrices[keys[split]]
        # `not (...)` rather than `<` and `>`, so that NaN is refused too.
        if not (matrix.min() >= 0 and matrix.max() <= 1):
            raise DamagedError(f"{keys[split]!r} has values outside [0, 1]")
        rows = grey_to_bytes(np.ascontiguousarray(matrix.T, np.float32))
        upright = rows.reshape(count, width, height).transpose(0, 2, 1)
        found[split] = upright.reshape(count, -1)
    return found


def read_omniglot_labels(content: bytes, shapes: Shapes) -> Splits:
    """The alphabet of each image, `[n]` from 0, from `target` (one-hot) in the same files."""
    keys = {"train": "target", "test": "testtarget"}
    matrices = _matrices(content, {keys[one]: (ALPHABETS, n) for one, (n,) in shapes.items()})
    for key, matrix in matrices.items():
        if not (((matrix == 0) | (matrix == 1)).all() and (matrix.sum(axis=0) == 1).all()):
            raise DamagedError(f"{key!r} is not one-hot for each image")
    return {split: matrices[keys[split]].argmax(axis=0) for split in shapes}


def _matrices(content: bytes, shapes: Shapes) -> dict[str, np.ndarray]:
    """The named matrices of a MATLAB 5 file, which must be numbers of these shapes."""
    import scipy.io

    try:
        matrices = scipy.io.loadmat(io.BytesIO(content), variable_names=list(shapes))
    except MemoryError:
        raise
    except Exception as error:  # scipy raises a dozen types for a bad file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedError(f"truncated, corrupt, or not a MATLAB 5 file ({reason})") from None
    for key, shape in shapes.items():
        matrix = matrices.get(key)
        if matrix is None:
            raise DamagedError(f"has no variable {key!r}")
        if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "fiub":
            raise DamagedError(f"{key!r} is not an array of numbers")
        if matrix.shape != shape:
            raise DamagedError(f"{key!r} is {_times(matrix.shape)}, not {_times(shape)}")
    return {key: matrices[key] for key in shapes}


ONLY_PUBLISHED = (read_omniglot_mat, read_omniglot_labels)
"""Readers that may crash on a damaged file, so that a known checksum is compared first."""


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))

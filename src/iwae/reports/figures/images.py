"""Figures of images and filters: sheets of tiles, sharp at any size.

Images are grey, [n, h, w], or in colour, [n, h, w, 3]. Each pixel of an image becomes a square of
whole pixels, so that no pixel is blurred or uneven.
"""

import math
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from iwae.errors import UserError
from iwae.reports.figures.input_checks import check_figure_input_shapes, checked_input
from iwae.reports.figures.style import DPI, INK, NORMAL, SMALL, Numbers

# Pixels of the page.
GUTTER, GAP, MARGIN, TITLE = 2, 27, 15, 30
PAGE, TILE, LONGEST_SIDE = 1200, 160, 20_000
# The colour between tiles: neither black nor white, which are common at the edges of images.
FRAME = (128, 128, 128)
UNUSED = (216, 216, 216)  # colour of weights for pixels that do not vary


def image_grid(
    images: np.ndarray, *, columns: int | None = None, title: str | None = None
) -> Figure:
    """Images [n, h, w] in [0, 1] in a grid, row by row; by default nearly square."""
    return _grid_sheet(_tiles(images, "images"), columns, title or "").figure


def samples(means: np.ndarray, draws: np.ndarray) -> Figure:
    """Prior samples [n, h, w] in [0, 1]: the decoder's means on the left, draws on the right."""
    left, right = _tiles(means, "means"), _tiles(draws, "draws")
    check_figure_input_shapes(left, right, "means and draws")
    columns = _n_columns(left, None, side_by_side=2)
    row, column = np.divmod(np.arange(len(left)), columns)
    sheet = _sheet(
        np.concatenate([left, right]),
        np.concatenate([row, row]),
        np.concatenate([column, column + columns]),
        columns_apart=columns,
        top=TITLE,
    )
    for start, title in zip(sheet.lefts[::columns], ("means", "draws"), strict=True):
        _write_on_sheet(sheet, title, int(start), -8, ha="left")
    return sheet.figure


def reconstructions(
    originals: np.ndarray,
    reconstructions: np.ndarray,
    *,
    inputs: np.ndarray | None = None,
    columns: int | None = None,
) -> Figure:
    """Images [n, h, w] in [0, 1] in groups of rows: data above, reconstructions below.

    Between them are the model's inputs, if these differ from the data, as binarised pixels do.
    """
    rows = {"data": (originals, "originals")}
    rows |= {} if inputs is None else {"input": (inputs, "inputs")}
    rows |= {"model": (reconstructions, "reconstructions")}
    tiles = [_tiles(*row) for row in rows.values()]
    for row, (_, name) in zip(tiles, rows.values(), strict=True):
        check_figure_input_shapes(tiles[0], row, f"originals and {name}")
    return _row_sheet(np.stack(tiles), [*rows], 10 if columns is None else columns).figure


def training_strip(
    frames: np.ndarray, epochs: Numbers, *, data: np.ndarray | None = None
) -> Figure:
    """The same n images through training, frames [t, n, h, w] in [0, 1]: a row per epoch [t].

    The first row shows the data [n, h, w] that they reconstruct, if given.
    """
    course, (first, *labels) = _frame_tiles(frames, epochs)
    labels = [f"epoch {first}", *labels]
    if data is not None:
        course = np.concatenate([_data_tiles(data, course)[None], course])
        labels = ["data", *labels]
    return _row_sheet(course, labels).figure


def labelled_rows(images: np.ndarray, labels: Sequence[str]) -> Figure:
    """Images [t, n, h, w] in [0, 1]: a row for each of t labels."""
    return _row_sheet(_tiles(images, "images", "t n h w"), list(labels)).figure


def training_frames(
    frames: np.ndarray, epochs: Numbers, *, data: np.ndarray | None = None
) -> list[np.ndarray]:
    """The rows of `training_strip` as uint8 pictures [height, width, 3] for `save_animation`.

    With data [n, h, w], each image is below the one that it reconstructs.
    """
    course, labels = _frame_tiles(frames, epochs)
    titles = [f"epoch {label}" for label in labels]
    # All frames fit the longest title, so that they have the same size.
    widest = max(titles, key=_text_width)
    above = None if data is None else _data_tiles(data, course)
    pictures = []
    for tiles, title in zip(course, titles, strict=True):
        if above is None:
            sheet = _grid_sheet(tiles, None, title, fit=widest)
        else:
            both, columns = np.stack([above, tiles]), -(-len(tiles) // 2)
            sheet = _row_sheet(both, ["data", "model"], columns, title, fit=widest)
        canvas = FigureCanvasAgg(sheet.figure)
        canvas.draw()
        pictures.append(np.array(canvas.buffer_rgba())[..., :3])
    return pictures


def filters(
    weights: np.ndarray, *, varying: np.ndarray, most: int, title: str | None = None
) -> Figure:
    """Filters [n, h, w] in colours that diverge from white at 0: blue below, red above.

    Filters are in decreasing order of norm. Each is scaled by its largest magnitude; a filter of
    zeros is white.

    Args:
        weights: the filters.
        varying: mask [h, w] of the pixels that vary in the data. Weights of other pixels, such as a
            black border, do not count in norms and scales, and are grey.
        most: maximum number of filters to draw.
        title: title of the figure.
    """
    weights = checked_input(weights, "weights", "n h w")
    weights = np.where(varying, weights, 0)
    weights = weights[np.argsort(-np.linalg.norm(weights, axis=(1, 2)), kind="stable")[:most]]
    largest = np.abs(weights).max(axis=(1, 2), keepdims=True)
    largest = np.where(largest > 0, largest, 1)
    colours = colormaps["RdBu_r"]
    tiles = colours((weights / largest + 1) / 2, bytes=True)[..., :3]
    tiles[:, ~varying] = UNUSED
    note = "weight / largest of its filter"
    note += "" if varying.all() else "; grey: pixels that hardly vary"
    sheet = _grid_sheet(tiles, None, title or "", fit=note, below=70)
    _colour_bar(sheet, ScalarMappable(Normalize(-1, 1), colours), note)
    return sheet.figure


class _Sheet(NamedTuple):
    """Tiles on a page. Text positions are in page pixels right of and below the axes' corner."""

    figure: Figure
    axes: Axes
    tops: Int[np.ndarray, " rows"]
    lefts: Int[np.ndarray, " columns"]
    tile_height: int
    corner: tuple[int, int]  # of the axes, pixels from the page's left and bottom
    size: tuple[int, int]  # of the axes: width, height


def _grid_sheet(
    tiles: UInt8[np.ndarray, "n h w 3"],
    columns: int | None,
    title: str,
    *,
    fit: str = "",
    below: int = 0,
) -> _Sheet:
    """Tiles row by row under a title, on a page wide enough for the text `fit`."""
    row, column = np.divmod(np.arange(len(tiles)), _n_columns(tiles, columns))
    fit = max(title, fit, key=_text_width)
    sheet = _sheet(tiles, row, column, top=TITLE if title else 0, below=below, fit=fit)
    _write_title(sheet, title)
    return sheet


def _row_sheet(
    tiles: UInt8[np.ndarray, "t n h w 3"],
    labels: list[str],
    columns: int | None = None,
    title: str = "",
    *,
    fit: str = "",
) -> _Sheet:
    """Rows of tiles beside their t labels, under a title, in blocks of `columns` columns."""
    t, n, *shape = tiles.shape
    columns = n if columns is None else _n_columns(tiles[0], columns)
    block, column = np.divmod(np.arange(n), columns)
    sheet = _sheet(
        tiles.reshape(t * n, *shape),
        np.concatenate([t * block + i for i in range(t)]),
        np.tile(column, t),
        rows_apart=t,
        left=max(map(_text_width, labels)) + 8,
        top=TITLE if title else 0,
        fit=max(title, fit, key=_text_width),
    )
    for text, top in zip(cycle(labels), sheet.tops, strict=False):
        _write_on_sheet(sheet, text, -8, top + sheet.tile_height / 2, ha="right", va="center")
    _write_title(sheet, title)
    return sheet


def _sheet(
    tiles: UInt8[np.ndarray, "n h w 3"],
    row: Int[np.ndarray, " n"],
    column: Int[np.ndarray, " n"],
    *,
    rows_apart: int | None = None,
    columns_apart: int | None = None,
    left: int = 0,
    top: int = 0,
    below: int = 0,
    fit: str = "",
) -> _Sheet:
    """Tile i at (row[i], column[i]), with wider gaps after `rows_apart` and `columns_apart`.

    `left`, `top` and `below` are free pixels around the tiles, in addition to a margin. The page is
    wide enough for the text `fit`.
    """
    rows, columns = int(row.max()) + 1, int(column.max()) + 1
    scale = _scale(rows, columns, *tiles.shape[1:3])
    tops, height = _starts(rows, scale * tiles.shape[1], rows_apart)
    lefts, width = _starts(columns, scale * tiles.shape[2], columns_apart)
    if max(height, width) > LONGEST_SIDE:
        raise UserError(
            f"{rows} rows of {columns} images need {width} x {height} pixels; a side may have at "
            f"most {LONGEST_SIDE}: draw fewer images"
        )
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    spare = max(0, _text_width(fit) - width + 1) // 2
    corner = (MARGIN + max(left, spare), MARGIN + below)
    page = (corner[0] + width + MARGIN + spare, corner[1] + height + MARGIN + top)
    # An extra quarter of a pixel, so that rounding inches down loses no pixel.
    outer = np.array(page) + 0.25
    figure = Figure(figsize=tuple(outer / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes(tuple(np.array([*corner, width, height]) / np.tile(outer, 2)))
    axes.set_axis_off()
    axes.imshow(
        _mosaic(tiles, tops[row], lefts[column], (height, width)),
        extent=(0, width, height, 0),
        interpolation="none",
        aspect="auto",
    )
    return _Sheet(figure, axes, tops, lefts, tiles.shape[1], corner, (width, height))


def _mosaic(
    tiles: UInt8[np.ndarray, "n h w 3"],
    tops: Int[np.ndarray, " n"],
    lefts: Int[np.ndarray, " n"],
    size: tuple[int, int],
) -> UInt8[np.ndarray, "height width 3"]:
    """Tiles in place on white, each in a frame shared with its neighbours."""
    mosaic = np.full((*size, 3), 255, np.uint8)
    height, width = tiles.shape[1:3]
    for tile, top, left in zip(tiles, tops, lefts, strict=True):
        mosaic[top - GUTTER : top + height + GUTTER, left - GUTTER : left + width + GUTTER] = FRAME
        mosaic[top : top + height, left : left + width] = tile
    return mosaic


def _starts(count: int, size: int, apart: int | None) -> tuple[Int[np.ndarray, " count"], int]:
    """Starts of `count` cells of `size` pixels with a gap after every `apart`, and the end."""
    index = np.arange(count)
    gaps = index // apart * (GAP - GUTTER) if apart else 0
    starts = GUTTER + index * (size + GUTTER) + gaps
    return starts, int(starts[-1]) + size + GUTTER


def _scale(rows: int, columns: int, height: int, width: int) -> int:
    """Page pixels per image pixel: as many as fit the page, up to a maximum size of a tile."""
    return max(
        1, min(PAGE // (columns * width), 2 * PAGE // (rows * height), TILE // min(height, width))
    )


def _n_columns(
    tiles: UInt8[np.ndarray, "n h w 3"], columns: int | None, *, side_by_side: int = 1
) -> int:
    """The number of columns; by default one that gives a nearly square sheet with full rows."""
    n, height, width, _ = tiles.shape
    width *= side_by_side
    if columns is not None:
        if columns < 1:
            raise UserError(f"columns must be at least 1, but is {columns}")
        return min(columns, n)
    least = min(n, math.ceil(math.sqrt(n * height / width)))
    return min(range(least, min(n, 2 * least - 1) + 1), key=lambda count: (-n % count, count))


def _tiles(images: np.ndarray, name: str, axes: str = "n h w") -> UInt8[np.ndarray, "... 3"]:
    """Images in [0, 1], grey with these axes or colour with one more, as RGB bytes."""
    colour = np.ndim(images) == len(axes.split()) + 1 and np.shape(images)[-1] == 3
    values = checked_input(images, name, axes + " 3" * colour)
    low, high = values.min(), values.max()
    if low < -1e-6 or high > 1 + 1e-6:
        raise UserError(
            f"{name} must be in [0, 1], but range from {low:g} to {high:g}: rescale them"
        )
    levels = np.rint(255 * values.clip(0, 1)).astype(np.uint8)
    return levels if colour else np.repeat(levels[..., None], 3, axis=-1)


def _frame_tiles(
    frames: np.ndarray, epochs: Numbers
) -> tuple[UInt8[np.ndarray, "t n h w 3"], list[str]]:
    """Frames as tiles, and a label for each epoch."""
    tiles = _tiles(frames, "frames", "t n h w")
    labels = [f"{epoch:.10g}" for epoch in checked_input(epochs, "epochs", "t")]
    if len(labels) != len(tiles):
        raise UserError(f"there are {len(tiles)} frames, but {len(labels)} epochs")
    return tiles, labels


def _data_tiles(
    images: np.ndarray, course: UInt8[np.ndarray, "t n h w 3"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """The data as tiles of the same shape as a frame."""
    tiles = _tiles(images, "data")
    check_figure_input_shapes(tiles, course[0], "data and a frame")
    return tiles


def _write_on_sheet(
    sheet: _Sheet, text: str, x: float | int, y: float | int, *, ha: str, va: str = "bottom"
) -> None:
    """Write a text on the sheet, or beside it if a coordinate is negative."""
    sheet.axes.text(x, y, text, fontsize=NORMAL, color=INK, ha=ha, va=va)


def _write_title(sheet: _Sheet, title: str) -> None:
    """Write a title above the middle of the sheet."""
    _write_on_sheet(sheet, title, sheet.size[0] / 2, -8, ha="center")


def _text_width(text: str) -> int:
    """The width of a text in pixels, measured without drawing it."""
    if not text:
        return 0
    points = TextPath((0, 0), text, size=NORMAL, prop=FontProperties()).get_extents().width
    return int(np.ceil(points * DPI / 72)) + 2


def _colour_bar(sheet: _Sheet, colours: ScalarMappable, note: str) -> None:
    """A thin colour bar from -1 to 1, centred below the sheet."""
    page = sheet.figure.get_size_inches() * DPI
    width = min(400, sheet.size[0])
    left = sheet.corner[0] + (sheet.size[0] - width) / 2
    box = np.array([left, sheet.corner[1] - 24, width, 10]) / np.tile(page, 2)
    inner = sheet.figure.add_axes(tuple(box))
    bar = sheet.figure.colorbar(colours, cax=inner, orientation="horizontal")
    bar.set_ticks([-1, 0, 1], labels=["\N{MINUS SIGN}1", "0", "1"])
    bar.set_label(note, fontsize=SMALL, color=INK, labelpad=1)
    bar.outline.set_visible(False)
    inner.tick_params(labelsize=SMALL, labelcolor=INK, length=2, pad=1.5)

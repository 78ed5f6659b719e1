"""A grid of images on paper: whole pixels, enlarged without smoothing, with the names of rows and columns."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from compress_aug.pictures.grids import Grid
from compress_aug.pictures.paper import DPI, PALE, paper, save, shortened, text_size, wrapped

# Pixels. Images are brought near to this side by a whole factor, so that no pixel is drawn wider than another.
SIDE = 96
_GAP, _EDGE, _AFTER_ORIGINAL, _NARROWEST = 4, 18, 10, 640
_LINE, _SMALL = 19, 15
_TITLE: dict[str, Any] = {"fontsize": 13, "fontweight": "bold"}
_NOTE: dict[str, Any] = {"fontsize": 9, "color": PALE}
_NAME: dict[str, Any] = {"fontsize": 9.5, "fontweight": "bold"}
_WORDS: dict[str, Any] = {"fontsize": 8.5, "color": PALE}
_COLUMN: dict[str, Any] = {"fontsize": 8.5}


def sheet(grid: Grid) -> NDArray[np.uint8]:
    """All images of a grid in one, (height, width, 3), white between them; grey images come out grey.

    >>> from compress_aug.pictures.grids import Row
    >>> row = Row("original", "", np.zeros((2, 1, 32, 32), dtype=np.uint8))
    >>> sheet(Grid("", "", (row,), ("a", "b"))).shape
    (96, 196, 3)
    """
    rows = [np.stack([_sized(image) for image in row.images]) for row in grid.rows]
    count, height, width, _ = rows[0].shape
    tops = _tops(len(rows), height)
    white = np.full((tops[-1] + height, count * (width + _GAP) - _GAP, 3), 255, dtype=np.uint8)
    for top, row in zip(tops, rows, strict=True):
        for place, image in enumerate(row):
            left = place * (width + _GAP)
            white[top : top + height, left : left + width] = image
    return white


def draw_grid(grid: Grid, path: str | Path) -> Path:
    """Write the grid as PNG, every pixel of the images as it is, and return its path.

    Raises UserError if the file cannot be written; see `check_png`.
    """
    with paper():
        return save(_figure(grid), path)


def _figure(grid: Grid) -> Figure:
    images = sheet(grid)
    probe = Figure(dpi=DPI)
    texts = [(row.name, _NAME) for row in grid.rows] + [(row.words, _WORDS) for row in grid.rows]
    names = max(text_size(probe, text, **style)[0] for text, style in texts)
    left = _EDGE + int(names) + 14
    width = max(left + images.shape[1] + _EDGE, _NARROWEST)
    title = wrapped(probe, grid.title, width - 2 * _EDGE, **_TITLE)
    note = wrapped(probe, grid.note, width - 2 * _EDGE, **_NOTE)
    lines_above = max(column.count("\n") for column in grid.columns)
    top = _EDGE + (_LINE + 5) * len(title) + _LINE * len(note) + 2 * _LINE + _SMALL * lines_above
    height = top + images.shape[0] + _EDGE
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def write(x: float, y: float, text: str, style: dict[str, Any], **place: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **style, **place)

    y = _EDGE
    for lines, style, step in ((title, _TITLE, _LINE + 5), (note, _NOTE, _LINE)):
        for line in lines:
            write(_EDGE, y, line, style, va="top")
            y += step
    side = _sized(grid.rows[0].images[0]).shape
    for place, column in enumerate(grid.columns):
        middle = left + place * (side[1] + _GAP) + side[1] / 2
        for below, text in enumerate(column.split("\n")):
            style = _WORDS if below else _COLUMN
            short = shortened(probe, text, side[1], **style)
            write(middle, top - 6 - _SMALL * (lines_above - below), short, style, ha="center", va="baseline")
    for row, start in zip(grid.rows, _tops(len(grid.rows), side[0]), strict=True):
        middle = top + start + side[0] / 2
        # A name alone stands in the middle of its row, with words below both do.
        write(left - 14, middle - (1 if row.words else -5), row.name, _NAME, ha="right", va="baseline")
        write(left - 14, middle + 15, row.words, _WORDS, ha="right", va="baseline")
    figure.figimage(images, xo=left, yo=height - top - images.shape[0], origin="upper")
    return figure


def _tops(rows: int, height: int) -> list[int]:
    """Where each row begins; there is some more space below the untouched images."""
    return [place * (height + _GAP) + (_AFTER_ORIGINAL if place else 0) for place in range(rows)]


def _sized(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One image (C, H, W) as (h, w, 3): pixels repeated, or the mean of squares of them, in a whole factor."""
    colours = np.repeat(image, 3, axis=0) if len(image) == 1 else image
    _, height, width = colours.shape
    longest = max(height, width)
    if longest <= SIDE:
        factor = SIDE // longest
        larger: NDArray[np.uint8] = colours.repeat(factor, axis=1).repeat(factor, axis=2).transpose(1, 2, 0)
        return larger
    factor = -(-longest // SIDE)
    # Up to factor - 1 rows and columns at the lower and right edge do not fill a square.
    high, wide = max(1, height // factor), max(1, width // factor)
    whole = colours[:, : high * factor, : wide * factor].astype(np.float64)
    means = whole.reshape(3, high, min(factor, height), wide, min(factor, width)).mean(axis=(2, 4))
    smaller: NDArray[np.uint8] = means.round().astype(np.uint8).transpose(1, 2, 0)
    return smaller

"""Which layers bear what, as a map: a row for each layer, a column for each amount, the loss of accuracy in points."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from compress_aug.pictures.paper import DPI, INK, PALE, paper, save, shortened, text_size, wrapped

if TYPE_CHECKING:
    from compress_aug.sensitivity import Sensitivity

# Points. What matters lies between half a point and ten; beyond forty a layer is lost, whatever the number.
STEPS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
_SHADES = ("#f4f1ea", "#fde9c0", "#fdd08e", "#fbab66", "#f07d4e", "#d94f45", "#a82a4a", "#6a1346")
_SAME, _ALREADY = "#e4e8eb", "–  has it already"

# Pixels.
_ROW, _COLUMN, _EDGE, _LINE, _NARROWEST, _WIDEST_NAME = 23, 66, 18, 19, 760, 360
_TITLE: dict[str, Any] = {"fontsize": 13, "fontweight": "bold"}
_NOTE: dict[str, Any] = {"fontsize": 9, "color": PALE}
_NAME: dict[str, Any] = {"fontsize": 9}
_HEAD: dict[str, Any] = {"fontsize": 8.5, "color": PALE}
_CELL: dict[str, Any] = {"fontsize": 8.5, "ha": "center", "va": "center_baseline"}


def loss_words(loss: float) -> str:
    """A loss in points as it stands in a cell.

    >>> [loss_words(loss) for loss in (0.04, -0.3, 3.14, 42.7)]
    ['0.0', '-0.3', '3.1', '43']
    """
    # The zero takes away the sign of a number that rounds to nothing.
    return f"{loss:.0f}" if abs(loss) >= 9.95 else f"{round(loss, 1) + 0.0:.1f}"


def draw_sensitivity(
    found: "Sensitivity", path: str | Path, *, title: str, note: str, tolerance: float = 1.0
) -> Path:
    """Write the map as PNG and return its path.

    title, note: the line above the figure, and the paler one below that
    tolerance:   in points; what loses no more is framed, and the right end of the last frame is what a layer bears

    As high as there are layers. Raises UserError if the file cannot be written; see `check_png`.
    """
    with paper():
        return save(_figure(found, title, note, tolerance), path)


def _figure(found: "Sensitivity", title: str, note: str, tolerance: float) -> Figure:
    probe = Figure(dpi=DPI)
    sizes = [f"{layer.parameters:,}" for layer in found.layers]
    names_wide = min(max(text_size(probe, one.name, **_NAME)[0] for one in found.layers), _WIDEST_NAME)
    sizes_wide = max(text_size(probe, text, **_HEAD)[0] for text in (*sizes, "weights"))
    left = _EDGE + names_wide + 18 + sizes_wide + 12
    cells = _COLUMN * len(found.amounts)
    right = max(90, 14 + text_size(probe, _ALREADY, **_HEAD)[0])
    width = int(max(left + cells + right + _EDGE, _NARROWEST))
    titles = wrapped(probe, title, width - 2 * _EDGE, **_TITLE)
    notes = wrapped(probe, note, width - 2 * _EDGE, **_NOTE)
    top = _EDGE + (_LINE + 5) * len(titles) + _LINE * len(notes) + 2 * _LINE + 6
    high = _ROW * len(found.layers)
    height = top + high + 78
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")

    def write(x: float, y: float, text: str, style: dict[str, Any], **place: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **style, **place)

    y = float(_EDGE)
    for lines, style, step in ((titles, _TITLE, _LINE + 5), (notes, _NOTE, _LINE)):
        for line in lines:
            write(_EDGE, y, line, style, va="top")
            y += step
    for place, head in enumerate(found.heads()):
        write(
            left + _COLUMN * (place + 0.5),
            top - 7,
            head,
            {**_NAME, "fontweight": "bold"},
            ha="center",
        )
    write(left - 12, top - 7, "weights", _HEAD, ha="right")
    write(left + cells + 45, top - 7, "bears", _HEAD, ha="center")
    bears = found.bears(tolerance)
    for row, (layer, size) in enumerate(zip(found.layers, sizes, strict=True)):
        middle = top + _ROW * (row + 0.5) + 4
        write(_EDGE, middle, shortened(probe, layer.name, _WIDEST_NAME, **_NAME), _NAME)
        write(left - 12, middle, size, _HEAD, ha="right")
        write(left + cells + 45, middle, bears[layer.name], _NAME, ha="center")
    axes = figure.add_axes((left / width, 1 - (top + high) / height, cells / width, high / height))
    _map(axes, found, tolerance)
    legend = figure.add_axes((left / width, 32 / height, cells / width, 12 / height))
    _scale(legend)
    write(left - 12, height - 33, "points lost", _HEAD, ha="right")
    if any(layer.already for layer in found.layers):
        write(left + cells + 14, height - 33, _ALREADY, _HEAD)
    return figure


def _map(axes: Axes, found: "Sensitivity", tolerance: float) -> None:
    losses = found.losses()
    grid = np.array([losses[layer.name] for layer in found.layers])
    already = np.array([[n < layer.already for n in range(len(found.amounts))] for layer in found.layers])
    colours, norm = _colours()
    axes.set_facecolor(_SAME)
    axes.pcolormesh(np.ma.masked_where(already, grid), cmap=colours, norm=norm)
    rows, columns = grid.shape
    axes.hlines(range(rows + 1), 0, columns, color="white", linewidth=1)
    axes.vlines(range(columns + 1), 0, rows, color="white", linewidth=1)
    for row, column in np.ndindex(rows, columns):
        text = "–" if already[row, column] else loss_words(float(grid[row, column]))
        dark = not already[row, column] and grid[row, column] >= STEPS[4]
        axes.text(column + 0.5, row + 0.5, text, color="white" if dark else INK, **_CELL)
    _frames(axes, grid <= tolerance)
    axes.set_ylim(rows, 0)
    axes.set_xlim(0, columns)
    _bare(axes)


def _frames(axes: Axes, fits: NDArray[np.bool_]) -> None:
    """A frame around each stretch of amounts that a layer bears: it may lose more at a milder one than at a harsher."""
    for row, fitting in enumerate(fits):
        ends = np.flatnonzero(np.diff(np.concatenate([[False], fitting, [False]])))
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            place, width = (float(start) + 0.03, row + 0.06), float(end - start) - 0.06
            axes.add_patch(Rectangle(place, width, 0.88, fill=False, color=INK, linewidth=1.1))


def _scale(axes: Axes) -> None:
    """The colours, with the losses at which they change."""
    for place, colour in enumerate(_SHADES):
        axes.add_patch(Rectangle((place, 0), 1, 1, color=colour, linewidth=0))
    axes.set_xlim(0, len(_SHADES))
    axes.set_ylim(0, 1)
    _bare(axes)
    axes.set_xticks(range(1, len(_SHADES)), [f"{step:g}" for step in STEPS], fontsize=8.5)


def _colours() -> tuple[ListedColormap, BoundaryNorm]:
    return ListedColormap(_SHADES), BoundaryNorm([-1e9, *STEPS, 1e9], len(_SHADES))


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

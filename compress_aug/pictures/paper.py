"""The paper that PNGs are drawn on: one look whatever the user's own settings are, text measured before it is set."""

import warnings
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from compress_aug.errors import UserError
from compress_aug.folders import written_whole

INK, PALE, RULE, FIRST = "#1a1f24", "#5b6670", "#c9cfd4", "#1f5fa8"
DPI = 110

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def style(ink: str, rule: str) -> dict[Any, Any]:
    """matplotlib's settings that all our figures share. ink: of words, rule: of lines that only guide the eye."""
    return {
        "font.size": 9.5,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": rule,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        "xtick.color": rule,
        "ytick.color": rule,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "grid.color": rule,
        "grid.linewidth": 0.5,
        "hatch.linewidth": 0.8,
        "legend.frameon": False,
        "text.parse_math": False,
    }


@contextmanager
def paper() -> Iterator[None]:
    """Within it, figures look alike, whatever the user's own matplotlibrc asks for."""
    with rc_context(), warnings.catch_warnings():
        # Class names may be in any script; a box in place of a letter is no reason to write to the terminal.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        rcdefaults()
        rcParams.update(style(INK, RULE))
        yield


def check_png(path: str | Path) -> Path:
    """The path, if a picture may be written there.

    A PNG that is there already may be overwritten: it is made again by the same command. Nothing else is.
    Raises UserError if the name does not end in .png, its folder is missing, or something else is there.

    >>> check_png("augment.png").name
    'augment.png'
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: a picture is written as PNG; let the name end in .png")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} to.")
    if path.is_dir() or (path.exists() and not _is_png(path)):
        raise UserError(
            f"{path} is there already and is no PNG, so it is not overwritten; name another file."
        )
    return path


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as PNG, whole or not at all. Raises UserError as `check_png`, and if that is not possible."""
    path = check_png(path)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    # Nothing here is transparent; without that channel a sheet of photographs is an eighth smaller.
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    drawn = Image.fromarray(pixels[..., :3])
    try:
        with written_whole(path) as temporary:
            drawn.save(temporary, format="png", optimize=True, dpi=(figure.dpi, figure.dpi))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
    return path


def text_size(figure: Figure, text: str, **style: Any) -> tuple[float, float]:
    """Width and height in pixels that the text would take in this figure.

    >>> text_size(Figure(), "wide") > text_size(Figure(), "w")
    True
    """
    canvas = figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)
    box = figure.text(0, 0, text, **style)
    extent = box.get_window_extent(canvas.get_renderer())  # type: ignore[no-untyped-call]
    box.remove()
    return float(extent.width), float(extent.height)


def shortened(figure: Figure, text: str, width: float, **style: Any) -> str:
    """The text, its end cut off where it would be wider than so many pixels.

    >>> shortened(Figure(dpi=100), "a very long name", 60)
    'a very…'
    """
    if text_size(figure, text, **style)[0] <= width:
        return text
    cut = bisect_left(
        range(len(text)), width, key=lambda end: text_size(figure, text[: end + 1] + "…", **style)[0]
    )
    return text[:cut].rstrip() + "…"


def wrapped(figure: Figure, text: str, width: float, **style: Any) -> list[str]:
    """The text in lines of at most so many pixels, broken between words."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_size(figure, longer, **style)[0] <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [shortened(figure, line, width, **style) for line in lines]


def heading(axes: Axes, title: str, note: str) -> None:
    """A title over the axes, from their left as far as the figure goes, with a paler line below it.

    42 points above the axes must be free.
    """
    _over(axes, title, 25, fontsize=12, fontweight="bold")
    _over(axes, note, 9, color=PALE)


def _over(axes: Axes, text: str, points: float, **style: Any) -> None:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    short = shortened(figure, text, figure.bbox.width - axes.get_window_extent().x0 - 12, **style)
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    axes.annotate(short, (0, 1), (0, points), **place, **style)  # type: ignore[arg-type]


def _is_png(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE

"""Accuracy over the magnitude of augmentation, a curve for each sparsity: the best marked, and the largest no worse."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.figure import Figure

from compress_aug.pictures.paper import DPI, PALE, heading, paper, save
from compress_aug.schedule import MAX_MAGNITUDE

if TYPE_CHECKING:
    from compress_aug.search import Summary

# No augmentation is not M = 0 and has a place of its own, left of it.
_NONE_AT = -2.5


def draw_sweep(found: "Sequence[Summary]", path: str | Path, *, title: str, note: str) -> Path:
    """Write the figure as PNG and return its path.

    found:       one curve for each, dark for many weights and pale for few
    title, note: the line above the figure, and the paler one below that

    Raises UserError if the file cannot be written; see `check_png`.
    """
    with paper():
        return save(_figure(found, title, note), path)


def _figure(found: "Sequence[Summary]", title: str, note: str) -> Figure:
    figure = Figure(figsize=(7.6, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["viridis"]
    for number, one in enumerate(found):
        colour = colours(0.85 * number / max(len(found) - 1, 1))
        # Where a training broke down there is nothing to draw.
        points = {
            _NONE_AT if magnitude is None else magnitude: (100 * mean, 100 * (spread or 0.0))
            for magnitude, (mean, spread, _) in one.curve.items()
            if mean is not None
        }
        places = list(points)
        means, spreads = [mean for mean, _ in points.values()], [spread for _, spread in points.values()]
        axes.plot(places, means, color=colour, linewidth=1.8, label=f"{100 * one.sparsity:.3g} % zeros")
        axes.errorbar(places, means, spreads, fmt=".", color=colour, capsize=2, markersize=4)
        best = _NONE_AT if one.optimal is None else one.optimal
        axes.plot([best], [points[best][0]], "o", color=colour, markersize=9)
        if one.maximal is not None:
            axes.plot([one.maximal], [points[one.maximal][0]], ">", color=colour, markersize=8)
    marks = ((("o"), "best"), ((">"), "largest that is no worse than none"))
    for mark, words in marks:
        axes.plot([], [], mark, color=PALE, label=words)
    ticks = [_NONE_AT, *range(0, MAX_MAGNITUDE + 1, 5)]
    axes.set_xticks(ticks, ["none", *map(str, ticks[1:])])
    axes.set_xlabel("magnitude of RandAugment")
    axes.set_ylabel("accuracy on validation images, %")
    axes.legend(fontsize=8, frameon=False)
    heading(axes, title, note)
    return figure

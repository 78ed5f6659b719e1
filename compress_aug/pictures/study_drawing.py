"""A study's runs on paper: a dot for each seed beside its variant's mean, or accuracy over sparsity by variant."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from compress_aug.errors import UserError
from compress_aug.folders import written_whole
from compress_aug.pictures.paper import (
    DPI,
    INK,
    PALE,
    check_png,
    heading,
    paper,
    save,
    shortened,
    text_size,
    wrapped,
)

# Told apart by people who see fewer colours too: neighbours differ in lightness, lines by their marks as well.
COLOURS = ("#1f5fa8", "#d1432f", "#17897a", "#f2a154", "#8645c4", "#5aa9e6", "#7f1d1d", "#8a9299")
MARKS = "osD^vPX*"

_NAME: dict[str, Any] = {"fontsize": 9.5}
_COLUMN: dict[str, Any] = {"fontsize": 9.5, "fontweight": "bold"}
_PAPER: dict[str, Any] = {"fontsize": 8, "color": PALE}
# Pixels. _PAPERS: room at the right for a paper's numbers; _LEGEND: what the legend takes at least.
_HEAD, _EDGE, _ROW, _BETWEEN, _FOOT, _PANEL, _LONGEST = 84, 18, 34, 58, 90, 520, 300
_PAPERS, _LEGEND = 84, 590


@dataclass(frozen=True)
class Dots:
    """A variant in one panel: its value for each seed, and what a paper says of it, in the same unit."""

    name: str
    values: Sequence[float]
    column: str = ""
    paper: float | None = None


@dataclass(frozen=True)
class Rounds:
    """A variant over its rounds: share of zeros in percent -> accuracy of each seed, in percent."""

    name: str
    accuracies: Mapping[float, Sequence[float]]


def draw_variants(
    found: Sequence[Dots], path: str | Path, *, title: str, note: str, label: str = "accuracy, %"
) -> Path:
    """Write a row for each variant as PNG, a panel for each column with a scale of its own, and return its path.

    found:       in the order of the rows; those of the same name have the same colour
    title, note: the line above the figure, and the paler one below that
    label:       what is measured

    A paper's number is written at the right, and drawn to scale only if it lies near the runs: else it would squeeze
    them.
    Raises UserError if the file cannot be written (see `check_png`), or there is no value to draw.
    """
    if not any(one.values for one in found):
        raise UserError(f"There is nothing to draw for {path}: no variant has a value.")
    with paper():
        return save(_variants(found, title, note, label), path)


def draw_rounds(found: Sequence[Rounds], path: str | Path, *, title: str, note: str) -> Path:
    """Write accuracy over sparsity as PNG, a line of means with bars of deviation per variant; return its path.

    Raises UserError as `draw_variants`.
    """
    found = [one for one in found if any(one.accuracies.values())]
    if not found:
        raise UserError(f"There is nothing to draw for {path}: no variant has an accuracy at any sparsity.")
    with paper():
        return save(_rounds(found, title, note), path)


def stack(pictures: Sequence[Path], path: str | Path) -> Path:
    """Write PNGs below each other into one, whole or not at all. Raises UserError as `check_png`."""
    path = check_png(path)
    opened = [np.asarray(Image.open(one).convert("RGB")) for one in pictures]
    width = max(image.shape[1] for image in opened)
    sheets = [
        np.pad(image, ((_EDGE, 0), (0, width - image.shape[1]), (0, 0)), constant_values=255)
        for image in opened
    ]
    with written_whole(path) as temporary:
        Image.fromarray(np.concatenate(sheets)).save(temporary, format="png", optimize=True, dpi=(DPI, DPI))
    return path


def _variants(found: Sequence[Dots], title: str, note: str, label: str) -> Figure:
    probe = Figure(dpi=DPI)
    panels = [list(rows) for _, rows in groupby(_by_column(found), key=lambda one: one.column)]
    names = {one.name: _two_lines(probe, one.name) for one in found}
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    left = _EDGE + max(text_size(probe, name, **_NAME)[0] for name in names.values()) + 12
    right = _PAPERS if any(one.paper is not None for one in found) else _EDGE
    inner = max(_PANEL, _LEGEND + 2 * _EDGE - left - right)
    head = _HEAD + 22 * any(one.column for one in found)
    heights = [_ROW * len(rows) for rows in panels]
    width = left + inner + right
    height = head + sum(heights) + _BETWEEN * (len(panels) - 1) + _FOOT
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    top: float = head
    for rows, high in zip(panels, heights, strict=True):
        axes = figure.add_axes((left / width, 1 - (top + high) / height, inner / width, high / height))
        _panel(axes, rows, colours)
        axes.set_yticks(range(len(rows)), [names[one.name] for one in rows], **_NAME)
        if rows[0].column:
            axes.set_title(rows[0].column, loc="left", pad=5, **_COLUMN)
        top += high + _BETWEEN
    axes.set_xlabel(label)
    whole = _whole(figure, width, height, _HEAD)
    heading(whole, title, note)
    _explain(whole, found, 30 / (height - _HEAD))
    return figure


def _two_lines(figure: Figure, name: str) -> str:
    """A name in one line or two; what does not fit into them is cut off."""
    first, *rest = wrapped(figure, name, _LONGEST, **_NAME)
    return f"{first}\n{shortened(figure, ' '.join(rest), _LONGEST, **_NAME)}" if rest else first


def _by_column(found: Sequence[Dots]) -> list[Dots]:
    order = list(dict.fromkeys(one.column for one in found))
    return sorted(found, key=lambda one: order.index(one.column))


def _panel(axes: Axes, rows: Sequence[Dots], colours: Mapping[str, str]) -> None:
    low, high = _range([value for one in rows for value in one.values])
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for place, one in enumerate(rows):
        colour = colours[one.name]
        if one.values:
            mean = statistics.mean(one.values)
            if len(one.values) > 1:
                deviation = statistics.stdev(one.values)
                axes.errorbar(mean, place, xerr=deviation, color=colour, linewidth=1.6, capsize=4)
            axes.plot([mean] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=2.6)
            axes.plot(one.values, [place] * len(one.values), "o", color=colour, markersize=5, alpha=0.55)
        else:
            axes.text(low + 0.02 * (high - low), place, "not run", va="center", **_PAPER)
        if one.paper is not None:
            _paper(axes, one.paper, place)


def _paper(axes: Axes, value: float, place: int) -> None:
    """The paper's number beside the row, and within it if that is where the runs lie."""
    low, high = axes.get_xlim()
    if low <= value <= high:
        axes.plot(value, place, "D", markersize=6.5, markerfacecolor="white", markeredgecolor=INK, zorder=1.9)
    beside = axes.get_yaxis_transform()
    axes.text(1.015, place, f"paper {value:.2f}", transform=beside, va="center", **_PAPER)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From a little below the smallest to a little above the largest, with room for words at both ends."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    # What hardly differs shall not look as if it did.
    wide = max(high - low, 0.01 * abs(high), 1e-3)
    middle = (low + high) / 2
    return middle - 0.72 * wide, middle + 0.72 * wide


def _explain(axes: Axes, found: Sequence[Dots], bottom: float) -> None:
    """The marks in words. bottom: of the words' upper edge, a share of the axes' height."""
    alone: dict[str, Any] = {"linestyle": "", "color": PALE}
    handles = [Line2D([], [], marker="o", alpha=0.55, markersize=5, label="a seed", **alone)]
    handles.append(Line2D([], [], marker="|", markersize=11, markeredgewidth=2.6, label="mean", **alone))
    if any(len(one.values) > 1 for one in found):
        handles.append(Line2D([], [], color=PALE, linewidth=1.6, label="standard deviation over the seeds"))
    if any(one.paper is not None for one in found):
        diamond: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": INK}
        handles.append(Line2D([], [], marker="D", label="the paper", **alone, **diamond))
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, bottom), "borderaxespad": 0}
    axes.legend(handles=handles, ncols=4, fontsize=8.5, borderpad=0, **place)


def _rounds(found: Sequence[Rounds], title: str, note: str) -> Figure:
    probe = Figure(dpi=DPI)
    names = [shortened(probe, one.name, _LONGEST, **_NAME) for one in found]
    right = max(text_size(probe, name, **_NAME)[0] for name in names) + 70
    wide, high, left, below = 560, 340, 70, 60
    width, height = left + wide + right, _HEAD + high + below
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((left / width, below / height, wide / width, high / height))
    every = sorted({at for one in found for at in one.accuracies})
    # Bars of several variants at one sparsity stand side by side.
    gap = min(np.diff(every), default=10.0)
    step = min(0.05 * gap, 0.5 * gap / len(found))
    for place, (one, name) in enumerate(zip(found, names, strict=True)):
        points = {at: values for at, values in one.accuracies.items() if values}
        at = np.array(sorted(points)) + step * (place - (len(found) - 1) / 2)
        means = [statistics.mean(points[where]) for where in sorted(points)]
        style: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": ("-", "--")[place // len(COLOURS) % 2],
            "marker": MARKS[place % len(MARKS)],
        }
        axes.plot(at, means, linewidth=1.8, markersize=5.5, label=name, **style)
        bars = [
            (where, mean, statistics.stdev(values))
            for where, mean, values in zip(at, means, (points[key] for key in sorted(points)), strict=True)
            if len(values) > 1
        ]
        if bars:
            x, y, deviation = zip(*bars, strict=True)
            axes.errorbar(x, y, deviation, fmt="none", ecolor=style["color"], elinewidth=1.2, capsize=3)
    axes.set_xticks(every, [f"{at:.3g}" for at in every])
    axes.set_xlim(every[0] - 0.4 * gap, every[-1] + 0.4 * gap)
    axes.set_xlabel("zeros among the weights, %")
    axes.set_ylabel("accuracy on test images, %")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0, **_NAME)
    heading(_whole(figure, width, height, _HEAD), title, note)
    return figure


def _whole(figure: Figure, width: float, height: float, head: float) -> Axes:
    """Axes without a frame over the whole width below the heading: names stand beside the others."""
    whole = figure.add_axes((_EDGE / width, 0, 1 - 2 * _EDGE / width, 1 - head / height), frame_on=False)
    whole.set_axis_off()
    return whole

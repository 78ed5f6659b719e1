"""The magnitude over all epochs of a recipe, its stages in their order and what is known of each before it runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from compress_aug.pictures.magnitude_drawing import magnitude_axis
from compress_aug.pictures.paper import DPI, FIRST, PALE, RULE, heading, paper, save, shortened, text_size

Kind = Literal["magnitude", "random", "policy", "unknown"]

_SHADES: dict[str, tuple[str, str, str]] = {
    "none": ("#eef1f3", "", "no RandAugment"),
    "random": ("#bcd4ee", "", "each image's M is drawn from 0 to the line"),
    "policy": ("#f6dfb4", "", "a learned policy instead of a magnitude"),
    "unknown": ("#ffffff", "///", "known only from the model, in the run"),
}
_STAGE: dict[str, Any] = {"fontsize": 8.5}
_WORDS: dict[str, Any] = {"fontsize": 8.5, "color": PALE}
_SLOPE = 40  # degrees
_APART = 23.0  # pixels between the names of two stages, so that slanted lines of text stay apart
# Pixels; the last is the margin of the title.
_HEIGHT, _LEFT, _RIGHT, _BOTTOM, _HEAD, _EDGE = 2.9 * DPI, 70.0, 20.0, 96.0, 78.0, 18.0


@dataclass(frozen=True)
class Stretch:
    """One stage of a recipe.

    number:     its place in the recipe
    title:      what it is called
    epochs:     how many it trains; 0 for a moment between trainings
    kind:       magnitude, random (drawn for each image, uniformly up to the magnitude), policy, or unknown
    magnitudes: at places evenly spread over the stage, None where no RandAugment is in force; at least one for the
                first two kinds of a training
    words:      how its augmentation is described
    """

    number: int
    title: str
    epochs: int = 0
    kind: Kind = "magnitude"
    magnitudes: Sequence[int | None] = ()
    words: str = ""


def draw_timeline(stretches: Sequence[Stretch], path: str | Path, *, title: str, note: str) -> Path:
    """Write the magnitude over the epochs of all stages as PNG and return its path.

    stretches:   at least one of them with epochs
    title, note: the line above the figure, and the paler one below that

    Raises UserError if the file cannot be written; see `check_png`.
    """
    with paper():
        return save(_figure(stretches, title, note), path)


def spread(places: Sequence[float], apart: float, end: float) -> list[float]:
    """Rising places from 0 on, moved so far apart from each other; the last one beyond the end only if all fill it.

    >>> spread([0.0, 1.0, 9.0, 9.5], apart=2.0, end=10.0)
    [0.0, 2.0, 8.0, 10.0]
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + apart) if moved else place)
    limit = max(end, apart * (len(moved) - 1))
    for place in reversed(range(len(moved))):
        moved[place] = min(moved[place], limit)
        limit = moved[place] - apart
    return moved


def _figure(stretches: Sequence[Stretch], title: str, note: str) -> Figure:
    probe = Figure(dpi=DPI)
    moments = [(at, f"{one.number} {one.title}") for at, one in _placed(stretches) if not one.epochs]
    names = [shortened(probe, text, 240, **_STAGE) for _, text in moments]
    longest = max((text_size(probe, name, **_STAGE)[0] for name in names), default=0.0)
    reach = longest * np.cos(np.radians(_SLOPE))
    above = 26 + longest * np.sin(np.radians(_SLOPE)) + 16 if names else 22.0
    width = max(9.6 * DPI, _LEFT + _APART * len(names) + reach + _RIGHT)
    height = _HEAD + above + _HEIGHT + _BOTTOM
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    inner = width - _LEFT - _RIGHT - reach
    axes = figure.add_axes((_LEFT / width, _BOTTOM / height, inner / width, _HEIGHT / height))
    total = sum(one.epochs for one in stretches)
    axes.set_xlim(0, total)
    magnitude_axis(axes, max((m for one in stretches for m in one.magnitudes if m is not None), default=0))
    shown = [_stage(axes, at, one, inner / total) for at, one in _placed(stretches) if one.epochs]
    _name_moments(axes, [at * inner / total for at, _ in moments], names, inner)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    # Over the whole width, not only over the axes, which leave room for the last names.
    whole = figure.add_axes((_EDGE / width, 0, 1 - 2 * _EDGE / width, 1 - _HEAD / height), frame_on=False)
    whole.set_axis_off()
    heading(whole, title, note)
    _legend(axes, {kind for kinds in shown for kind in kinds})
    return figure


def _placed(stretches: Sequence[Stretch]) -> list[tuple[int, Stretch]]:
    """Each stage with the epoch in which it begins."""
    begins = np.cumsum([0, *(one.epochs for one in stretches)]).tolist()
    return list(zip(begins, stretches, strict=False))


def _stage(axes: Axes, start: int, one: Stretch, pixels: float) -> set[str]:
    """Draw one training; returns what of it the legend must explain. `pixels`: of an epoch."""
    end, middle = start + one.epochs, start + one.epochs / 2
    shown: set[str] = set()
    if one.kind in ("policy", "unknown"):
        _shade(axes, start, end, one.kind)
        shown.add(one.kind)
    else:
        edges = np.linspace(start, end, len(one.magnitudes) + 1)
        levels = np.array([np.nan if level is None else level for level in one.magnitudes], dtype=float)
        shown |= _curve(axes, edges, levels, one.kind)
    if start:
        axes.axvline(start, color=RULE, linewidth=1)
    _name_training(axes, middle, one, pixels)
    return shown


def _name_training(axes: Axes, middle: float, one: Stretch, pixels: float) -> None:
    """Number, title and words of a training, as far as there is room. `pixels`: of an epoch."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    room = one.epochs * pixels - 6
    style: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center"}
    for name in (f"{one.number} {one.title}", str(one.number)):
        if text_size(figure, name, **_STAGE)[0] <= room:
            axes.text(middle, 0.985, name, va="top", **style, **_STAGE)
            break
    if one.kind == "unknown":
        style["bbox"] = {"color": "white", "pad": 1.5}
    wide, high = text_size(figure, one.words, **_WORDS)
    y = _free_height(one, wide / pixels, axes.get_ylim()[1])
    if wide <= room and y is not None:
        axes.text(middle, y, one.words, **style, **_WORDS)
    elif high <= room and wide < 0.85 * _HEIGHT and not one.magnitudes:
        axes.text(middle, 0.06, one.words, rotation=90, va="bottom", **style, **_WORDS)


def _free_height(one: Stretch, wide: float, top: float) -> float | None:
    """Where in 0..1 words of so many epochs fit in a stage: under the curve, else over it, else nowhere."""
    share = min(1.0, wide / one.epochs) / 2
    count = len(one.magnitudes)
    near = one.magnitudes[int((0.5 - share) * count) : math.ceil((0.5 + share) * count)]
    levels = [level / top for level in near if level is not None]
    if all(level > 0.16 for level in levels):
        return 0.06
    return 0.8 if all(level < 0.74 for level in levels) else None


def _curve(axes: Axes, edges: "np.ndarray[Any, Any]", levels: "np.ndarray[Any, Any]", kind: Kind) -> set[str]:
    shown: set[str] = set()
    gaps = np.isnan(levels)
    for place in np.flatnonzero(gaps):
        _shade(axes, edges[place], edges[place + 1], "none")
        shown.add("none")
    if not gaps.all():
        axes.stairs(levels, edges, baseline=None, color=FIRST, linewidth=2.4)
        shown.add("line")
    if kind == "random" and not gaps.all():
        axes.stairs(np.nan_to_num(levels), edges, fill=True, color=_SHADES["random"][0])
        shown.add("random")
    return shown


def _shade(axes: Axes, start: float, end: float, kind: str) -> None:
    colour, hatch, _ = _SHADES[kind]
    axes.axvspan(
        start, end, facecolor=colour, edgecolor=RULE if hatch else "none", hatch=hatch, linewidth=0, zorder=0
    )


def _name_moments(axes: Axes, places: list[float], names: list[str], inner: float) -> None:
    """Names of the stages that train nothing, slanted above the axes, each joined to its moment by a thin line."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    base = axes.get_window_extent()
    for place, moved, name in zip(places, spread(places, _APART, inner + 8), names, strict=True):
        where = [base.x0 + place, base.x0 + place, base.x0 + moved]
        line = axes.plot(
            where, [base.y1, base.y1 + 8, base.y1 + 22], color=PALE, linewidth=0.8, clip_on=False
        )[0]
        line.set_transform(None)
        figure.text(
            (base.x0 + moved - 2) / figure.bbox.width,
            (base.y1 + 25) / figure.bbox.height,
            name,
            rotation=_SLOPE,
            rotation_mode="anchor",
            ha="left",
            va="baseline",
            **_STAGE,
        )


def _legend(axes: Axes, shown: set[str]) -> None:
    handles: list[Any] = []
    if "line" in shown:
        handles.append(Line2D([], [], color=FIRST, linewidth=2.4, label="magnitude M"))
    for kind, (colour, hatch, label) in _SHADES.items():
        if kind in shown:
            handles.append(Patch(facecolor=colour, edgecolor=RULE, hatch=hatch, linewidth=0.6, label=label))
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, -0.15), ncols=3, borderaxespad=0, fontsize=8.5
    )

"""A learned schedule over epochs: how likely each of the fifteen operations is, stacked, and how strong, as a map."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from compress_aug.pictures.paper import DPI, PALE, heading, paper, save
from compress_aug.policies import MAX_MAGNITUDE, OPERATIONS, Curves

# In families, each with a hue of its own and dark beside light, so that fifteen can be told apart: geometry, colour,
# tones, and what is painted over.
COLOURS = {
    "Rotate": "#0b3c6f",
    "TranslateX": "#5aa9e6",
    "TranslateY": "#1273b8",
    "ShearX": "#9fe0d4",
    "ShearY": "#17897a",
    "Brightness": "#7f1d1d",
    "Color": "#f2a154",
    "Contrast": "#d1432f",
    "Sharpness": "#f7d06b",
    "Invert": "#3d1a66",
    "Posterize": "#c9a3ee",
    "Solarize": "#8645c4",
    "Equalize": "#f3b3d6",
    "AutoContrast": "#c2347f",
    "Cutout": "#8a9299",
}
WITHOUT_MAGNITUDE = ("Invert", "Equalize", "AutoContrast")
_OFF = "#eceff1"


@dataclass(frozen=True)
class Bands:
    """The curves of a schedule, equal epochs that follow each other taken together.

    edges:       (bands + 1,), the epoch in which each band begins, and the end of the last
    probability: (15, bands), normalised: laid on top of each other they reach 1 where the schedule is strongest
    magnitude:   (15, bands), 0..9; nan where the probability is 0, so that nothing happens
    """

    edges: NDArray[np.int64]
    probability: NDArray[np.float64]
    magnitude: NDArray[np.float64]


def policy_bands(curves: Curves) -> Bands:
    """The numbers of the figure, in the order of `COLOURS`.

    >>> from compress_aug.policies import Policy, PolicySchedule, Segment, curves
    >>> rotate = Policy.from_vector([3, 7] + [0] * 28 + [5, 2] + [0] * 28)
    >>> bands = policy_bands(curves(PolicySchedule(5, (Segment(3, Policy.none()), Segment(2, rotate)))))
    >>> bands.edges.tolist(), bands.probability[0].tolist(), bands.magnitude[0].tolist()
    ([0, 3, 5], [0.0, 1.0], [nan, 4.5])
    """
    rows = zip(curves.normalised_probability(), curves.magnitude, strict=True)
    runs = [(pair, sum(1 for _ in epochs)) for pair, epochs in groupby(rows)]
    order = [curves.operations.index(name) for name in COLOURS]
    probability = np.array([pair[0] for pair, _ in runs]).T[order]
    magnitude = np.array([pair[1] for pair, _ in runs]).T[order]
    edges = np.cumsum([0, *(length for _, length in runs)])
    return Bands(edges, probability, np.where(probability > 0, magnitude, np.nan))


def draw_policies(curves: Curves, path: str | Path, *, title: str, note: str) -> Path:
    """Write the two panels as PNG and return its path.

    title, note: the line above the figure, and the paler one below that

    Raises UserError if the file cannot be written; see `check_png`.

    Source: the upper panel is the schedule figure of arXiv 2004.08861; that operations which are off have no
    magnitude in the lower one is ours.
    """
    bands = policy_bands(curves)
    with paper():
        figure = Figure(figsize=(11, 9.8), dpi=DPI, facecolor="white")
        upper = figure.add_axes((0.115, 0.578, 0.725, 0.35))
        lower = figure.add_axes((0.115, 0.055, 0.725, 0.405))
        _stack(upper, bands)
        heading(upper, title, note)
        _map(lower, bands, figure)
        return save(figure, path)


def _stack(axes: Axes, bands: Bands) -> None:
    base = np.zeros(bands.probability.shape[1])
    for colour, share in zip(COLOURS.values(), bands.probability, strict=True):
        axes.stairs(base + share, bands.edges, baseline=base, fill=True, color=colour, linewidth=0)
        # A white line keeps neighbours apart; where there is nothing it would leave a hairline.
        some = share > 0
        top, starts, ends = (base + share)[some], bands.edges[:-1][some], bands.edges[1:][some]
        axes.hlines(top, starts, ends, color="white", linewidth=0.5)
        base = base + share
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("probability, summed over the operations,\nas a share of the largest sum")
    handles = [Patch(color=colour, label=name) for name, colour in reversed(COLOURS.items())]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.03),
        fontsize=9,
        handlelength=1.4,
        labelspacing=0.42,
    )
    _over_epochs(axes, bands)


def _map(axes: Axes, bands: Bands, figure: Figure) -> None:
    rows = np.arange(len(OPERATIONS) + 1)
    # Means of two whole numbers go in halves; a colour for each whole step is as fine as the eye tells them apart.
    shades = ListedColormap(colormaps["YlGnBu"](np.linspace(0.12, 1, MAX_MAGNITUDE + 1)))
    norm = BoundaryNorm(np.arange(-0.5, MAX_MAGNITUDE + 1), shades.N)
    axes.set_facecolor(_OFF)
    shown = axes.pcolormesh(bands.edges, rows, np.ma.masked_invalid(bands.magnitude), cmap=shades, norm=norm)
    axes.hlines(rows, *bands.edges[[0, -1]].tolist(), color="white", linewidth=1)
    names = [f"{name}*" if name in WITHOUT_MAGNITUDE else name for name in COLOURS]
    axes.set_yticks(rows[:-1] + 0.5, names, fontsize=9)
    axes.tick_params(axis="y", length=0, pad=14)
    # The colours of the upper panel again, as little squares beside the names.
    up = axes.get_yaxis_transform()
    colours = list(COLOURS.values())
    beside = [-0.012] * len(names)
    axes.scatter(beside, rows[:-1] + 0.5, s=36, c=colours, marker="s", transform=up, clip_on=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    heading(
        axes,
        "Mean magnitude of an operation's two copies",
        "It has no effect on those with *; at 5, Brightness, Color, Contrast and Sharpness change nothing",
    )
    _over_epochs(axes, bands)
    scale = figure.add_axes((0.855, 0.12, 0.016, 0.34))
    bar = figure.colorbar(shown, cax=scale, ticks=range(MAX_MAGNITUDE + 1), label="magnitude, 0..9")
    bar.outline.set_visible(False)
    scale.tick_params(length=0)
    off = figure.add_axes((0.855, 0.075, 0.016, 0.022), xticks=[], yticks=[], facecolor=_OFF)
    off.spines[:].set_visible(False)
    figure.text(0.876, 0.086, "off: probability 0", va="center", fontsize=9, color=PALE)


def _over_epochs(axes: Axes, bands: Bands) -> None:
    axes.set_xlim(*bands.edges[[0, -1]].tolist())
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))

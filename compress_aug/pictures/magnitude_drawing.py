"""A schedule of RandAugment's magnitude: over a stage's progress, or over the fact that it is read from."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from compress_aug import schedule
from compress_aug.pictures.paper import DPI, FIRST, PALE, heading, paper, save
from compress_aug.schedule import AnySchedule, Points

POINTS = 2000
"""How many places a curve is read at; steps are then off by less than a pixel."""

_AXES = {
    "progress": "progress of the stage",
    "sparsity": "sparsity: share of the weights that are zero",
    "parameters": "parameters, as a share of the model that entered the recipe",
    "bits": "mean bits of a weight; float is 32",
}


@dataclass(frozen=True)
class MagnitudeCurve:
    """The magnitude at many places.

    by:        what `at` counts: progress in [0, 1], or sparsity, parameters, bits
    at:        (P,), rising
    magnitude: (P,), whole numbers 0..30; nan where no RandAugment is in force
    exact:     (P,), the value before it is rounded
    """

    by: str
    at: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    exact: NDArray[np.float64]


def magnitude_curve(given: AnySchedule, points: int = POINTS) -> MagnitudeCurve:
    """Read a schedule of a magnitude at so many places, the ends included.

    >>> curve = magnitude_curve(schedule.Ramp(start=4, end=0), points=5)
    >>> curve.at.tolist(), curve.magnitude.tolist()
    ([0.0, 0.25, 0.5, 0.75, 1.0], [4.0, 3.0, 2.0, 1.0, nan])
    """
    by = given.by if isinstance(given, Points) else "progress"
    at = np.linspace(*_range(given), points)
    magnitude, exact = np.empty(points), np.empty(points)
    for place, where in enumerate(at.tolist()):
        # A stage ends before its progress is 1: no step is taken at what comes there.
        progress = min(where, 1 - 1e-6) if by == "progress" else 0.0
        facts = None if by == "progress" else lambda _, fact=where: fact
        whole = schedule.magnitude(given, progress, facts)
        magnitude[place] = math.nan if whole is None else whole
        exact[place] = schedule.value(given, progress, facts)
    return MagnitudeCurve(by, at, magnitude, exact)


def draw_magnitude(given: AnySchedule, path: str | Path, *, title: str, note: str) -> Path:
    """Write the curve of a magnitude as PNG and return its path.

    title, note: the line above the figure, and the paler one below that

    Raises UserError if the file cannot be written; see `check_png`.
    """
    curve = magnitude_curve(given)
    with paper():
        figure = Figure(figsize=(9, 4.9), dpi=DPI, facecolor="white")
        axes = figure.add_axes((0.075, 0.2, 0.9, 0.64))
        if np.any(curve.exact != np.nan_to_num(curve.magnitude)):
            axes.plot(curve.at, curve.exact, color=PALE, linewidth=1, linestyle=":", label="before rounding")
        axes.plot(curve.at, curve.magnitude, color=FIRST, linewidth=2.2, label="magnitude M")
        if isinstance(given, Points):
            axes.plot(
                list(given.points), list(given.points.values()), "o", color=PALE, markersize=5, label="points"
            )
        shade_none(axes, curve.at, curve.magnitude)
        _frame(axes, curve)
        heading(axes, title, note)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.18), ncols=4, borderaxespad=0, fontsize=8.5)
        return save(figure, path)


def magnitude_axis(axes: Axes, largest: float) -> None:
    """The vertical axis of every picture of a magnitude: from 0 to a little above the largest, whole numbers."""
    axes.set_ylim(0, max(4.0, 1.16 * largest))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_ylabel("magnitude M, 0..30")
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def shade_none(axes: Axes, at: NDArray[np.float64], magnitude: NDArray[np.float64]) -> None:
    """Shade where no RandAugment is in force."""
    if np.isnan(magnitude).any():
        where = np.isnan(magnitude)
        label = "no RandAugment (below 1)"
        axes.fill_between(
            at, 0, 1, where=list(where), transform=axes.get_xaxis_transform(), color="#eef1f3", label=label
        )


def _frame(axes: Axes, curve: MagnitudeCurve) -> None:
    magnitude_axis(axes, float(np.nanmax([*curve.magnitude, *curve.exact])))
    axes.set_xlabel(_AXES[curve.by])
    low, high = curve.at[0], curve.at[-1]
    # A model that shrinks goes from left to right in every picture.
    shrinks = curve.by in ("parameters", "bits")
    axes.set_xlim(*((high, low) if shrinks else (low, high)))


def _range(given: AnySchedule) -> tuple[float, float]:
    if not isinstance(given, Points):
        return 0.0, 1.0
    low, high = min(given.points), max(given.points)
    return min(low, 1.0 if given.by == "bits" else 0.0), max(high, 32.0 if given.by == "bits" else 1.0)

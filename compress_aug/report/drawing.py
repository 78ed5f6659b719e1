"""The paper that the curves are drawn on: stages along one axis, the page's colours, SVG that fits into HTML.

Every figure has the same horizontal axis and the same margins, so that what stands above each other happened
together. No word of the recipe is drawn: stages are called by their number. Colours are left to the page's
style sheet (`var(--plot-ink)`, ...), which knows light from dark.
"""

import io
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from compress_aug.pictures.paper import style
from compress_aug.report.contract import Report, Stage

# Drawn in these colours and then put under the names that the style sheet defines.
COLOURS = {
    "ink": "#010a01",
    "rule": "#020a02",
    "edge": "#060a06",
    "first": "#030a03",
    "second": "#040a04",
    "third": "#050a05",
}
INK, RULE, EDGE, FIRST, SECOND, THIRD = COLOURS.values()
STYLE: dict[Any, Any] = {**style(INK, RULE), "svg.fonttype": "none"}
# Runs of this many epochs or fewer get a dot for each: they are few enough to be told apart.
_FEW = 60

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Span:
    """Where a stage lies on the horizontal axis; one without epochs is a moment, start == end."""

    number: int
    stage: Stage
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """All spans, and what the axis counts: epochs, or the stages themselves in a run that trains nothing."""

    spans: list[Span]
    unit: str

    @property
    def length(self) -> float:
        """How far the axis goes."""
        return self.spans[-1].end if self.spans else 0.0


def timeline(report: Report) -> Timeline:
    """Lay the stages one after another.

    >>> stages = [{"history": [{}] * 160}, {"word": "prune"}, {"history": [{}] * 40}]
    >>> [(span.start, span.end) for span in timeline(Report(version=1, stages=stages)).spans]
    [(0, 160), (160, 160), (160, 200)]
    """
    trains = any(stage.history for stage in report.stages)
    spans, at = [], 0
    for number, stage in report.numbered():
        length = len(stage.history) if trains else 1
        spans.append(Span(number, stage, at, at + length))
        at += length
    return Timeline(spans, "epoch" if trains else "stages done")


@contextmanager
def paper() -> Iterator[None]:
    """Within it, figures look like the page, whatever the user's own matplotlibrc asks for (LaTeX, ...)."""
    with rc_context():
        rcdefaults()
        rcParams.update(STYLE)
        yield


def canvas(line: Timeline, label: str, height: float = 2.1) -> tuple[Figure, Axes]:
    """Axes over the whole run, with the stages' numbers above and a line wherever one ends.

    height: of the figure, in inches
    """
    figure = Figure(figsize=(9.6, height))
    # Margins in inches, the same for every figure: the axes then stand exactly above each other.
    figure.subplots_adjust(left=0.75 / 9.6, right=1 - 1.75 / 9.6, bottom=0.45 / height, top=1 - 0.3 / height)
    axes = figure.add_subplot()
    length = max(line.length, 1)
    axes.set_xlim(-0.01 * length, 1.01 * length)
    axes.set_xlabel(line.unit)
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    for edge in sorted({span.end for span in line.spans[:-1]} | {span.start for span in line.spans[1:]}):
        axes.axvline(edge, color=EDGE, linewidth=0.9, linestyle=(0, (2, 2)))
    for at, text in _labels(line):
        axes.text(
            at, 1.03, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8.5
        )
    return figure, axes


def _labels(line: Timeline) -> list[tuple[float, str]]:
    """Stage numbers above the axes: a training over its middle, the changes of one moment together.

    A label that would run into the one before it is left out.
    """
    moments: dict[float, list[int]] = {}
    for span in line.spans:
        moments.setdefault((span.start + span.end) / 2, []).append(span.number)
    labels, free = [], -math.inf
    for at, numbers in sorted(moments.items()):
        text = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        half = 0.006 * max(line.length, 1) * (len(text) + 1)
        if at - half >= free:
            labels.append((at, text))
            free = at + half
    return labels


def say(axes: Axes, line: Timeline, span: Span, text: str) -> None:
    """A word at the foot of a stage's span, if it is wide enough to hold it."""
    if span.end - span.start > 0.05 * line.length:
        axes.text((span.start + span.end) / 2, 0.05, text, transform=axes.get_xaxis_transform(), ha="center")


def lines(axes: Axes, line: Timeline, segments: list[Points], name: str, colour: str, style: str) -> None:
    """One curve in pieces: a gap where the value is unknown, a dot where a piece is a single epoch."""
    marker = "." if line.length <= _FEW else ""
    for place, points in enumerate(segments):
        dotted = marker or ("." if len(points) == 1 else "")
        axes.plot(
            *columns(points),
            linestyle=style,
            marker=dotted,
            color=colour,
            linewidth=1.6,
            label=name if place == 0 else None,
        )


def legend(axes: Axes) -> None:
    """The names of the curves, beside the plot and not on it."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03), borderaxespad=0, fontsize=8.5, handlelength=2)


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element that can stand in a page beside others.

    Its ids start with `name`; it names no address, not even a namespace's, for HTML needs none.
    """
    buffer = io.StringIO()
    # The salt makes the ids, and so the whole page, the same for the same report.
    with rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", svg)
    for colour, code in COLOURS.items():
        svg = svg.replace(code, f"var(--plot-{colour})")
    return svg


def columns(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Points as their x and their y, which is how matplotlib wants them."""
    pairs = list(points)
    return [x for x, _ in pairs], [y for _, y in pairs]


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether a value can be drawn; beyond 1e30 an axis overflows, and no quantity here goes there."""
    return value is not None and abs(value) < 1e30


def or_nan(value: float | None) -> float:
    """The value, or NaN, at which a curve breaks off."""
    return value if is_number(value) else math.nan

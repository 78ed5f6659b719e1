"""What the searches of a run found, drawn for the page: accuracy over magnitude, and of each member over epochs."""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compress_aug.report import drawing, words
from compress_aug.report.contract import Report, Search, Sweep

# Left of 0, because none is not M = 0.
_NONE_AT = -2.5
_STYLES = ("-", "--", ":", "-.")

Parts = tuple[str, str, str, str]
"""Title, caption, description and SVG of a figure."""


def figures(report: Report) -> Iterator[Parts]:
    """One figure for each search that has something to show."""
    for number, stage in report.numbered():
        found = stage.search
        if found is None:
            continue
        if any(sweep.curve for sweep in found.summaries):
            yield _sweep(number, found)
        elif any(drawing.is_number(value) for curve in found.curves for value in curve):
            yield _members(number, found)


def _axes(label: str, below: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.6, 2.9))
    figure.subplots_adjust(left=0.75 / 9.6, right=1 - 1.75 / 9.6, bottom=0.45 / 2.9, top=1 - 0.3 / 2.9)
    axes = figure.add_subplot()
    axes.set_xlabel(below)
    axes.set_ylabel(label)
    axes.grid(axis="y")
    return figure, axes


def _sweep(number: int, found: Search) -> Parts:
    figure, axes = _axes("validation accuracy, %", "magnitude")
    colours = (drawing.FIRST, drawing.SECOND, drawing.THIRD)
    told = []
    for place, one in enumerate(found.summaries):
        points = [
            (_NONE_AT if magnitude is None else magnitude, 100 * accuracy)
            for magnitude, accuracy, _, _ in one.curve
            if drawing.is_number(accuracy)
        ]
        colour, style = colours[place % 3], _STYLES[place // 3 % len(_STYLES)]
        name = f"{words.percent(one.sparsity, 0)} zeros"
        axes.plot(*drawing.columns(points), style, marker=".", color=colour, linewidth=1.6, label=name)
        best = [point for point in points if point[0] == (_NONE_AT if one.optimal is None else one.optimal)]
        axes.plot(*drawing.columns(best), "D", color=colour, markersize=6)
        told.append(_words_of(one))
    axes.set_xticks([_NONE_AT, 0, 5, 10, 15, 20, 25, 30], ["none", "0", "5", "10", "15", "20", "25", "30"])
    drawing.legend(axes)
    return (
        f"Magnitudes tried by stage {number}",
        "A curve for each sparsity; its best magnitude is the diamond. Accuracies are on validation images.",
        f"Best magnitude by sparsity. {'; '.join(told)}.",
        drawing.svg(figure, f"sweep{number}"),
    )


def _words_of(one: Sweep) -> str:
    best = "none" if one.optimal is None else f"{one.optimal:g}"
    largest = "none" if one.maximal is None else f"{one.maximal:g}"
    return f"{words.percent(one.sparsity, 0)} zeros: {best}, largest that is no worse than none {largest}"


def _members(number: int, found: Search) -> Parts:
    figure, axes = _axes("validation accuracy, %", "epoch of the search")
    for place, curve in enumerate(found.curves):
        points = [(epoch, 100 * value) for epoch, value in enumerate(curve, 1) if drawing.is_number(value)]
        is_best = place == found.best_member
        axes.plot(
            *drawing.columns(points),
            color=drawing.FIRST if is_best else drawing.SECOND,
            linewidth=2.2 if is_best else 0.8,
            zorder=3 if is_best else 2,
            label="the best at the end"
            if is_best
            else ("others" if place == (found.best_member == 0) else None),
        )
    drawing.legend(axes)
    last = [curve[-1] for curve in found.curves if curve and drawing.is_number(curve[-1])]
    ends = f"{words.percent(min(last, default=None))} to {words.percent(max(last, default=None))}"
    return (
        f"Members of the search of stage {number}",
        "Each line is a member; one that takes over from another goes on with the other's weights.",
        f"Validation accuracy of {len(found.curves)} members at the end, from {ends}.",
        drawing.svg(figure, f"members{number}"),
    )

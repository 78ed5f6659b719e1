"""The curves of a run for the page: accuracy, magnitude, size, loss and learning rate over all its epochs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from compress_aug.report import drawing, searches, words
from compress_aug.report.contract import Epoch, Report, Stage


@dataclass(frozen=True)
class Plot:
    """One figure: what it is called, how to read it, what it shows in words, and the drawing."""

    title: str
    caption: str
    description: str
    svg: str


def draw(report: Report) -> list[Plot]:
    """Every figure for which the report has something to show, in the order of the page."""
    line = drawing.timeline(report)
    with drawing.paper():
        figures = [panel(line, report) for panel in (_accuracy, _magnitude, _size, _loss, _learning_rate)]
        found = [Plot(*parts) for parts in searches.figures(report)]
    return [*(figure for figure in figures if figure is not None), *found]


def _accuracy(line: drawing.Timeline, report: Report) -> Plot | None:
    tested = [
        (span.end, 100 * value) for span in line.spans if drawing.is_number(value := span.stage.accuracy)
    ]
    curves = [
        ("validation", _segments(line, lambda row: row.validation_accuracy, 100), drawing.SECOND, "-"),
        ("training", _segments(line, lambda row: row.train_accuracy, 100), drawing.THIRD, "--"),
    ]
    if not tested and not any(segments for _, segments, _, _ in curves):
        return None
    figure, axes = drawing.canvas(line, "accuracy, %", height=2.9)
    for name, segments, colour, style in curves:
        drawing.lines(axes, line, segments, name, colour, style)
    if tested:
        axes.plot(
            *drawing.columns(tested),
            "D",
            color=drawing.FIRST,
            markersize=5.5,
            label="test, after a stage",
            zorder=4,
        )
    drawing.legend(axes)
    told = "; ".join(
        f"{span.number}: {words.percent(span.stage.accuracy)}"
        for span in line.spans
        if span.stage.accuracy is not None
    )
    return Plot(
        "Accuracy",
        "Lines are measured after each epoch, diamonds on the test split after a stage that changed the "
        "model. Two diamonds above each other show what a change cost.",
        f"Test accuracy by stage. {told}.",
        drawing.svg(figure, "accuracy"),
    )


def _magnitude(line: drawing.Timeline, report: Report) -> Plot | None:
    points: drawing.Points = []
    for span in line.spans:
        for number, row in enumerate(span.stage.history):
            first, last = row.magnitude or (None, None)
            points.append((span.start + number, drawing.or_nan(first)))
            points.append((span.start + number + 1, drawing.or_nan(last)))
    if not any(math.isfinite(value) for _, value in points):
        return None
    figure, axes = drawing.canvas(line, "magnitude")
    axes.plot(*drawing.columns(points), color=drawing.FIRST, linewidth=2)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    for span in line.spans:
        if span.stage.strength == (None, None) or span.stage.policy:
            drawing.say(axes, line, span, "policy" if span.stage.policy else "none")
    told = "; ".join(f"{span.number}: {_strength(span.stage)}" for span in line.spans if span.stage.history)
    return Plot(
        "Augmentation magnitude",
        "Strength of the augmentation, 0 to 30. Where the line is missing, no magnitude was in force: none, or a "
        "learned policy. Where each image drew its own, the line is the largest.",
        f"Magnitude by stage. {told}.",
        drawing.svg(figure, "magnitude"),
    )


def _strength(stage: Stage) -> str:
    return words.strength(stage.strength, drawn=bool(stage.random_magnitude), policy=bool(stage.policy))


def _size(line: drawing.Timeline, report: Report) -> Plot | None:
    first = next((span.stage for span in line.spans if span.stage.parameters), None)
    original = report.original
    parameters = (original.parameters if original else None) or (first.parameters if first else None)
    macs = (original.macs if original else None) or (first.macs if first else None)
    curves: list[tuple[str, drawing.Points, str, str]] = [
        ("zeros (sparsity)", _steps(line, lambda stage: stage.sparsity, 1), drawing.FIRST, "-"),
        (
            "non-zero parameters",
            _steps(line, lambda stage: stage.nonzero_parameters, parameters),
            drawing.SECOND,
            "--",
        ),
        ("multiply-accumulates", _steps(line, lambda stage: stage.macs, macs), drawing.THIRD, ":"),
    ]
    if not any(points for _, points, _, _ in curves):
        return None
    figure, axes = drawing.canvas(line, "%")
    for name, points, colour, style in curves:
        if points:
            axes.plot(*drawing.columns(points), linestyle=style, color=colour, linewidth=2, label=name)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    drawing.legend(axes)
    told = "; ".join(
        f"{span.number}: {words.percent(span.stage.sparsity, 1)} zeros, "
        f"{words.parameters(span.stage.parameters, span.stage.nonzero_parameters)} parameters"
        for span in line.spans
    )
    return Plot(
        "Sparsity and size",
        "Zeros are a share of the prunable weights; parameters and multiply-accumulates are shares of what "
        "the model had that came in. Zeros in place do not lower the multiply-accumulates, cut channels do.",
        f"Size by stage. {told}.",
        drawing.svg(figure, "size"),
    )


def _loss(line: drawing.Timeline, report: Report) -> Plot | None:
    segments = _segments(line, lambda row: row.loss)
    if not segments:
        return None
    figure, axes = drawing.canvas(line, "training loss")
    drawing.lines(axes, line, segments, "loss", drawing.FIRST, "-")
    last = [span for span in line.spans if span.stage.loss is not None]
    told = "; ".join(f"{span.number}: {words.loss(span.stage.loss)}" for span in last)
    return Plot(
        "Training loss",
        "Mean over each epoch. Stages with different objectives are not comparable.",
        f"Training loss of the last epoch by stage. {told}.",
        drawing.svg(figure, "loss"),
    )


def _learning_rate(line: drawing.Timeline, report: Report) -> Plot | None:
    segments = _segments(line, lambda row: row.lr)
    if not segments:
        return None
    figure, axes = drawing.canvas(line, "learning rate")
    drawing.lines(axes, line, segments, "learning rate", drawing.FIRST, "-")
    peaks = [max(value for _, value in segment) for segment in segments]
    # A fine-tuning rate would lie flat on the axis beside the first training's.
    logarithmic = min(peaks) > 0 and max(peaks) / min(peaks) > 5
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(bottom=min(peaks) / 100)
    else:
        axes.set_ylim(bottom=0)
    return Plot(
        "Learning rate",
        f"At the end of each epoch{', on a logarithmic scale' if logarithmic else ''}.",
        f"Learning rate; the highest of each training in turn: {', '.join(f'{peak:.3g}' for peak in peaks)}.",
        drawing.svg(figure, "rate"),
    )


def _segments(
    line: drawing.Timeline, value: Callable[[Epoch], float | None], factor: float = 1
) -> list[drawing.Points]:
    """One run of points for each stage with such a value, unjoined: the model changed between them."""
    found = []
    for span in line.spans:
        rows = enumerate(span.stage.history, start=1)
        points = [(span.start + n, factor * got) for n, row in rows if drawing.is_number(got := value(row))]
        if points:
            found.append(points)
    return found


def _steps(
    line: drawing.Timeline, value: Callable[[Stage], float | None], whole: float | None
) -> drawing.Points:
    """A stage's value holds over its whole span; in percent of `whole`."""
    points: drawing.Points = []
    for span in line.spans:
        got = value(span.stage)
        if whole and drawing.is_number(got):
            points += [(span.start, 100 * got / whole), (span.end, 100 * got / whole)]
    return points

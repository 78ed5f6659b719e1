"""What the user sees in the terminal when a run ends: stages, what each file gained, where all lies.

Nothing is told by colour alone and every word of ours is ASCII, so that a pipe, a log file or a monochrome
terminal shows the same. Words of the recipe go in as text, never as markup.
"""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compress_aug.report import comparison, words
from compress_aug.report.contract import Export, Original, Report, Stage, as_report


def report_table(report: Mapping[str, Any] | Report) -> RenderableType:
    """The table at the end of a run, for `rich.print`; readable from 80 columns on.

    report: what report.json holds; keys may be missing or null, as in a run that was stopped.

    Raises RunFolderError if the report is broken or of another version.

    >>> import rich
    >>> rich.print(report_table({"version": 1, "recipe": "quickstart"}))  # doctest: +ELLIPSIS
    quickstart
    NOT FINISHED: no stage is done so far; go on with --resume.
    ...
    """
    known = as_report(report)
    title = known.recipe or "(recipe without a name)"
    parts: list[RenderableType] = [Text(", ".join([title, *circumstances(known)]), style="bold")]
    if not known.finished:
        parts.append(Text(unfinished(known)))
    parts += [_stages(known), *_notes(known)]
    for export in known.exports:
        parts += [Text(""), *_export(known, export)]
    if known.folder:
        parts += [Text(""), Text(f"Everything lies in {known.folder}", overflow="fold")]
    return Group(*parts)


def circumstances(report: Report) -> list[str]:
    """What the recipe was run with, as far as it is known.

    >>> circumstances(Report(version=1, seed=0, device="cpu"))
    ['seed 0', 'cpu']
    """
    data = report.data.name if report.data else None
    target = report.target.name if report.target else None
    parts = (
        None if report.seed is None else f"seed {report.seed}",
        report.device,
        data and f"data {data}",
        target and f"target {target}",
    )
    return [part for part in parts if part]


def unfinished(report: Report) -> str:
    """How far a run came that was stopped, or is under way."""
    count = len(report.stages)
    done = "no stage is" if count == 0 else "1 stage is" if count == 1 else f"{count} stages are"
    return f"NOT FINISHED: {done} done so far; go on with --resume."


def _stages(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("stage", min_width=10, overflow="fold")
    for title in ("accuracy", "sparsity", "parameters", "magnitude", "loss", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    original = report.original or Original()
    table.add_row(
        "", "(the model that came in)", words.percent(original.accuracy), "", words.short(original.parameters)
    )
    for number, stage in report.numbered():
        table.add_row(str(number), *_cells(stage))
    return table


def _cells(stage: Stage) -> tuple[Text | str, ...]:
    return (
        Text(stage.name),
        words.percent(stage.accuracy),
        words.percent(stage.sparsity, 1),
        words.parameters(stage.parameters, stage.nonzero_parameters),
        words.strength(stage.strength, drawn=bool(stage.random_magnitude), policy=bool(stage.policy)),
        words.loss(stage.loss),
        words.duration(stage.seconds),
    )


def _notes(report: Report) -> list[RenderableType]:
    # Once for all stages that say the same: every training says which number format it chose.
    where: dict[str, list[str]] = {}
    for number, stage in report.numbered():
        for note in stage.notes:
            where.setdefault(note, []).append(str(number))
    return [
        Text(f"stage{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {note}", overflow="fold")
        for note, numbers in where.items()
    ]


def _export(report: Report, export: Export) -> list[RenderableType]:
    """One file: a table of its gains, then the lines that prove it."""
    target = f" for {export.target}" if export.target else ""
    parts: list[RenderableType] = [Text(f"{export.name}{target}", style="bold", overflow="fold")]
    parts.append(_gains(report, export))
    parts.append(_lines(report, export))
    return parts


def _lines(report: Report, export: Export) -> RenderableType:
    lines = [("parity", comparison.parity(export))]
    if (steps := comparison.steps(export)) is not None:
        lines.append(("", steps))
    lines.append(("layers", words.layers(export.integer_layers, export.float_layers)))
    lines += [("", line) for line in comparison.stayed_float(export)]
    if export.latency_ms:
        lines.append(("latency", comparison.timed(report, export)))
    if export.slower:
        lines.append(("", export.slower))
    lines += [("BUDGET MISSED", miss) for miss in export.misses]
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, line in lines:
        grid.add_row(label, Text(line, overflow="fold"))
    return grid


def _gains(report: Report, export: Export) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    float_ = comparison.has_float(export)
    against = "against float" if float_ else "against original"
    for title in ("original", *(["float"] if float_ else []), "this file", against):
        table.add_column(title, justify="right")
    for row in comparison.rows(report, export):
        gain = row.against_float if float_ else row.against_original
        table.add_row(
            row.quantity, row.original, *([row.float_] if float_ else []), row.file, Text(gain, style="bold")
        )
    return table

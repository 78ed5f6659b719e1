"""report.json -> report.html: one page that needs nothing else, neither a network nor a script."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compress_aug.errors import RunFolderError
from compress_aug.folders import written_whole
from compress_aug.report import comparison, words
from compress_aug.report.contract import Original, Report, Stage, read_report
from compress_aug.report.table import circumstances, unfinished


@dataclass(frozen=True)
class Card:
    """One of the numbers at the top of the page, with what it is to be seen beside."""

    label: str
    value: str
    beside: str = ""


def write_page(folder: Path) -> Path:
    """Write report.html into the folder of a run, from its report.json and recipe.yaml; returns its path.

    The page holds its plots and styles itself. What comes from the recipe is text in it, never HTML, and the
    page forbids scripts and the network, so that a stranger's run can be opened.

    Raises RunFolderError if report.json is missing, broken or of another version, or if the page cannot be
    written.

    >>> write_page(Path("runs/quickstart"))  # doctest: +SKIP
    PosixPath('runs/quickstart/report.html')
    """
    report = read_report(folder)
    page = _render(report, folder)
    path = folder / "report.html"
    try:
        with written_whole(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror}.") from None
    return path


def _render(report: Report, folder: Path) -> str:
    # Late, because matplotlib takes most of a second to import and the terminal's table needs none of it.
    from compress_aug.report.plots import draw

    # Autoescape for every template, whatever its name ends in: recipes come from strangers.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"words": words, "comparison": comparison}
    # Not escaped, because it is our own drawing: no word of the recipe is in it.
    plots = [(plot, Markup(plot.svg)) for plot in draw(report)]
    quantized = any(_weight_bits(stage) < 32 for stage in report.stages)
    return environment.get_template("page.html.j2").render(
        report=report,
        name=report.recipe or words.plain(folder.name),
        circumstances=circumstances(report),
        unfinished=unfinished(report),
        misses=[(export.name, miss) for export in report.exports for miss in export.misses],
        cards=_cards(report),
        plots=plots,
        original=report.original or Original(),
        quantized=quantized,
        seconds=sum(stage.seconds or 0 for stage in report.stages),
        recipe=_recipe(folder),
        command=_command(report, folder),
        folder=words.plain(report.folder or str(folder)),
    )


def _cards(report: Report) -> list[Card]:
    """The few numbers that a reader looks for first; a number that is not known has no card."""
    original = report.original or Original()
    last = report.stages[-1] if report.stages else Stage()
    accuracy = next((s.accuracy for s in reversed(report.stages) if s.accuracy is not None), None)
    cards = [
        Card("Test accuracy", words.percent(accuracy), _came_in(words.percent(original.accuracy))),
        Card(
            "Parameters",
            words.short(last.parameters),
            _came_in(words.short(original.parameters)),
        ),
        Card("Sparsity", words.percent(last.sparsity, 1), f"{words.short(last.nonzero_parameters)} non-zero"),
        Card("Multiply-accumulates", words.short(last.macs), _came_in(words.short(original.macs))),
    ]
    for export in report.exports[-1:]:
        proxy = ", a proxy" if export.proxy else ""
        float_ = comparison.has_float(export)
        smaller = words.ratio(export.float_bytes, export.bytes, "smaller", "larger")
        latency = words.milliseconds(export.latency_ms.p50 if export.latency_ms else None)
        cards += [
            Card("File", words.size(export.bytes), f"{smaller} than in float" if float_ else ""),
            Card(
                f"Latency p50{proxy}",
                latency,
                f"{comparison.speed_up(export)} than in float" if float_ else "",
            ),
            Card(
                "Parity",
                words.percent(export.top1_agreement),
                f"same class; max |difference| {words.difference(export.max_abs_diff)}",
            ),
        ]
    return [card for card in cards if card.value != words.ABSENT]


def _came_in(value: str) -> str:
    return "" if value == words.ABSENT else f"original: {value}"


def _weight_bits(stage: Stage) -> float:
    bits = (stage.bits or {}).get("weights")
    return bits if isinstance(bits, (int, float)) else 32


def _recipe(folder: Path) -> str | None:
    """The text of recipe.yaml without characters that a terminal or an eye could be deceived by."""
    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return "\n".join(words.plain(line.replace("\t", "    ")) for line in text.split("\n"))


def _command(report: Report, folder: Path) -> str:
    """The command of the run, or else one that makes the run again from its own folder."""
    if report.command:
        return report.command
    parts = ["compress-aug", "run", str(Path(report.folder or folder) / "recipe.yaml")]
    if report.seed is not None:
        parts += ["--seed", str(report.seed)]
    return words.plain(shlex.join(parts))

"""What an exported file gained, in words: against the same net in float, and against the model before."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress_aug.report import words
from compress_aug.report.contract import Export, Latency, Original, Report


@dataclass(frozen=True)
class Row:
    """One quantity of three models, and how the file compares; everything as it is printed."""

    quantity: str
    original: str
    float_: str
    file: str
    against_float: str
    against_original: str


def rows(report: Report, export: Export) -> list[Row]:
    """Size, latency and accuracy of one export beside those of the models it is compared with."""
    original = report.original or Original()
    gzipped = words.size(export.gzip_bytes)
    found = [
        _row("size", words.size, (original.bytes, export.float_bytes, export.bytes), ("smaller", "larger")),
        Row("size, gzipped", words.ABSENT, words.ABSENT, gzipped, words.ABSENT, words.ABSENT),
        _latency("p50", original.latency_ms, export),
        _latency("p95", original.latency_ms, export),
        _row(
            "memory, peak",
            words.megabytes,
            (None, export.float_memory_mb, export.memory_mb),
            ("less", "more"),
        ),
        Row(
            "test accuracy",
            words.percent(original.accuracy),
            words.ABSENT,
            words.percent(export.accuracy),
            words.ABSENT,
            words.points(original.accuracy, export.accuracy),
        ),
    ]
    return [row for row in found if {row.original, row.float_, row.file} != {words.ABSENT}]


def has_float(export: Export) -> bool:
    """Whether the same net in float was written beside the file: not so if the file is float itself."""
    return export.float_bytes is not None and export.float_file != export.file


def speed_up(export: Export) -> str:
    """How many times faster than the same net in float the file is, at the median."""
    return words.ratio(_at("p50", export.float_latency_ms), _at("p50", export.latency_ms), "faster", "slower")


def parity(export: Export) -> str:
    """How far the file's outputs lie from the model's, in one line."""
    images = f" of {words.exact(export.images)} images" if export.images is not None else ""
    same = f"the same class for {words.percent(export.top1_agreement)}{images}"
    model = f", accuracy in PyTorch {words.percent(export.model_accuracy)}"
    return (
        f"{same}, max |difference| {words.difference(export.max_abs_diff)}"
        f"{model if export.model_accuracy is not None else ''}"
    )


def steps(export: Export) -> str | None:
    """How far the layers of a quantized file lie from the model's, in one line; None where that is unknown."""
    known = [layer for layer in export.layers if layer.quantizer and layer.max_steps is not None]
    if export.diverging:
        beyond = f"{export.diverging} is the first layer that differs by more than rounding explains"
        row = next((layer for layer in known if layer.layer == export.diverging), None)
        if row is None:
            return f"from equal inputs, {beyond}"
        wrong = round((row.flipped or 0) * (row.values or 0))
        return (
            f"from equal inputs, {beyond}: in {wrong} of {words.short(row.values)} values, "
            f"by {_furthest(row.max_steps or 0)}"
        )
    if not known:
        return None
    values = sum(layer.values or 0 for layer in known)
    flips = sum((layer.flipped or 0) * (layer.values or 0) for layer in known)
    largest = max(layer.max_steps or 0 for layer in known)
    places = f"{len(known)} quantizer{'s' * (len(known) != 1)}"
    return (
        f"from equal inputs, {round(flips)} of {words.short(values)} values at {places} differ, "
        f"by {_furthest(largest)}"
    )


def _furthest(steps: float) -> str:
    return f"{steps:.3g} step{'s' * (steps != 1)} at most"


def stayed_float(export: Export, named: int = 3) -> list[str]:
    """The layers that were not turned into integer kernels, one line for each reason.

    named: how many layers of a line are called by name.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name, kind, reason in export.stayed_float:
        groups.setdefault((kind or "layer", reason or "no reason was given"), []).append(name or "(unnamed)")
    lines = []
    for (kind, reason), names in groups.items():
        more = f", and {len(names) - named} more" if len(names) > named else ""
        lines.append(f"{len(names)} {kind} stayed float ({', '.join(names[:named])}{more}): {reason}")
    return lines


def timed(report: Report, export: Export) -> str:
    """How the latencies were taken, and whether they are only a proxy for the target's."""
    threads = "" if export.threads is None else f", {export.threads} thread{'s' * (export.threads != 1)}"
    target = export.target or (report.target.name if report.target else None) or "the target"
    if export.proxy:
        return f"a proxy: timed on this machine, not on the device {target}{threads}"
    return f"timed on {target}{threads}"


def _row(
    quantity: str,
    spell: Callable[[Any], str],
    values: tuple[float | None, float | None, float | None],
    comparatives: tuple[str, str],
) -> Row:
    original, float_, file = values
    return Row(
        quantity,
        spell(original),
        spell(float_),
        spell(file),
        words.ratio(float_, file, *comparatives),
        words.ratio(original, file, *comparatives),
    )


def _latency(which: str, original: Latency | None, export: Export) -> Row:
    name = f"latency {which}{', proxy' if export.proxy else ''}"
    values = (_at(which, original), _at(which, export.float_latency_ms), _at(which, export.latency_ms))
    return _row(name, words.milliseconds, values, ("faster", "slower"))


def _at(which: str, latency: Latency | None) -> float | None:
    return None if latency is None else (latency.p50 if which == "p50" else latency.p95)

"""The table of a study: rows of text from its runs, then the same for the terminal and as Markdown."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from rich import box
from rich.table import Table
from rich.text import Text

from compress_aug.report import words
from compress_aug.study.learned import Learned, learned
from compress_aug.study.spread import Spread, accuracy_at, measured, newest, sparsities, spread, values
from compress_aug.study.sweeps import Magnitude, Swept, magnitude_word, swept
from compress_aug.study.verdict import shown
from compress_aug.study.verdict import title as title_of
from compress_aug.study.words import Measure, RunResult, StudyFile

HEADERS: dict[Measure, str] = {
    "accuracy": "accuracy, %",
    "sparsity": "zeros, %",
    "parameters": "parameters",
    "nonzero_parameters": "not zero",
    "macs": "MACs",
    "bytes": "file, kB",
    "latency_ms": "latency, ms",
    "file_accuracy": "accuracy of file, %",
}
_ACCURACIES = ("accuracy", "file_accuracy")


@dataclass(frozen=True)
class Told:
    """A table as text: the words above its columns, then its rows. A cell may have several lines."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def told(file: StudyFile, runs: Sequence[RunResult]) -> Told:
    """The table that a study asks for. runs: of one preset, the oldest first.

    Numbers are means over the seeds ± their sample standard deviation, which one seed does not have; "-" stands for
    what was not run. Variants that the preset leaves out are left out.
    """
    if file.show.kind == "rounds":
        return _rounds(file, runs)
    if file.show.kind == "sweep":
        return _sweeps(file, runs)
    if file.show.kind == "schedules":
        return _schedules(file, runs)
    if any(variant.column is not None for variant in file.variants.values()):
        return _matrix(file, runs)
    return _measures(file, runs)


def row_name(file: StudyFile, name: str) -> str:
    """What a variant's row is called, in tables and pictures."""
    row = file.variants[name].row
    return title_of(file, name) if row is None else " ".join(row.split())


def rich_table(file: StudyFile, runs: Sequence[RunResult], title: str) -> Table:
    """The table for the terminal, readable from 110 columns on. Words of the file go in as text, never as markup."""
    found = told(file, runs)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        title=Text(words.plain(title), style="bold"),
        title_justify="left",
    )
    for name, cells in zip(found.header, zip(*found.rows, strict=True), strict=True):
        if not table.columns:
            table.add_column(Text(words.plain(name)), overflow="fold")
            continue
        # Numbers stay on their line; the words above them are broken instead.
        table.add_column(Text(_broken(words.plain(name), cells)), justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(*(Text("\n".join(map(words.plain, cell.split("\n")))) for cell in row))
    return table


def _broken(name: str, cells: Sequence[str]) -> str:
    """The words above a column in lines no longer than its cells or its longest word."""
    lines = [line for cell in cells for line in cell.split("\n")]
    return textwrap.fill(name, max(map(len, [*lines, *name.split()])), break_long_words=False)


def markdown(file: StudyFile, runs: Sequence[RunResult]) -> str:
    """The table as Markdown that GitHub and others read, without an end of line at its end."""
    found = told(file, runs)
    rows = [" | ".join(map(_cell, row)) for row in (found.header, *found.rows)]
    rule = " | ".join(("---", *("---:" for _ in found.header[1:])))
    return "\n".join(f"| {row} |" for row in (rows[0], rule, *rows[1:]))


def escaped(text: str) -> str:
    """The text with what Markdown would obey made harmless, on one line.

    >>> escaped("a|b *c* _d_ e_f <g>")
    'a\\\\|b \\\\*c\\\\* \\\\_d\\\\_ e_f \\\\<g\\\\>'
    """
    # An underscore within a word is only that.
    harmless = re.sub(r"([\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return words.plain(harmless)


def in_percent(found: Spread | None) -> str:
    """Mean and deviation of shares, in percent, without the sign.

    >>> in_percent(Spread(0.6477, 0.0031, 3)), in_percent(Spread(0.6477, None, 1)), in_percent(None)
    ('64.77 ± 0.31', '64.77', '-')
    """
    if found is None:
        return words.ABSENT
    return f"{100 * found.mean:.2f}" + ("" if found.deviation is None else f" ± {100 * found.deviation:.2f}")


def _cell(text: str) -> str:
    return "<br>".join(escaped(line) for line in text.split("\n"))


def _value(runs: Sequence[RunResult], name: str, measure: Measure) -> str:
    found = spread(values(runs, name, partial(measured, measure=measure)))
    if found is None or measure in _ACCURACIES:
        return in_percent(found)
    if measure == "sparsity":
        return f"{100 * found.mean:.2f}"
    if measure == "latency_ms":
        return f"{found.mean:.3f}" + ("" if found.deviation is None else f" ± {found.deviation:.3f}")
    # Counts are the same for every seed unless something is cut by what was learned.
    return _count(found.mean, measure) + (f" ± {_count(found.deviation, measure)}" if found.deviation else "")


def _count(number: float, measure: Measure) -> str:
    return f"{number / 1000:,.1f}" if measure == "bytes" else words.short(round(number))


def _measures(file: StudyFile, runs: Sequence[RunResult]) -> Told:
    variants = shown(file, runs)
    papers = any(variant.paper is not None for variant in variants.values())
    header = ("", *(HEADERS[measure] for measure in file.show.measures), *["paper, %"] * papers, "seeds")
    rows = [
        (
            row_name(file, name),
            *(_value(runs, name, measure) for measure in file.show.measures),
            *[words.ABSENT if variant.paper is None else f"{variant.paper:.2f}"] * papers,
            str(len(newest(runs, name))),
        )
        for name, variant in variants.items()
    ]
    return Told(header, tuple(rows))


def _matrix(file: StudyFile, runs: Sequence[RunResult]) -> Told:
    variants = shown(file, runs)
    measure = file.show.measures[0]
    columns = list(dict.fromkeys(variant.column or "" for variant in variants.values()))
    cells: dict[str, dict[str, list[str]]] = {}
    counts: dict[str, set[int]] = {}
    for name, variant in variants.items():
        paper = "" if variant.paper is None else f"\npaper {variant.paper:.2f}"
        row = row_name(file, name)
        text = f"{_value(runs, name, measure)}{paper}"
        cells.setdefault(row, {}).setdefault(variant.column or "", []).append(text)
        counts.setdefault(row, set()).add(len(newest(runs, name)))
    rows = [
        (row, *("\n".join(found.get(column, [words.ABSENT])) for column in columns), _range(counts[row]))
        for row, found in cells.items()
    ]
    return Told((HEADERS[measure], *columns, "seeds"), tuple(rows))


def _rounds(file: StudyFile, runs: Sequence[RunResult]) -> Told:
    at = sparsities([run for run in runs if run.variant in file.variants])
    rows = [
        (
            row_name(file, name),
            *(in_percent(spread(values(runs, name, partial(accuracy_at, sparsity=one)))) for one in at),
            str(len(newest(runs, name))),
        )
        for name in shown(file, runs)
    ]
    return Told(("accuracy, %", *(f"{100 * one:.3g} % zeros" for one in at), "seeds"), tuple(rows))


def _sweeps(file: StudyFile, runs: Sequence[RunResult]) -> Told:
    found = {name: swept(runs, name) for name in shown(file, runs)}
    # Columns that would only repeat others are left out.
    nets = len(found) > 1
    seeds = any(len(one.optimal) > 1 for sweeps in found.values() for one in sweeps)
    header = ("zeros", "optimal M", *["by seed"] * seeds, "maximal M", "accuracy, %", "without, %")
    rows: list[tuple[str, ...]] = []
    for name, sweeps in found.items():
        told = [_swept(one, seeds) for one in sweeps] or [(words.ABSENT,) * len(header)]
        rows += [(*[row_name(file, name)] * nets, *cells) for cells in told]
    return Told((*[""] * nets, *header), tuple(rows))


def _swept(one: Swept, seeds: bool) -> tuple[str, ...]:
    summary = one.summary
    return (
        f"{100 * summary.sparsity:.3g} %",
        magnitude_word(summary.optimal),
        *[", ".join(map(magnitude_word, one.optimal.values()))] * seeds,
        words.ABSENT if summary.maximal is None else str(summary.maximal),
        _at(one, summary.optimal),
        _at(one, None),
    )


def _at(one: Swept, magnitude: Magnitude) -> str:
    mean, deviation, _ = one.summary.curve.get(magnitude, (None, None, None))
    return in_percent(None if mean is None else Spread(mean, deviation, len(one.optimal)))


def _schedules(file: StudyFile, runs: Sequence[RunResult]) -> Told:
    header = (
        "schedule",
        "seed",
        "first epochs without",
        "epochs between changes",
        "most probable operations",
    )
    rows: list[tuple[str, ...]] = []
    for name in shown(file, runs):
        for one in learned(runs, name):
            rows.append((f"{row_name(file, name)}, {one.name}", str(one.seed), *_lives(one)))
        if not learned(runs, name):
            rows.append((row_name(file, name), *[words.ABSENT] * (len(header) - 1)))
    return Told(header, tuple(rows))


def _lives(one: Learned) -> tuple[str, ...]:
    strongest = [f"{operation} {share:.2f}" for operation, share in one.strongest]
    # Two lines, so that the table stays as wide as a terminal.
    lines = [", ".join(part) for part in (strongest[:3], strongest[3:]) if part]
    return (
        f"{one.without} of {one.schedule.epochs}",
        f"{one.between_changes:.1f}",
        "\n".join(lines) or words.ABSENT,
    )


def _range(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def about_paper(file: StudyFile, runs: Sequence[RunResult]) -> str | None:
    """What the paper's numbers in the table are of, where these runs are of something smaller; None if they are not."""
    if all(variant.paper is None for variant in shown(file, runs).values()):
        return None
    if {run.preset for run in runs} == {"paper"}:
        return None
    ours = sorted(
        {f"{run.model} on {run.data.get('train', 0):,} images of {run.data.get('name', '?')}" for run in runs}
    )
    return f"The paper's numbers are its own, with its data and epochs; these runs: {'; '.join(ours)}."

"""docs/results.md: what was run of every study, what came out, and whether it shows what the papers claim."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from compress_aug.folders import written_whole
from compress_aug.report import words
from compress_aug.study.spread import newest
from compress_aug.study.tables import about_paper, escaped, markdown
from compress_aug.study.verdict import RULE, judged, title
from compress_aug.study.words import RunResult, StudyFile, StudyResults

Find = Callable[[str], StudyFile]
Pictures = Callable[[StudyResults, str], str | None]
Remarks = Callable[[str, str], str | None]

_HOW = (
    "This page is written by `compress-aug results` from the runs that were made; no number in its tables, "
    "pictures and claims is typed by hand. "
    "Each study takes a question of a paper, runs what the paper compares with several seeds, and is judged by "
    "its claims. Presets make a study smaller than the paper's: compare variants with each other, not with the "
    "paper's numbers, wherever a preset's note says so."
)
_NOT_RUN = "A study or preset that is listed as not run has no results, and nothing is claimed of it."


def page(
    results: Sequence[StudyResults],
    find: Find,
    pictures: Pictures = lambda found, preset: None,
    remarks: Remarks = lambda study, preset: None,
    not_run: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The whole page as Markdown.

    results:  in the order of the page; a study without runs is listed as not run
    find:     the study's file by name
    pictures: the link to the picture of a study's preset, as seen from the page; None if there is none
    remarks:  what a person wrote on a study's preset; goes in as it is
    not_run:  name -> title of other studies, to be listed as not run
    """
    parts = ["# Results", _HOW, f"How claims are judged: {RULE} {_NOT_RUN}"]
    for found in results:
        parts += _study(found, find(found.study), pictures, remarks)
    if not_run:
        lines = "\n".join(f"- `{name}`: {escaped(said)}" for name, said in not_run.items())
        parts += ["## Not run", f"These studies ship too, and have no results here:\n\n{lines}"]
    return "\n\n".join(parts) + "\n"


def write_page(
    results: Sequence[StudyResults],
    to: Path,
    folder: Path,
    find: Find,
    not_run: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write the page, whole or not at all, and return its path.

    folder:  where STUDY-PRESET.png and a person's remarks, STUDY-PRESET.md, lie, as far as there are such
    not_run: name -> title of other studies, to be listed as not run
    """

    def picture(found: StudyResults, preset: str) -> str | None:
        path = folder / f"{found.study}-{preset}.png"
        return Path(os.path.relpath(path, to.parent)).as_posix() if path.is_file() else None

    def remark(study: str, preset: str) -> str | None:
        path = folder / f"{study}-{preset}.md"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    text = page(results, find, picture, remark, not_run)
    with written_whole(to) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return to


def _study(found: StudyResults, file: StudyFile, pictures: Pictures, remarks: Remarks) -> Iterator[str]:
    yield f"## {escaped(file.title)}"
    yield f"Study `{found.study}`. Source: {escaped(file.source)}"
    yield f"Question: {escaped(file.question)}"
    ran = {run.preset for run in found.runs}
    presets = [*(name for name in file.presets if name in ran), *sorted(ran - set(file.presets))]
    missing = [name for name in file.presets if name not in presets]
    for name in presets:
        runs = [run for run in found.runs if run.preset == name]
        yield from _preset(file, name, runs, pictures(found, name), remarks(found.study, name))
    if missing and presets:
        yield f"Not run: preset{'s' * (len(missing) > 1)} {', '.join(f'`{name}`' for name in missing)}."
    if not presets:
        yield "Not run."


def _preset(
    file: StudyFile, name: str, runs: Sequence[RunResult], picture: str | None, remark: str | None
) -> Iterator[str]:
    yield f"### {escaped(file.title)}: " + (
        f"preset `{name}`" if name in file.presets else "as the study says"
    )
    preset = file.presets.get(name)
    if preset is not None and preset.note:
        yield escaped(preset.note)
    yield markdown(file, runs)
    if line := about_paper(file, runs):
        yield escaped(line)
    if picture is not None:
        yield f"![{escaped(file.title)}, {name}]({picture})"
    if file.claims:
        yield "Claims:\n\n" + "\n".join(f"- {escaped(sentence)}" for sentence in judged(file, runs))
    if remark:
        yield remark
    yield "How it was run:\n\n" + "\n".join(f"- {line}" for line in _circumstances(file, name, runs))
    commands = list(dict.fromkeys(words.plain(run.command) for run in runs))
    yield "```\n" + "\n".join(command.replace("`", "'") for command in commands) + "\n```"


def _circumstances(file: StudyFile, name: str, runs: Sequence[RunResult]) -> Iterator[str]:
    """Lines on what a reader must know in order to believe the numbers, or to run it again."""
    yield f"{len(runs)} run{'s' * (len(runs) != 1)}, {_seeds(runs)}, {_days(runs)}"
    preset = file.presets.get(name)
    wanted = preset.only if preset is not None and preset.only is not None else file.variants
    ran = {run.variant for run in runs}
    if old := len(runs) - sum(len(newest(runs, variant)) for variant in ran):
        yield f"of these, {old} left out: of a variant that was changed since and not run again with every seed"
    if left := [escaped(title(file, variant)) for variant in wanted if variant not in ran]:
        yield f"not run of this preset: {', '.join(left)}"
    if gone := sorted(ran - set(file.variants)):
        yield f"run, but not in the study's file any more: {', '.join(map(escaped, gone))}"
    yield f"model: {_all(run.model for run in runs)}"
    yield f"data: {_all(_pairs(run.data) for run in runs)}"
    yield f"hardware: {_all(_pairs(run.machine) for run in runs)}"
    yield f"versions: {_all(_pairs(run.versions) for run in runs)}"
    yield f"time: {words.duration(sum(run.seconds for run in runs))}, of all runs together, without what they share"


def _seeds(runs: Sequence[RunResult]) -> str:
    seeds = sorted({run.seed for run in runs})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _days(runs: Sequence[RunResult]) -> str:
    days = sorted({run.finished[:10] for run in runs})
    return f"finished {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "")


def _pairs(known: dict[str, str] | dict[str, str | int]) -> str:
    return ", ".join(
        f"{key} {f'{value:,}' if isinstance(value, int) else value}" for key, value in known.items()
    )


def _all(said: Iterable[str]) -> str:
    """What all runs say, once; where they differ, each with how many runs say it."""
    counts = Counter(said)
    if len(counts) == 1:
        return escaped(next(iter(counts)))
    return "; ".join(f"{escaped(text)} ({count} run{'s' * (count != 1)})" for text, count in counts.items())

"""The picture of a study: its results handed to the drawings of variants, rounds, sweeps or schedules."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from compress_aug.errors import UserError
from compress_aug.pictures.paper import check_png
from compress_aug.pictures.policy_drawing import draw_policies
from compress_aug.pictures.study_drawing import Dots, Rounds, draw_rounds, draw_variants, stack
from compress_aug.pictures.sweep_drawing import draw_sweep
from compress_aug.policies import curves
from compress_aug.study.learned import learned
from compress_aug.study.spread import accuracy_at, measured, sparsities, values
from compress_aug.study.sweeps import swept
from compress_aug.study.tables import HEADERS, row_name
from compress_aug.study.verdict import shown
from compress_aug.study.words import Measure, RunResult, StudyFile

# What a measure is multiplied with for the unit of its header.
_SCALES: dict[Measure, float] = {"accuracy": 100, "sparsity": 100, "file_accuracy": 100, "bytes": 1e-3}


def draw(file: StudyFile, runs: Sequence[RunResult], path: Path, note: str) -> Path:
    """Write the figure that a study asks for as PNG and return its path.

    runs: of one preset, the oldest first
    note: the paler line below the study's title

    A table is drawn by its first measure. Of schedules, those of each variant's first seed are drawn, below each
    other; so are the sweeps of several variants. Raises UserError if there is nothing to draw, and as `check_png`.
    """
    drawings = {"table": _table, "rounds": _rounds, "sweep": _sweeps, "schedules": _schedules}
    return drawings[file.show.kind](file, runs, path, note)


def _table(file: StudyFile, runs: Sequence[RunResult], path: Path, note: str) -> Path:
    measure = file.show.measures[0]
    scale = _SCALES.get(measure, 1)
    found = [
        Dots(
            row_name(file, name),
            [scale * value for value in values(runs, name, partial(measured, measure=measure)).values()],
            variant.column or "",
            variant.paper if measure == "accuracy" else None,
        )
        for name, variant in shown(file, runs).items()
    ]
    return draw_variants(found, path, title=file.title, note=note, label=HEADERS[measure])


def _rounds(file: StudyFile, runs: Sequence[RunResult], path: Path, note: str) -> Path:
    at = sparsities(runs)
    found = [
        Rounds(
            row_name(file, name),
            {
                100 * one: [100 * value for value in accuracies.values()]
                for one in at
                if (accuracies := values(runs, name, partial(accuracy_at, sparsity=one)))
            },
        )
        for name in shown(file, runs)
    ]
    return draw_rounds(found, path, title=file.title, note=note)


def _sweeps(file: StudyFile, runs: Sequence[RunResult], path: Path, note: str) -> Path:
    sweeps = {name: [one.summary for one in swept(runs, name)] for name in shown(file, runs)}
    drawn = {name: summaries for name, summaries in sweeps.items() if summaries}
    if not drawn:
        raise UserError(f"There is nothing to draw for {path}: no run of the study swept magnitudes.")
    check_png(path)
    with TemporaryDirectory() as folder:
        pictures = []
        for name, summaries in drawn.items():
            heading = f"{file.title}: {row_name(file, name)}" if len(drawn) > 1 else file.title
            pictures.append(draw_sweep(summaries, Path(folder) / f"{name}.png", title=heading, note=note))
        return stack(pictures, path)


def _schedules(file: StudyFile, runs: Sequence[RunResult], path: Path, note: str) -> Path:
    check_png(path)
    with TemporaryDirectory() as folder:
        pictures = []
        for name in shown(file, runs):
            found = learned(runs, name)
            for place, one in enumerate(one for one in found if one.seed == found[0].seed):
                heading = f"{row_name(file, name)}, {one.name}, seed {one.seed}: {one.schedule.describe()}"
                to = Path(folder) / f"{name}-{place}.png"
                pictures.append(draw_policies(curves(one.schedule), to, title=heading, note=note))
        if not pictures:
            raise UserError(f"There is nothing to draw for {path}: no run of the study kept a schedule.")
        return stack(pictures, path)

"""The figures that a finished run is remembered by, and the file of a study's results that they are added to."""

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from compress_aug.data.assemble import cores
from compress_aug.errors import RunFolderError
from compress_aug.folders import written_whole
from compress_aug.report import read_report
from compress_aug.report.contract import Export, Report
from compress_aug.running.folder import RunFolder
from compress_aug.study.file import Study
from compress_aug.study.planned import PlannedRun
from compress_aug.study.words import (
    Figures,
    FileFigures,
    RunResult,
    StageFigures,
    StudyResults,
    SweepFigures,
)

_VERSIONS = ("compress-aug", "torch", "torchvision", "brevitas", "torch-pruning", "onnxruntime")


def figures_of(folder: Path, *, schedules: bool = False) -> Figures:
    """What a finished run's report says, in a few hundred bytes; with the schedules that it kept, if asked for.

    Raises RunFolderError if there is no report that can be read.
    """
    report = read_report(folder)
    stages = [stage for stage in report.stages if stage.word]
    last = stages[-1] if stages else None
    accuracies = [stage.accuracy for stage in stages if stage.accuracy is not None]
    kept = sorted((folder / "kept").glob("*.yaml")) if schedules else []
    return Figures(
        accuracy=accuracies[-1] if accuracies else None,
        sparsity=last.sparsity if last else None,
        parameters=last.parameters if last else None,
        nonzero_parameters=last.nonzero_parameters if last else None,
        macs=last.macs if last else None,
        weight_bits=(last.bits or {}).get("weights") if last else None,
        stages=[
            StageFigures(
                word=str(stage.word),
                accuracy=stage.accuracy,
                sparsity=stage.sparsity,
                magnitude=stage.strength if stage.word == "train" else None,
            )
            for stage in stages
        ],
        file=_file(report.exports[-1]) if report.exports else None,
        sweep=_sweeps(report),
        schedules={path.stem: path.read_text(encoding="utf-8") for path in kept},
    )


def _file(export: Export) -> FileFigures:
    return FileFigures(
        bytes=export.bytes,
        float_bytes=export.float_bytes,
        latency_ms=export.latency_ms.p50 if export.latency_ms else None,
        float_latency_ms=export.float_latency_ms.p50 if export.float_latency_ms else None,
        accuracy=export.accuracy,
        max_abs_diff=export.max_abs_diff,
        integer_layers=export.integer_layers,
        float_layers=export.float_layers,
    )


def _sweeps(report: Report) -> list[SweepFigures]:
    return [
        SweepFigures(
            sparsity=one.sparsity or 0.0,
            curve=[(magnitude, mean, spread) for magnitude, mean, spread, _ in one.curve],
            optimal=one.optimal,
            maximal=one.maximal,
        )
        for stage in report.stages
        if stage.search
        for one in stage.search.summaries
    ]


def result_of(
    run: PlannedRun,
    folder: Path,
    *,
    preset: str,
    command: str,
    shared: int,
    machine: Mapping[str, str | int],
    schedules: bool = False,
) -> RunResult:
    """A finished run as it is filed. shared: its first stages that another run has done, whose time is not its own."""
    report = read_report(folder)
    own = [stage.seconds or 0.0 for number, stage in report.numbered() if number >= shared]
    versions = report.versions or {}
    return RunResult(
        hash=run.hash,
        configuration=run.configuration,
        preset=preset,
        variant=run.variant,
        seed=run.seed,
        finished=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=round(sum(own), 1),
        command=command,
        machine={**machine, "device": report.device or "?"},
        versions={name: str(versions[name]) for name in _VERSIONS if versions.get(name)},
        data=_data(report),
        model=_in_words(run.recipe["model"]),
        figures=figures_of(folder, schedules=schedules),
    )


def _data(report: Report) -> dict[str, str | int]:
    if report.data is None:
        return {}
    return {key: value for key, value in report.data.model_dump().items() if value is not None}


def _in_words(model: Any) -> str:
    """The model as a recipe calls it, with its arguments."""
    if not isinstance(model, dict):
        return str(model)
    name, *rest = [
        str(value) if key in ("call", "name") else f"{key} {value}" for key, value in model.items()
    ]
    return name + (f" ({', '.join(rest)})" if rest else "")


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Of this machine, what results depend on: the names of its processor and its GPU, if that is the device, and
    how many threads may run at once."""
    about: dict[str, str | int] = {"cpu": cpu_name(), "cores": cores()}
    if device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def cpu_name() -> str:
    """The processor as the system calls it, or its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine()
    )


class ResultsFile:
    """`<study>.json`: the results of a study, added to run by run.

    path:  the file; it need not be there yet
    study: its name;  file: as it is named on the command line

    Raises RunFolderError, when it is read, for a file that is damaged or of another study.
    """

    def __init__(self, path: Path, study: str, file: str) -> None:
        self.path = path
        self.study = study
        self.file = file

    @staticmethod
    def of(study: Study, folder: Path) -> "ResultsFile":
        """The file of a study in a folder of results."""
        return ResultsFile(folder / f"{study.name}.json", study.name, study.source)

    def read(self) -> StudyResults:
        """All that is in it; nothing, if there is no such file."""
        if not self.path.is_file():
            return StudyResults(study=self.study, file=self.file)
        found = read_results(self.path)
        if found.study != self.study:
            raise RunFolderError(
                f"{self.path} holds the results of the study {found.study}, not of {self.study}: choose another "
                "--results."
            )
        return found

    def add(self, result: RunResult) -> StudyResults:
        """Add a run, in place of an earlier one of that preset, variant and seed; returns all that is in it.

        Studies that add to one file at the same time wait for each other. Raises RunFolderError as `read`, and where
        nothing can be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with alone_in(self.path.parent):
                before = self.read()
                others = [run for run in before.runs if _key(run) != _key(result)]
                after = before.model_copy(update={"file": self.file, "runs": [*others, result]})
                with written_whole(self.path) as temporary:
                    temporary.write_text(_text(after), encoding="utf-8")
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be written to ({error.strerror or error}): make room, or choose another "
                "--results; finished runs are kept in their folders, and added by the same command."
            ) from None
        return after

    def found(self, study: Study) -> dict[str, RunResult]:
        """The results of this study's runs that are there already, by the run's name."""
        known = {(run.variant, run.hash): run for run in self.read().runs if run.preset == study.preset}
        return {
            run.name: known[run.variant, run.hash] for run in study.runs if (run.variant, run.hash) in known
        }


def finished(folder: Path) -> bool:
    """Whether a run is done to its end."""
    try:
        report = RunFolder(folder).read_json(folder / "report.json")
    except RunFolderError:
        return False
    return isinstance(report, dict) and report.get("finished") is True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait for others that do the same in this folder, then keep them waiting."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def read_results(path: Path) -> StudyResults:
    """The results in a file. Raises RunFolderError that says what is wrong with it."""
    try:
        return StudyResults.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RunFolderError(f"{path} holds no results of a study: key {key}: {first['msg']}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read as the results of a study: {error}.") from None


def _key(run: RunResult) -> tuple[str, str, int]:
    return run.preset, run.variant, run.seed


def _text(results: StudyResults) -> str:
    """As JSON with a line for each run, so that a change shows which runs it added."""
    lines = [json.dumps(_rounded(run.model_dump(mode="json", exclude_none=True))) for run in results.runs]
    names = f'"study": {json.dumps(results.study)}, "file": {json.dumps(results.file)}'
    head = f'{{"version": {results.version}, {names}, "runs": ['
    return head + "\n" + ",\n".join(lines) + "\n]}\n"


def _rounded(value: Any) -> Any:
    """Floats at a tenth of a thousandth of a point: nobody measures more, and the files stay small."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value

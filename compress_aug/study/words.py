"""What a study file may say, and what is known of each finished run: the types of both, and nothing else."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator


def _name(given: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]{0,59}", given):
        raise ValueError(
            f'expected a name of at most 60 letters, digits and "_.+-", a letter or digit first, found "{given}"'
        )
    return given


def _different(given: list[int]) -> list[int]:
    if not given or len(set(given)) < len(given):
        raise ValueError(f"expected different whole numbers, at least one, found {given}")
    return given


Name = Annotated[str, AfterValidator(_name)]
"""What becomes part of a file's name."""
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**63, strict=True)]], AfterValidator(_different)]
Measure = Literal[
    "accuracy", "sparsity", "parameters", "nonzero_parameters", "macs", "bytes", "latency_ms", "file_accuracy"
]
"""What a table may show: the model's accuracy, sizes, and the exported file's bytes, time and accuracy."""


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunOf(_Said):
    """As the value of a variable: the folder of another variant's run with the same seed, or a file in it."""

    run: Name
    file: str | None = Field(default=None, description="within that folder, such as kept/student.yaml")

    @field_validator("file")
    @classmethod
    def _inside(cls, given: str | None) -> str | None:
        path = PurePosixPath(given or ".")
        if given is not None and (path.is_absolute() or ".." in path.parts or path == PurePosixPath()):
            raise ValueError(f'expected a file within the folder of that run, found "{given}"')
        return given


class Variant(_Said):
    """One thing that is compared. row, column: its place in the table; its title by default, and one column."""

    title: str | None = None
    row: str | None = None
    column: str | None = None
    recipe: str | dict[str, Any] | None = Field(default=None, description="instead of the study's recipe")
    model: str | dict[str, Any] | None = None
    variables: dict[str, Any] = {}
    paper: float | None = Field(default=None, description="the paper's accuracy of it, in percent")


class Show(_Said):
    """How the results are drawn and tabled.

    kind:     table (a row for each variant), rounds (accuracy over sparsity, a line for each variant),
              sweep (accuracy over magnitude, as a search found it), schedules (the learned schedules)
    measures: the columns of a table that has no columns of its own
    """

    kind: Literal["table", "rounds", "sweep", "schedules"] = "table"
    measures: Annotated[list[Measure], Field(min_length=1)] = ["accuracy"]


class Claim(_Said):
    """What the paper says, as a comparison that numbers can answer.

    say:         the sentence
    better, than: names of variants: the accuracy of the first is above that of each other one
    margin:      points by which it may be worse and still counts: with 1, "no more than a point worse"
    at:          the sparsity at which it is said, for studies that show rounds; the end of the run by default
    falls:       instead: the optimal magnitude of a sweep is smaller at the largest sparsity than at the smallest
    """

    say: str
    better: Name | None = None
    than: list[Name] = []
    margin: float = Field(default=0.0, ge=0, lt=100)
    at: float | None = None
    falls: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> "Claim":
        if self.falls == bool(self.better):
            raise ValueError("expected better and than, or falls: true")
        if bool(self.better) != bool(self.than):
            raise ValueError("better and than belong together: give both")
        return self


class Preset(_Said):
    """How large a study is made: values that go before the study's own.

    variants: variables of single variants
    only:     which variants run; all by default
    note:     what was made smaller and why, for the page of results
    """

    note: str | None = None
    seeds: Seeds | None = None
    model: str | dict[str, Any] | None = None
    data: str | dict[str, Any] | None = None
    variables: dict[str, Any] = {}
    variants: dict[Name, dict[str, Any]] = {}
    only: Annotated[list[Name], Field(min_length=1)] | None = None


class StudyFile(_Said):
    """A whole study file. `recipe` is a path, a shipped name, or the recipe itself with its $names."""

    study: Literal[1]
    title: str
    source: str
    question: str
    model: str | dict[str, Any]
    data: str | dict[str, Any]
    seeds: Seeds = [0]
    recipe: str | dict[str, Any] | None = None
    variables: dict[str, Any] = {}
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    presets: dict[Name, Preset] = {}
    show: Show = Show()
    claims: list[Claim] = []


class _Known(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class StageFigures(_Known):
    """The model after one stage. magnitude: first and last value of the stage, null for none."""

    word: str
    accuracy: float | None = None
    sparsity: float | None = None
    magnitude: tuple[float | None, float | None] | None = None


class FileFigures(_Known):
    """The exported file, beside the same net in float; latencies are medians in milliseconds."""

    bytes: int | None = None
    float_bytes: int | None = None
    latency_ms: float | None = None
    float_latency_ms: float | None = None
    accuracy: float | None = None
    max_abs_diff: float | None = None
    integer_layers: int | None = None
    float_layers: int | None = None


class SweepFigures(_Known):
    """Of one sparsity: rows of magnitude (null for none), accuracy, its deviation; the best and the largest one."""

    sparsity: float
    curve: list[tuple[float | None, float | None, float | None]]
    optimal: float | None = None
    maximal: float | None = None


class Figures(_Known):
    """What a finished run is remembered by. Accuracies are shares in [0, 1], on test images but for sweeps."""

    accuracy: float | None = None
    sparsity: float | None = None
    parameters: int | None = None
    nonzero_parameters: int | None = None
    macs: int | None = None
    weight_bits: float | None = None
    stages: list[StageFigures] = []
    file: FileFigures | None = None
    sweep: list[SweepFigures] = []
    schedules: dict[str, str] = Field(default={}, description="kept schedules, as the text of their files")


class RunResult(_Known):
    """One finished run of a study. machine and versions: as its report told them.

    hash:          of its configuration
    configuration: the same of all but the seed: equal for runs that may be averaged; null in older files
    """

    hash: str
    configuration: str | None = None
    preset: FileName
    variant: str
    seed: int
    finished: str
    seconds: float
    command: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    data: dict[str, str | int]
    model: str
    figures: Figures


class StudyResults(_Known):
    """docs/results/<study>.json: all finished runs of a study, of all presets, the oldest first.

    file: the study's file as it was named: a shipped name, or a path
    """

    version: Literal[1] = 1
    study: FileName
    file: str
    runs: list[RunResult] = []

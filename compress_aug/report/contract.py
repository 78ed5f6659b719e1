"""What report.json holds, as types; reading one, with a sentence for each way it can be wrong.

Only `version` must be there: a run that was stopped leaves keys out or null, and its report is still of use.
Keys unknown to this version are left alone, because the contract lets anyone add some.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from compress_aug.errors import RunFolderError
from compress_aug.report.words import plain

VERSION = 1

Value = TypeVar("Value")


def _empty_for_null(value: Any) -> Any:
    return [] if value is None else value


Words = Annotated[str, AfterValidator(plain)]
# Bounded, because a whole number of JSON may be longer than any float.
Count = Annotated[int, Field(ge=0, lt=10**18)]
Rows = Annotated[list[Value], BeforeValidator(_empty_for_null)]
# First and last value; null inside the pair is the legal magnitude "none".
FirstAndLast = tuple[float | None, float | None] | None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Latency(_Part):
    """Milliseconds for one image: half of the runs took at most `p50`, 95 % of them at most `p95`."""

    p50: float | None = None
    p95: float | None = None


class Original(_Part):
    """The model that came in; its accuracy is null if it was untrained."""

    parameters: Count | None = None
    macs: Count | None = None
    bytes: Count | None = None
    latency_ms: Latency | None = None
    accuracy: float | None = None


class Epoch(_Part):
    """One epoch of a training stage, counted from 1 within the stage. Accuracies are shares in [0, 1]."""

    epoch: Count | None = None
    loss: float | None = None
    train_accuracy: float | None = None
    validation_accuracy: float | None = None
    magnitude: FirstAndLast = None
    lr: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None


class Sweep(_Part):
    """Magnitudes tried at one sparsity: rows of magnitude (null for none), accuracy, its deviation, cross entropy."""

    sparsity: float | None = None
    curve: Rows[tuple[float | None, float | None, float | None, float | None]] = []
    optimal: float | None = None
    maximal: float | None = None


class Search(_Part):
    """What a search found: accuracies on validation images, as shares in [0, 1]."""

    kind: Words | None = None
    kept: Words | None = None
    best_member: Count | None = None
    curves: Rows[list[float | None]] = []
    summaries: Rows[Sweep] = []


class Stage(_Part):
    """The model after one stage; `accuracy` is on the test split, `loss` that of the last training epoch."""

    index: Count | None = None
    word: Words | None = None
    title: Words | None = None
    seconds: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    sparsity: float | None = None
    parameters: Count | None = None
    nonzero_parameters: Count | None = None
    macs: Count | None = None
    magnitude: FirstAndLast = None
    random_magnitude: bool | None = None
    policy: Words | None = None
    bits: dict[Words, Any] | None = None
    history: Rows[Epoch] = []
    notes: Rows[Words] = []
    search: Search | None = None

    @property
    def strength(self) -> FirstAndLast:
        """The magnitude, where null means "none" if the stage trained and no learned policy ran instead."""
        trained = bool(self.history) and not self.policy
        return (None, None) if self.magnitude is None and trained else self.magnitude

    @property
    def name(self) -> str:
        """What to call the stage: its title, or else its YAML word."""
        return self.title or self.word or "(unnamed)"


class LayerSteps(_Part):
    """How far a layer of the file is from the model, from equal inputs; `max_steps` null: infinitely."""

    layer: Words | None = None
    quantizer: Words | None = None
    max_steps: float | None = None
    flipped: float | None = None
    values: Count | None = None


class Export(_Part):
    """One ONNX file; `float_*` is the same net with its quantizers off."""

    file: Words | None = None
    float_file: Words | None = None
    target: Words | None = None
    bytes: Count | None = None
    float_bytes: Count | None = None
    gzip_bytes: Count | None = None
    accuracy: float | None = None
    model_accuracy: float | None = None
    max_abs_diff: float | None = None
    top1_agreement: float | None = None
    images: Count | None = None
    layers: Rows[LayerSteps] = []
    diverging: Words | None = None
    integer_layers: Count | None = None
    float_layers: Count | None = None
    stayed_float: Rows[tuple[Words | None, Words | None, Words | None]] = []
    latency_ms: Latency | None = None
    float_latency_ms: Latency | None = None
    memory_mb: float | None = None
    float_memory_mb: float | None = None
    slower: Words | None = None
    proxy: bool | None = None
    threads: Count | None = None
    misses: Rows[Words] = []

    @property
    def name(self) -> str:
        """The file, or a word for it while it has none."""
        return self.file or "(no file yet)"


class Data(_Part):
    """The data set and how many images each split has."""

    name: Words | None = None
    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    classes: Count | None = None


class Target(_Part):
    """The device that the model is made for; `proxy`: this machine is not it."""

    name: Words | None = None
    proxy: bool | None = None


class Report(_Part):
    """A whole report.json."""

    version: Literal[1]
    recipe: Words | None = None
    seed: int | None = None
    device: Words | None = None
    versions: dict[Words, Words | None] | None = None
    data: Data | None = None
    target: Target | None = None
    finished: bool | None = None
    folder: Words | None = None
    command: Words | None = None
    original: Original | None = None
    stages: Rows[Stage] = []
    exports: Rows[Export] = []

    def numbered(self) -> list[tuple[int, Stage]]:
        """Every stage with the number it is called by: its index, or else its place in the list."""
        return [(n if stage.index is None else stage.index, stage) for n, stage in enumerate(self.stages)]


def as_report(report: Mapping[str, Any] | Report, where: str = "The report") -> Report:
    """Check a report and give its keys types.

    where: what to call it in an error.

    Raises RunFolderError that names the first key with a wrong value, or the version if it is another.

    >>> as_report({"version": 1, "recipe": "quickstart", "stages": None}).stages
    []
    """
    if isinstance(report, Report):
        return report
    if not isinstance(report, Mapping):
        raise RunFolderError(f"{where} must hold one JSON object, but it holds a {type(report).__name__}.")
    if report.get("version") != VERSION:
        raise RunFolderError(
            f"{where} is of version {report.get('version')!r}, but this compress_aug reads version "
            f"{VERSION}: read it with the compress_aug that made the run."
        )
    try:
        return Report.model_validate(report)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        found = plain(repr(first["input"])[:60])
        raise RunFolderError(
            f"{where} is broken at key {key}: {plain(first['msg'])}, but found {found}."
        ) from None


def read_report(folder: Path) -> Report:
    """Read the report of a run's folder.

    Raises RunFolderError if the folder or its report.json is missing, cannot be read, is broken, or is of
    another version.
    """
    path = folder / "report.json"
    if not path.is_file():
        missing = (
            f"there is no report.json in {folder}" if folder.is_dir() else f"there is no folder {folder}"
        )
        raise RunFolderError(f"A run's folder with a report.json was expected, but {missing}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as wrong:
        raise RunFolderError(f"{path} was expected to hold JSON, but it cannot be read: {wrong}.") from None
    return as_report(found, where=str(path))

"""train: some epochs at an augmentation strength, towards an objective."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from compress_aug import schedule
from compress_aug.errors import RecipeError, nearest
from compress_aug.schedule import AnySchedule, Halving, NamedSchedule, Points, Ramp, Schedule, describe
from compress_aug.stages.base import Outlook, Part, Setup, Stage, State

if TYPE_CHECKING:
    from compress_aug.training import Objective

RESERVED = ("auto", "none")

Fill = Annotated[
    Annotated[int, Tag("<grey>")] | Annotated[list[int], Tag("<rgb>")],
    Discriminator(lambda value: "<rgb>" if isinstance(value, list) else "<grey>"),
]


class Augment(Part):
    """How strongly, and how, training images are changed."""

    magnitude: NamedSchedule = Field(
        "none",
        description="M of RandAugment, 0..30: a number, a schedule, the name of a kept schedule, or none",
    )
    operations: int = Field(2, ge=1, le=8, description="RandAugment operations per image")
    crop_padding: int | None = Field(None, ge=0, description="pixels; the data set names its default")
    flip: bool | None = Field(None, description="mirror half of the images; the data set names its default")
    fill: Fill = Field(0, description="what fills uncovered pixels, 0..255 or [red, green, blue]")

    @field_validator("magnitude")
    @classmethod
    def _in_range(cls, given: AnySchedule | str) -> AnySchedule | str:
        if isinstance(given, str):
            return given
        low, high = schedule.extremes(given)
        if low < 0 or high > schedule.MAX_MAGNITUDE:
            wrong = high if high > schedule.MAX_MAGNITUDE else low
            raise ValueError(
                f"expected a magnitude in 0..{schedule.MAX_MAGNITUDE} (or none), found {wrong:g}"
            )
        if isinstance(given, float) and given != int(given):
            raise ValueError(f"expected a whole number for a constant magnitude, found {given:g}")
        return given


class Distill(Part):
    """Learn from a kept model too: (1 - weight) * cross entropy + weight * KL (Hinton et al., arXiv 1503.02531)."""

    teacher: str = Field(description="the name under which an earlier stage kept the model")
    loss: Literal["soft_labels"] = "soft_labels"
    weight: Schedule = Field(0.9, description="share of the teacher's part, in [0, 1], or a schedule")
    temperature: float = Field(4.0, gt=0, description="both outputs are divided by it")

    @field_validator("weight")
    @classmethod
    def _share(cls, given: AnySchedule) -> AnySchedule:
        low, high = schedule.extremes(given)
        if low < 0 or high > 1:
            raise ValueError(f"expected a weight in 0..1, found {high if high > 1 else low:g}")
        return given


class Train(Stage):
    """Train the model. Each `train` builds its own optimizer and learning-rate schedule."""

    word: ClassVar[str] = "train"
    distributed: ClassVar[bool] = True

    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=1, description="images per step, over all devices")
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0, description="learning rate at the beginning")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    nesterov: bool = Field(True, description="sgd only")
    weight_decay: float = Field(5e-4, ge=0)
    lr_schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine", description="cosine falls to 0; step divides by 10 after each 30 % of the stage"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the stage in which lr rises from 0")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0, description="gradients are scaled down to this total norm")
    weights: Literal["last", "best"] = Field("last", description="best: of the epoch best on validation")
    precision: Literal["auto", "float32", "bf16"] = "auto"
    augment: Augment = Augment()
    distill: Distill | None = None

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Train":
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError(
                "nesterov needs a momentum above 0: set nesterov: false, or a momentum such as 0.9"
            )
        return self

    def foresee(self, outlook: Outlook) -> Outlook:
        if self.distill is not None:
            _check_kept(outlook, self.distill.teacher, "model", "teacher")
        name = self.augment.magnitude
        if isinstance(name, str) and name != "none":
            if name == "auto":
                raise RecipeError('magnitude: "auto" needs a search stage before it, which kept no schedule')
            _check_kept(outlook, name, "schedule", "magnitude")
        return replace(outlook, epochs=outlook.epochs + self.epochs)

    def title(self) -> str:
        taught = " with teacher" if self.distill else ""
        return f"train {self.epochs} epoch{'s' * (self.epochs != 1)}{taught}"

    def plan(self) -> dict[str, str]:
        objective = "cross entropy"
        if self.distill:
            objective = f"{describe(self.distill.weight)} soft labels of {self.distill.teacher}"
        return {
            "epochs": str(self.epochs),
            "lr": f"{self.lr:g} {self.lr_schedule}",
            "magnitude": describe(self.augment.magnitude),
            "objective": objective,
        }

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.augment import RandAugment
        from compress_aug.training import Settings, Training, facts_of

        given = self.augment
        facts = facts_of(state.model, setup.original)
        magnitude = _resolve(given.magnitude, state)
        augment = RandAugment(
            operations=given.operations,
            crop_padding=setup.data.crop_padding if given.crop_padding is None else given.crop_padding,
            flip=setup.data.flip if given.flip is None else given.flip,
            fill=tuple(given.fill) if isinstance(given.fill, list) else given.fill,
        )
        training = Training(
            state.model,
            setup.data,
            self._objective(state, facts),
            Settings(**{name: getattr(self, name) for name in Settings.__dataclass_fields__}),
            augment=augment,
            magnitude=lambda progress: schedule.magnitude(magnitude, progress, facts),
            seed=setup.seed,
            fabric=setup.fabric,
            note=setup.note,
        )
        history = setup.fit(training, checkpoint=setup.stage_folder / "training.pt")
        _record(setup, history)
        return replace(state, model=training.finished_model())

    def _objective(self, state: State, facts: schedule.Facts) -> "Objective":
        from torch import nn

        from compress_aug.distill import SoftLabels
        from compress_aug.training import CrossEntropy

        if self.distill is None:
            return CrossEntropy(label_smoothing=self.label_smoothing)
        teacher = state.kept[self.distill.teacher]
        assert isinstance(teacher, nn.Module)
        weight = self.distill.weight
        return SoftLabels(
            teacher,
            weight=lambda progress: schedule.value(weight, progress, facts),
            temperature=self.distill.temperature,
            label_smoothing=self.label_smoothing,
        )


def _resolve(magnitude: AnySchedule | str, state: State) -> AnySchedule | None:
    if not isinstance(magnitude, str):
        return magnitude
    if magnitude == "none":
        return None
    kept = state.kept[magnitude]
    assert isinstance(kept, float | Ramp | Halving | Points)
    return kept


def _check_kept(outlook: Outlook, name: str, kind: str, key: str) -> None:
    if outlook.kept.get(name) == kind:
        return
    if name in outlook.kept:
        raise RecipeError(f'{key}: "{name}" is a kept {outlook.kept[name]}, expected a {kind}')
    names = [known for known, what in outlook.kept.items() if what == kind]
    hint = (
        nearest(name, names) if names else "no earlier stage keeps one: put `- keep: " + name + "` before it"
    )
    raise RecipeError(f'{key}: no {kind} was kept under the name "{name}"; {hint}')


def _record(setup: Setup, history: list[dict[str, Any]]) -> None:
    setup.record("history", history)
    if not history:
        return
    setup.record("loss", history[-1]["loss"])
    drawn = [history[0]["magnitude"], history[-1]["magnitude"]]
    ends = [pair[place] if pair else None for pair, place in zip(drawn, (0, 1), strict=True)]
    setup.record("magnitude", None if ends == [None, None] else ends)

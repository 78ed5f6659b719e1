"""augment: within a `train`, how its images are changed: by a magnitude or auto, a learned policy, a filter."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from compress_aug import schedule
from compress_aug.errors import RecipeError, nearest
from compress_aug.policies import PolicySchedule, Replay, read_schedule
from compress_aug.schedule import AnySchedule, Facts, Halving, NamedSchedule, Points, Ramp, describe
from compress_aug.stages.base import KEPT_NAME, Outlook, Part, Setup, State

if TYPE_CHECKING:
    from compress_aug.augment import Augmentation, AutoMagnitude, RandAugment, TeacherFilter

RESERVED = ("auto", "none")


def _fill_form(value: Any) -> str:
    if isinstance(value, str):
        return "<mean>"
    return "<rgb>" if isinstance(value, list) else "<grey>"


Fill = Annotated[
    Annotated[int, Tag("<grey>")]
    | Annotated[list[int], Tag("<rgb>")]
    | Annotated[Literal["mean"], Tag("<mean>")],
    Discriminator(_fill_form),
]


class Filter(Part):
    """Keep that of several augmentations from which the student learns most (arXiv 2305.13232, Eq. 6)."""

    teacher: str = Field(description="the name under which an earlier stage kept the model")
    candidates: int = Field(4, ge=1, le=256, description="augmentations of each image; 1 filters nothing")
    alpha: float = Field(
        1.0, ge=0, description="weight of the teacher's cross entropy: it must know the image"
    )
    beta: float = Field(0.5, ge=0, description="weight of the divergence of student from teacher")
    temperature: float = Field(4.0, gt=0, description="of the divergence; both outputs are divided by it")
    kl_form: Literal["kl", "ce"] = Field("kl", description="ce: cross entropy in place of the divergence")

    @model_validator(mode="after")
    def _something_counts(self) -> "Filter":
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are both 0: nothing would tell the candidates apart")
        return self


class Auto(Part):
    """Let M follow what a larger net's loss says of how hard augmented images are."""

    reference: str = Field(
        description="the name under which an earlier stage kept the larger model: a teacher, or the net before pruning"
    )
    gap: float = Field(
        0.01,
        gt=0,
        le=10,
        description="share of its knowledge that the student may lose more than the reference",
    )
    start: int | Literal["none"] = Field(4, description="M at the beginning, 1..most, or none")
    most: int = Field(schedule.MAX_MAGNITUDE, ge=1, le=schedule.MAX_MAGNITUDE, description="the largest M")
    known: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of its knowledge that the reference must keep; 0 for no such bound",
    )
    cost: float = Field(0.1, gt=0, le=1, description="of looking, as a share of a training step")

    @model_validator(mode="after")
    def _starts_within(self) -> "Auto":
        if self.start != "none" and not 1 <= self.start <= self.most:
            raise ValueError(f"expected start in 1..{self.most} (most), or none, found {self.start}")
        return self


class Augment(Part):
    """How strongly, and how, training images are changed."""

    magnitude: NamedSchedule = Field(
        "none",
        description="M of RandAugment, 0..30: a number, a schedule, the name or file of a kept one, auto, or none",
    )
    auto: Auto | None = Field(None, description="of magnitude: auto: by which model, and how far")
    random_magnitude: bool = Field(
        False, description="draw each image's M uniformly in 0..magnitude; on by default with a filter"
    )
    policy: str | None = Field(
        None, description="name or file of a learned policy, instead of a magnitude; or none"
    )
    replay: Replay = Field("proportional", description="how a policy fits another number of epochs")
    operations: int = Field(2, ge=1, le=8, description="RandAugment operations per image")
    crop_padding: int | None = Field(None, ge=0, description="pixels; the data set names its default")
    flip: bool | None = Field(None, description="mirror half of the images; the data set names its default")
    cutout: int = Field(0, ge=0, multiple_of=2, description="pixels: side of a square that is painted over")
    fill: Fill = Field(
        0,
        description="for uncovered pixels, 0..255, [red, green, blue] or mean; mean by default with a policy",
    )
    interpolation: Literal["nearest", "bilinear"] = Field("nearest", description="of shear and rotate")
    filter: Filter | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_methods(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("policy") == "none":
            given = {key: value for key, value in given.items() if key != "policy"}
        if given.get("auto") is not None:
            given = {"magnitude": "auto", **given}
        if given.get("policy") is not None:
            return {"fill": "mean", **given}
        if given.get("filter") is None:
            return given
        chosen = {"magnitude": float(schedule.MAX_MAGNITUDE), **given}
        return {"random_magnitude": chosen["magnitude"] != "none", **chosen}

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

    @field_validator("fill")
    @classmethod
    def _byte(cls, given: int | list[int] | str) -> int | list[int] | str:
        values = given if isinstance(given, list) else [given] if isinstance(given, int) else []
        if any(not 0 <= value <= 255 for value in values) or (isinstance(given, list) and len(given) != 3):
            raise ValueError(f"expected 0..255, [red, green, blue] of them, or mean, found {given}")
        return given

    @model_validator(mode="after")
    def _auto_alone(self) -> "Augment":
        if self.magnitude == "auto" and self.auto is None:
            raise ValueError(
                "magnitude: auto needs the larger model by which M is found: add auto: {reference: NAME}, with "
                "`- keep: NAME` before it"
            )
        if self.auto is None:
            return self
        if self.magnitude != "auto":
            raise ValueError("auto belongs to magnitude: auto: leave out one of auto and magnitude")
        if self.policy is not None or self.filter is not None or self.random_magnitude:
            raise ValueError(
                "magnitude: auto is one M for all images: leave out policy, filter and random_magnitude, or auto "
                "(where defaults set one of them, write policy: null, filter: null or random_magnitude: false)"
            )
        return self

    @model_validator(mode="after")
    def _one_policy(self) -> "Augment":
        if self.policy is None:
            if self.replay != "proportional":
                raise ValueError("replay belongs to a learned policy: name one with policy")
        elif self.magnitude != "none" or self.random_magnitude or self.operations != 2:
            raise ValueError(
                "a policy has operations and magnitudes of its own: leave out magnitude, random_magnitude and "
                "operations, or policy (where defaults set one of them, write magnitude: none, or policy: null)"
            )
        if self.random_magnitude and self.magnitude == "none":
            raise ValueError("random_magnitude needs a magnitude: the largest that may be drawn")
        return self

    def foresee(self, outlook: Outlook) -> None:
        """Raise RecipeError for names that nothing was kept under, and files that hold something else."""
        if isinstance(self.magnitude, str) and self.magnitude not in RESERVED:
            _check_schedule(outlook, self.magnitude, "schedule", "magnitude")
        if self.auto is not None:
            check_kept(outlook, self.auto.reference, "model", "auto.reference")
        if self.policy is not None:
            _check_schedule(outlook, self.policy, "policy", "policy")
        if self.filter is not None:
            check_kept(outlook, self.filter.teacher, "model", "filter.teacher")

    def with_files(self, place: Callable[[str], str]) -> "Augment":
        """The same with each file that it names found elsewhere; see `Stage.with_files`."""
        names = {key: getattr(self, key) for key in ("magnitude", "policy")}
        files = {key: place(name) for key, name in names.items() if isinstance(name, str) and _is_file(name)}
        return self.model_copy(update=files)

    def describe(self) -> str:
        """The strength in a few characters, for a table."""
        if self.auto is not None:
            return f"auto by {self.auto.reference}"
        magnitude = self.magnitude if not isinstance(self.magnitude, str) else Path(self.magnitude).name
        text = f"policy {self.policy_name}" if self.policy else describe(magnitude)
        if self.random_magnitude:
            text = f"0..{text}" if isinstance(self.magnitude, int | float) else f"0..({text})"
        return f"{text}, best of {self.filter.candidates}" if self.filter else text

    @property
    def policy_name(self) -> str | None:
        """What to call the policy: the name it was kept under, or that of its file without the folder."""
        return self.policy and Path(self.policy).name

    def strength(self, state: State, facts: Facts) -> Callable[[float], int | None]:
        """The magnitude of RandAugment as a function of the stage's progress; None where there is none.

        With `auto` it is what is built that tells its magnitude.
        """
        magnitude: AnySchedule | None = None
        if isinstance(self.magnitude, str):
            if self.magnitude not in RESERVED:
                found = _found(self.magnitude, state)
                if not isinstance(found, int | float | Ramp | Halving | Points):
                    raise _wrong_kind("magnitude", self.magnitude, found, "a number, Ramp, Halving or Points")
                magnitude = found
        else:
            magnitude = self.magnitude
        return lambda progress: schedule.magnitude(magnitude, progress, facts)

    def build(
        self, state: State, setup: Setup, *, epochs: int, learned: PolicySchedule | None = None
    ) -> "Augmentation | AutoMagnitude | TeacherFilter":
        """What changes the images of a training. Raises RecipeError for what fits neither data nor what was kept.

        learned: in place of `policy`
        """
        from torch import nn

        from compress_aug.augment import LearnedAugment, RandAugment, TeacherFilter

        data = setup.data
        settings: dict[str, Any] = {
            "crop_padding": data.crop_padding if self.crop_padding is None else self.crop_padding,
            "flip": data.flip if self.flip is None else self.flip,
            "cutout": self.cutout,
            "fill": self._fill_of(data.mean),
            "interpolation": self.interpolation,
        }
        augment: Augmentation
        if self.policy is not None:
            policy = _found(self.policy, state)
            if not isinstance(policy, PolicySchedule):
                raise _wrong_kind("policy", self.policy, policy, "a PolicySchedule")
            learned = policy
        if learned is not None:
            augment = LearnedAugment(learned, epochs, replay=self.replay, **settings)
        else:
            augment = RandAugment(
                operations=self.operations, random_magnitude=self.random_magnitude, **settings
            )
            if self.auto is not None:
                return self._auto(self.auto, augment, state)
        if self.filter is None:
            return augment
        given = self.filter
        teacher = state.kept[given.teacher]
        assert isinstance(teacher, nn.Module)
        if given.alpha == 0:
            setup.note(
                "filter: alpha is 0, so images that the teacher itself does not know are chosen; "
                "arXiv 2305.13232 found that to hurt"
            )
        return TeacherFilter(
            augment,
            teacher,
            candidates=given.candidates,
            alpha=given.alpha,
            beta=given.beta,
            temperature=given.temperature,
            kl_form=given.kl_form,
        )

    @staticmethod
    def _auto(given: Auto, augment: "RandAugment", state: State) -> "AutoMagnitude":
        from torch import nn

        from compress_aug.augment import AutoMagnitude

        reference = state.kept[given.reference]
        assert isinstance(reference, nn.Module)
        return AutoMagnitude(
            augment,
            reference,
            gap=given.gap,
            start=None if given.start == "none" else given.start,
            most=given.most,
            known=given.known,
            cost=given.cost,
        )

    def _fill_of(self, mean: tuple[float, ...]) -> int | tuple[int, ...]:
        if isinstance(self.fill, str):
            return tuple(round(255 * value) for value in mean)
        if isinstance(self.fill, int):
            return self.fill
        if len(mean) != len(self.fill):
            raise RecipeError(
                f"augment.fill: {self.fill} is for colour images, but these have {len(mean)} channel: "
                "write one number, or mean"
            )
        return tuple(self.fill)


def check_kept(outlook: Outlook, name: str, kind: str, key: str) -> None:
    """Raise RecipeError, with the nearest name, unless that kind of thing was kept under the name."""
    if outlook.kept.get(name) == kind:
        return
    if name in outlook.kept:
        raise RecipeError(f'{key}: "{name}" is a kept {outlook.kept[name]}, expected a {kind}')
    names = [known for known, what in outlook.kept.items() if what == kind]
    other = "" if kind == "model" else ", or name a file such as schedule.yaml"
    hint = (
        nearest(name, names)
        if names
        else "no earlier stage keeps one"
        + (": put `- keep: " + name + "` before it" if kind == "model" else other)
    )
    raise RecipeError(f'{key}: no {kind} was kept under the name "{name}"; {hint}')


def _is_file(name: str) -> bool:
    return not re.fullmatch(KEPT_NAME, name)


def _wrong_kind(key: str, name: str, found: object, expected: str) -> RecipeError:
    return RecipeError(f'augment.{key}: "{name}" holds a {type(found).__name__}, expected {expected}')


def _check_schedule(outlook: Outlook, name: str, kind: str, key: str) -> None:
    if not _is_file(name):
        check_kept(outlook, name, kind, key)
        return
    if not Path(name).is_file():
        raise RecipeError(
            f"{key}: there is no file {name}, neither beside the recipe nor in the current folder"
        )
    is_policy = isinstance(read_schedule(Path(name)), PolicySchedule)
    if is_policy != (kind == "policy"):
        found, other = ("a learned policy", "policy") if is_policy else ("a magnitude", "magnitude")
        file = Path(name).name
        raise RecipeError(f"{key}: {file} holds {found}; write {other}: {file}")


def _found(name: str, state: State) -> object:
    return read_schedule(Path(name)) if _is_file(name) else state.kept[name]

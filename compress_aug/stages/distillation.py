"""distill: within a `train`, what the student learns from a kept model, and how."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from compress_aug import schedule
from compress_aug.errors import RecipeError
from compress_aug.schedule import AnySchedule, Facts, Schedule, describe
from compress_aug.stages.augmentation import check_kept
from compress_aug.stages.base import Outlook, Part, Setup, State

if TYPE_CHECKING:
    from compress_aug.training import Objective, Settings

Loss = Literal["soft_labels", "dml", "dml_online", "rkd", "mhgd", "kd_svd", "ii_kd"]

# 1, halved after each 60 of 200 epochs (arXiv 2004.08861), as a share of the stage; 0.4 for ii_kd.
_HALVING = {"start": 1.0, "halve_every": 0.3}
_RELATIONS = {"distance": 50.0, "angle": 100.0, "normalise": True, "embedding": "logits"}
_CLIP = {"clip": False}
_MAPS = {"taps": "auto", **_CLIP}
_HEADS = {"heads": 8, "attention": "pretrained", "attention_epochs": 0.2}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "soft_labels": {"weight": 0.9, "temperature": 4.0, "squared": True},
    "dml": {"weight": _HALVING},
    "dml_online": {"weight": _HALVING},
    # Clipped, which the code it is from does not do: its gradient there is tens to hundreds of times the task's.
    "rkd": {"weight": _HALVING, **_RELATIONS, "clip": True},
    "mhgd": {"weight": _HALVING, **_MAPS, **_HEADS},
    "kd_svd": {"weight": _HALVING, **_MAPS},
    "ii_kd": {"weight": {**_HALVING, "start": 0.4}, **_RELATIONS, **_MAPS, **_HEADS, "clip": True},
}
"""Of each loss, the keys that it has beside teacher, loss and preset, with what they are if not given."""

_PRESETS: dict[str, dict[str, Any]] = {
    "soft_labels": {"weight": 0.3, "temperature": 3.0, "squared": False},
    "rkd": {"clip": False},
    "mhgd": {"heads": 4, "attention": "random"},
    "ii_kd": {"heads": 4, "attention": "random", "lambda_mode": "off"},
}
"""What the code of arXiv 2004.08861 does in another way (preset: role_kd)."""


def _named(given: Any) -> Any:
    """Told before pydantic looks, whose words for it are about lengths and types."""
    if given == []:
        raise ValueError("the list is empty: name at least one module, or leave it out to find them by rule")
    return given


_Paths = Annotated[list[str], Field(min_length=1)]


def _side_form(given: Any) -> str:
    return "<auto>" if isinstance(given, str) else "<paths>"


_Side = Annotated[
    Annotated[Literal["auto"], Tag("<auto>")] | Annotated[_Paths, Tag("<paths>")], Discriminator(_side_form)
]


class Taps(Part):
    """Feature maps of both nets, where they are not called the same."""

    teacher: _Side = "auto"
    student: _Side = "auto"

    _not_empty = field_validator("teacher", "student", mode="before")(_named)


def _taps_form(given: Any) -> str:
    if isinstance(given, str):
        return "<auto>"
    return "<paths>" if isinstance(given, list | tuple) else "<taps>"


AnyTaps = Annotated[
    Annotated[Literal["auto"], Tag("<auto>")]
    | Annotated[_Paths, Tag("<paths>")]
    | Annotated[Taps, Tag("<taps>")],
    Discriminator(_taps_form),
]


class Distill(Part):
    """Learn from a kept model too.

    soft_labels is (1 - weight) * cross entropy + weight * KL (arXiv 1503.02531); every other loss is
    cross entropy + weight * loss. Keys that are left away are null for losses that do not have them.
    """

    teacher: str = Field(description="the name under which an earlier stage kept the model")
    loss: Loss = Field("soft_labels", description="what the student imitates")
    preset: Literal["role_kd"] | None = Field(None, description="as the code of arXiv 2004.08861 has it")
    weight: Schedule | None = Field(None, description="of the teacher's part: at least 0, or a schedule")
    temperature: float | None = Field(None, gt=0, description="soft_labels: both outputs are divided by it")
    squared: bool | None = Field(None, description="soft_labels: times the temperature squared")
    distance: float | None = Field(None, ge=0, description="rkd, ii_kd: weight of distances between images")
    angle: float | None = Field(None, ge=0, description="rkd, ii_kd: weight of angles between images")
    normalise: bool | None = Field(
        None, description="rkd, ii_kd: divide what relations are seen in by its length"
    )
    embedding: Literal["logits", "pooled"] | None = Field(
        None, description="rkd, ii_kd: pooled compares means of the last map"
    )
    taps: AnyTaps | None = Field(None, description="auto, paths of modules, or {teacher: ..., student: ...}")
    heads: int | None = Field(None, ge=1, le=64, description="mhgd, ii_kd: attention heads of each two maps")
    attention: Literal["pretrained", "random"] | None = Field(
        None, description="mhgd, ii_kd: whether the heads are trained on the teacher first"
    )
    attention_epochs: float | None = Field(
        None, gt=0, le=1, description="mhgd, ii_kd: for which share of the stage's epochs, before it"
    )
    reduction: Literal["batchmean", "sum"] | None = Field(
        None, description="mhgd, kd_svd, ii_kd: over images; sum if gradients are clipped"
    )
    clip: bool | None = Field(
        None, description="no parameter's gradient from the teacher is longer than the task's"
    )
    lambda_mode: Literal["post_clip", "pre_clip", "off"] | None = Field(
        None, description="with clip: weight counts after it, before it, or not at all"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_losses(cls, given: Any) -> Any:
        loss = given.get("loss", "soft_labels") if isinstance(given, dict) else None
        if not isinstance(loss, str) or loss not in _DEFAULTS:
            return given
        preset = _PRESETS.get(loss, {}) if given.get("preset") == "role_kd" else {}
        known = {key: value for key, value in given.items() if value is not None}
        chosen = {**_DEFAULTS[loss], **preset, **known}
        if chosen.get("clip") is True and "clip" in _DEFAULTS[loss]:
            chosen = {"lambda_mode": "post_clip", **chosen}
        elif "lambda_mode" not in known:
            chosen.pop("lambda_mode", None)
        if chosen.get("attention") == "random" and "attention_epochs" not in known:
            chosen.pop("attention_epochs", None)
        if "taps" in _DEFAULTS[loss]:
            chosen = {"reduction": "sum" if chosen.get("clip") is True else "batchmean", **chosen}
        if chosen.get("lambda_mode") == "off" and "weight" not in known:
            del chosen["weight"]
        return chosen

    _not_empty = field_validator("taps", mode="before")(_named)

    @field_validator("weight")
    @classmethod
    def _not_negative(cls, given: AnySchedule | None) -> AnySchedule | None:
        if given is not None and schedule.extremes(given)[0] < 0:
            raise ValueError(f"expected a weight of at least 0, found {schedule.extremes(given)[0]:g}")
        return given

    @model_validator(mode="after")
    def _keys_of_the_loss(self) -> "Distill":
        if self.preset is not None and self.loss not in _PRESETS:
            raise ValueError(
                f"preset: {self.preset} is for {', '.join(_PRESETS)}; {self.loss} has none: leave it out"
            )
        self._check_weight()
        of_loss = {*_DEFAULTS[self.loss], "teacher", "loss", "preset"}
        if "clip" in of_loss and self.clip:
            of_loss.add("lambda_mode")
        if "taps" in of_loss:
            of_loss.add("reduction")
        if self.embedding == "pooled":
            of_loss.add("taps")
        for key in type(self).model_fields:
            if getattr(self, key) is not None and key not in of_loss:
                raise ValueError(self._not_here(key))
        if self.attention == "random" and self.attention_epochs is not None:
            raise ValueError(
                "with attention: random no heads are trained before: leave attention_epochs out (where defaults set "
                "it, write attention_epochs: null), or choose pretrained"
            )
        if self.distance == self.angle == 0:
            raise ValueError("distance and angle are both 0: nothing would be compared")
        return self

    def _check_weight(self) -> None:
        if self.loss == "soft_labels" and self.weight is not None:
            high = schedule.extremes(self.weight)[1]
            if high > 1:
                raise ValueError(
                    f"expected a weight in 0..1 for soft_labels, the share of the teacher's part, found {high:g}"
                )
        if self.lambda_mode == "off" and self.weight is not None:
            raise ValueError("with lambda_mode: off there is no weight: leave it out, or choose post_clip")

    def _not_here(self, key: str) -> str:
        if key == "lambda_mode" and "clip" in _DEFAULTS[self.loss]:
            return "lambda_mode says where the weight counts with clipped gradients: set clip: true, or leave it out"
        if key == "taps" and "embedding" in _DEFAULTS[self.loss]:
            return f"{self.loss} compares logits, and reads no taps: set embedding: pooled, or leave taps out"
        owners = [loss for loss, keys in _DEFAULTS.items() if key in (*keys, *_EXTRA.get(loss, ()))]
        return f"{key} belongs to {', '.join(owners)}, and this loss is {self.loss}: leave it out"

    def foresee(self, outlook: Outlook, batch_size: int) -> None:
        """Raise RecipeError for a teacher that nobody kept, and for batches that the loss cannot do with."""
        check_kept(outlook, self.teacher, "model", "teacher")
        if self.loss in ("rkd", "mhgd", "ii_kd") and batch_size < 2:
            raise RecipeError(
                f"{self.loss} compares the images of a batch: batch_size must be at least 2, found {batch_size}"
            )

    def describe(self) -> str:
        """The objective in a few words, for a table."""
        if self.loss == "soft_labels":
            return f"{describe(self.weight)} soft labels of {self.teacher}"
        weight = f"{describe(self.weight)} · " if self.weight is not None else ""
        return f"cross entropy + {weight}{self.loss} of {self.teacher}"

    def build(
        self, state: State, setup: Setup, facts: Facts, settings: "Settings", label_smoothing: float
    ) -> "Objective":
        """What a training minimises."""
        from torch import nn

        from compress_aug.distill import Distillation, OnlineMutualLearning, SoftLabels
        from compress_aug.training import build_optimizer

        teacher = state.kept[self.teacher]
        assert isinstance(teacher, nn.Module)
        given = self.weight

        def weight(progress: float) -> float:
            return 1.0 if given is None else schedule.value(given, progress, facts)

        if self.loss == "soft_labels":
            assert self.temperature is not None and self.squared is not None
            return SoftLabels(teacher, weight, self.temperature, label_smoothing, squared=self.squared)
        if self.loss == "dml_online":
            setup.note("dml_online trains a copy of the teacher along; the kept one stays as it is")
            return OnlineMutualLearning(
                teacher,
                lambda parameters: build_optimizer(parameters, settings),
                weight,
                label_smoothing=label_smoothing,
            )
        return Distillation(
            teacher,
            self._terms(setup, settings),
            weight,
            clip=self.lambda_mode,
            label_smoothing=label_smoothing,
            taps=self._taps(),
            seed=setup.seed,
            note=setup.note,
        )

    def _terms(self, setup: Setup, settings: "Settings") -> list[Any]:
        from compress_aug.distill import Attention, Directions, Mutual, Relations, ii_kd_terms

        def keys(*names: str) -> dict[str, Any]:
            return {name: getattr(self, name) for name in names}

        if self.loss == "dml":
            return [Mutual()]
        if self.loss == "rkd":
            return [Relations(**keys(*_RELATIONS))]
        directions = Directions(**keys("reduction"))
        if self.loss == "kd_svd":
            return [directions]
        # A check of the recipe takes a step or two of everything.
        attention = Attention(
            **keys("heads", "attention", "reduction"),
            epochs=self.attention_epochs or 1.0,
            steps=1 if setup.rehearsal else None,
        )
        if self.attention == "pretrained":
            setup.note(
                f"the attention heads are trained on {self.teacher} first, for "
                f"{self.attention_epochs:g} of the {settings.epochs} epochs' steps"
            )
        return (
            [attention]
            if self.loss == "mhgd"
            else ii_kd_terms(Relations(**keys(*_RELATIONS)), attention, directions)
        )

    def _taps(self) -> Any:
        from compress_aug.distill import TapNames

        if isinstance(self.taps, Taps):
            return TapNames(self.taps.teacher, self.taps.student)
        return self.taps or "auto"


_EXTRA = {
    "rkd": ("taps", "lambda_mode"),
    "mhgd": ("reduction", "lambda_mode"),
    "kd_svd": ("reduction", "lambda_mode"),
    "ii_kd": ("reduction", "lambda_mode"),
}
"""Keys that a loss has when another one says so."""

assert set(_DEFAULTS) == set(get_args(Loss))

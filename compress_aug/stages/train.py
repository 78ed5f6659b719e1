"""train: some epochs at an augmentation strength, towards an objective."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_aug import schedule
from compress_aug.stages.augmentation import Augment
from compress_aug.stages.base import Outlook, Setup, Stage, State
from compress_aug.stages.distillation import Distill
from compress_aug.stages.prune import Gradual

if TYPE_CHECKING:
    from compress_aug.search import Change
    from compress_aug.training import Objective, Settings, Training


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
    freeze_scales: float | None = Field(
        None,
        ge=0,
        le=1,
        description="from this share of the stage on learned scales stay; 0.9 unless lr is constant; 1 for never",
    )
    freeze_batch_norm: float | None = Field(
        None,
        ge=0,
        le=1,
        description="from this share of the stage on batch-norm statistics stay; 0.8 if quantized and lr falls",
    )
    augment: Augment = Augment()
    distill: Distill | None = None
    prune: Gradual | None = None

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Train":
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError(
                "nesterov needs a momentum above 0: set nesterov: false, or a momentum such as 0.9"
            )
        return self

    @model_validator(mode="after")
    def _zeros_only_at_the_end(self) -> "Train":
        if self.prune is not None and self.weights == "best":
            raise ValueError(
                "with prune, the best weights may be those of an epoch with fewer zeros: leave out weights: best"
            )
        return self

    def foresee(self, outlook: Outlook) -> Outlook:
        if self.distill is not None:
            self.distill.foresee(outlook, self.batch_size)
        self.augment.foresee(outlook)
        if self.prune is not None:
            outlook = self.prune.foresee(outlook)
        return replace(outlook, epochs=outlook.epochs + self.epochs)

    def with_files(self, place: Callable[[str], str]) -> "Train":
        return self.model_copy(update={"augment": self.augment.with_files(place)})

    def title(self) -> str:
        taught = " with teacher" if self.distill else ""
        pruned = f", {self.prune.title()}" if self.prune else ""
        return f"train {self.epochs} epoch{'s' * (self.epochs != 1)}{taught}{pruned}"

    def plan(self) -> dict[str, str]:
        return {
            "epochs": str(self.epochs),
            "lr": f"{self.lr:g} {self.lr_schedule}",
            "magnitude": self.augment.describe(),
            "objective": self.distill.describe() if self.distill else "cross entropy",
        }

    def run(self, state: State, setup: Setup) -> State:
        training = self.training(state, setup)
        history = setup.fit(training, checkpoint=setup.stage_folder / "training.pt")
        _record(setup, history)
        if self.augment.random_magnitude:
            setup.record("random_magnitude", True)
        if self.augment.policy is not None:
            setup.record("policy", self.augment.policy_name)
        model = training.finished_model()
        if self.prune is not None:
            self.prune.on_step()(model, 1.0)
        return replace(state, model=model)

    def training(self, state: State, setup: Setup, augment: "Change | None" = None) -> "Training":
        """The training that `run` drives to its end, at its beginning; owns the state's model.

        augment: in place of what `augment` builds
        """
        from compress_aug.training import Settings, Training, facts_of

        given = self.augment
        facts = facts_of(state.model, setup.original)
        on_step = self.prune.on_step() if self.prune else None
        if on_step:
            # Now, so that the state of a training under way has the same names from its first step to its last.
            on_step(state.model, 0.0)
        settings = Settings(**{name: getattr(self, name) for name in Settings.__dataclass_fields__})
        return Training(
            state.model,
            setup.data,
            self._objective(state, setup, facts, settings),
            settings,
            augment=augment or given.build(state, setup, epochs=self.epochs),
            magnitude=given.strength(state, facts),
            seed=setup.seed,
            fabric=setup.fabric,
            on_step=on_step,
            note=setup.note,
        )

    def _objective(
        self, state: State, setup: Setup, facts: schedule.Facts, settings: "Settings"
    ) -> "Objective":
        from compress_aug.training import CrossEntropy

        if self.distill is None:
            return CrossEntropy(label_smoothing=self.label_smoothing)
        return self.distill.build(state, setup, facts, settings, self.label_smoothing)


def _record(setup: Setup, history: list[dict[str, Any]]) -> None:
    setup.record("history", history)
    if not history:
        return
    setup.record("loss", history[-1]["loss"])
    drawn = [history[0]["magnitude"], history[-1]["magnitude"]]
    ends = [pair[place] if pair else None for pair, place in zip(drawn, (0, 1), strict=True)]
    setup.record("magnitude", None if ends == [None, None] else ends)

"""prune_channels: whole channels go, and the model really gets smaller."""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from compress_aug.errors import RecipeError
from compress_aug.stages.base import Outlook, Part, Setup, Stage, State, percent


class Budget(Part):
    """How far channels are cut. Exactly one key."""

    ratio: float | None = Field(None, gt=0, lt=1, description="share of the channels cut in total")
    parameters: float | None = Field(
        None, gt=0, lt=1, description="share of the original parameters that stays"
    )
    macs: float | None = Field(
        None, gt=0, lt=1, description="share of the original multiply-accumulates that stays"
    )

    @model_validator(mode="after")
    def _one(self) -> "Budget":
        if len(self.given()) != 1:
            raise ValueError("expected exactly one of ratio, parameters, macs")
        return self

    def given(self) -> dict[str, float]:
        return {name: value for name, value in self if value is not None}


class PruneChannels(Stage):
    """Cut whole channels for good: the model really gets smaller."""

    word: ClassVar[str] = "prune_channels"

    until: Budget
    importance: Literal["l1", "l2", "bn_scale", "random"] = "l1"
    round_to: int | None = Field(
        None, ge=1, description="channel counts become multiples of it; the target names its default"
    )

    def foresee(self, outlook: Outlook) -> Outlook:
        if outlook.quantized:
            raise RecipeError("prune_channels must come before quantize")
        if outlook.attached:
            raise RecipeError("prune_channels cannot cut a model with attached layers: drop them first")
        return replace(outlook, cut=True)

    def title(self) -> str:
        ((what, share),) = self.until.given().items()
        return f"cut channels, {what} {'≤ ' if what != 'ratio' else ''}{percent(share)}"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.channels import cut_channels

        model = cut_channels(
            state.model,
            setup.example(),
            until=self.until.given(),
            importance=self.importance,
            round_to=setup.target.round_to if self.round_to is None else self.round_to,
            original=setup.original,
        )
        return replace(state, model=model)

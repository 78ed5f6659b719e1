"""attach, drop: additional layers to learn with, and without them again."""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from compress_aug.errors import RecipeError
from compress_aug.stages.base import Outlook, Setup, Stage, State


class Attach(Stage):
    """Hang additional layers before the pooling: capacity to bear strong augmentation, dropped later."""

    word: ClassVar[str] = "attach"

    blocks: int = Field(
        10, ge=1, description="residual blocks of two convolutions; each is the identity at first"
    )
    after: str | None = Field(None, description="path of the module they follow; found by tracing by default")

    def foresee(self, outlook: Outlook) -> Outlook:
        if outlook.attached:
            raise RecipeError("layers are attached already: drop them before attaching others")
        if outlook.quantized:
            raise RecipeError("attach must come before quantize")
        return replace(outlook, attached=self.blocks)

    def title(self) -> str:
        return f"attach {self.blocks} block{'s' * (self.blocks != 1)}"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.inheritance import attach_layers, attached_at

        model = attach_layers(state.model, setup.example(), blocks=self.blocks, after=self.after)
        setup.note(f"attached after {attached_at(model)}")
        return replace(state, model=model)


class Drop(Stage):
    """Take the attached layers away again; everything else keeps its weights and names."""

    word: ClassVar[str] = "drop"

    def foresee(self, outlook: Outlook) -> Outlook:
        if not outlook.attached:
            raise RecipeError("drop: nothing is attached; an attach stage must come before it")
        return replace(outlook, attached=0)

    def title(self) -> str:
        return "drop attached layers"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.inheritance import drop_layers

        return replace(state, model=drop_layers(state.model))

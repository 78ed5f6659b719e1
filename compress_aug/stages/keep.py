"""keep: a frozen copy of the model under a name, for later stages to learn from."""

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, model_validator

from compress_aug.errors import RecipeError
from compress_aug.stages.augmentation import RESERVED
from compress_aug.stages.base import KEPT_NAME, Outlook, Setup, Stage, State


class Keep(Stage):
    """Keep a frozen copy of the model under a name: `- keep: teacher`."""

    word: ClassVar[str] = "keep"
    changes_model: ClassVar[bool] = False

    name: str = Field(pattern=f"^{KEPT_NAME}$")

    @model_validator(mode="before")
    @classmethod
    def _just_a_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    def foresee(self, outlook: Outlook) -> Outlook:
        if self.name in RESERVED:
            raise RecipeError(f'keep: "{self.name}" has a meaning of its own; choose another name')
        if self.name in outlook.kept:
            raise RecipeError(f'keep: something is kept under the name "{self.name}" already')
        return replace(outlook, kept={**outlook.kept, self.name: "model"})

    def title(self) -> str:
        return f"keep as {self.name}"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.surgery import copy_model, freeze

        return replace(state, kept={**state.kept, self.name: freeze(copy_model(state.model))})

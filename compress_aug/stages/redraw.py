"""redraw: the pruned structure stays, the weights begin anew."""

from dataclasses import replace
from typing import ClassVar

from compress_aug.errors import RecipeError
from compress_aug.stages.base import Outlook, Setup, Stage, State


class Redraw(Stage):
    """Draw all weights anew, from the recipe's seed; masks and cut channels stay."""

    word: ClassVar[str] = "redraw"

    def foresee(self, outlook: Outlook) -> Outlook:
        if outlook.quantized:
            raise RecipeError(
                "redraw must come before quantize: scales belong to the weights they were set for"
            )
        if outlook.attached:
            raise RecipeError(
                "redraw: layers are attached, which would no longer start as the identity; redraw before attach, "
                "or after drop"
            )
        return outlook

    def title(self) -> str:
        return "redraw weights"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.pruning import redraw

        return replace(state, model=redraw(state.model, setup.seed))

"""prune: single weights go to zero, and stay there."""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from compress_aug.errors import RecipeError
from compress_aug.stages.base import Outlook, Setup, Stage, State, percent


class Prune(Stage):
    """Zero the smallest weights. They stay zero through training, quantization and export."""

    word: ClassVar[str] = "prune"

    sparsity: float = Field(
        ge=0, lt=1, description="total share of prunable weights that are zero afterwards"
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="global ranks all layers together, layer takes the same share from each"
    )

    def foresee(self, outlook: Outlook) -> Outlook:
        if self.sparsity < outlook.sparsity:
            raise RecipeError(
                f"sparsity: {self.sparsity:g} is lower than the {outlook.sparsity:g} of an earlier stage; "
                "sparsity is the total after the stage and can only grow"
            )
        return replace(outlook, sparsity=self.sparsity)

    def title(self) -> str:
        return f"prune to {percent(self.sparsity)}"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.pruning import mask_smallest

        return replace(state, model=mask_smallest(state.model, self.sparsity, scope=self.scope))

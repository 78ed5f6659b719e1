"""model: goes on with a fresh net in place of the present one: a smaller student, once the teacher is kept."""

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from compress_aug.errors import RecipeError
from compress_aug.stages.base import FLOAT_BITS, Outlook, Setup, Stage, State


class Model(Stage):
    """Go on with a fresh net: `- model: preresnet_32`. What was kept before (the teacher) stays as it is."""

    word: ClassVar[str] = "model"

    name: str = Field(description="a shipped net, torchvision:NAME or timm:NAME; no function of your own")
    arguments: dict[str, Any] = Field({}, description="further arguments of the net, such as {width: 8}")

    @model_validator(mode="before")
    @classmethod
    def _just_a_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @field_validator("arguments")
    @classmethod
    def _not_the_name(cls, given: dict[str, Any]) -> dict[str, Any]:
        for key in ("name", "call"):
            if key in given:
                raise ValueError(
                    f"{key} is no argument of a net: write name: beside arguments:, not among them"
                )
        return given

    def foresee(self, outlook: Outlook) -> Outlook:
        source, colon, _ = self.name.partition(":")
        if colon and source not in ("torchvision", "timm"):
            raise RecipeError(
                f'model: "{self.name}" is a function of your own, which a checkpoint could not build again without '
                "running code; expected a shipped net, torchvision:NAME or timm:NAME"
            )
        return replace(
            outlook,
            sparsity=0.0,
            weight_bits=FLOAT_BITS,
            activation_bits=FLOAT_BITS,
            attached=0,
            cut={},
            zero_weights=True,
            auto_bits=False,
        )

    def title(self) -> str:
        return f"go on with a fresh {self.name}"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.models import check_fits, fresh_model

        shape, classes = setup.data.image_shape, len(setup.data.classes)
        model = fresh_model(self.name, self.arguments, classes=classes, image_shape=shape)
        check_fits(model, shape, classes)
        return replace(state, model=model.to(setup.fabric.device))

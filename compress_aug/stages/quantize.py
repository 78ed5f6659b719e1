"""quantize: layers become fake-quantized ones, calibrated on training images."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from compress_aug.errors import RecipeError
from compress_aug.stages.base import FLOAT_BITS, Outlook, Setup, Stage, State


def _bits(given: Any) -> Any:
    if given == "float" or (isinstance(given, int) and not isinstance(given, bool) and 2 <= given <= 8):
        return given
    raise ValueError(f"expected 2..8 bits, or float, found {given!r}")


Bits = Annotated[int | Literal["float"], BeforeValidator(_bits)]


class Quantize(Stage):
    """Swap layers for fake-quantized ones, calibrated on training images. A `train` after it is QAT."""

    word: ClassVar[str] = "quantize"

    weights: Bits = Field(8, description="bits 2..8, or float")
    activations: Bits = Field(8, description="bits 2..8, or float")
    first_and_last: Bits = Field(8, description="bits of the first and the last layer, or float")
    calibrate: int = Field(1024, ge=1, description="training images that set the scales")

    @model_validator(mode="after")
    def _something(self) -> "Quantize":
        if self.weights == self.activations == "float":
            raise ValueError("weights and activations are both float: nothing would be quantized")
        return self

    def foresee(self, outlook: Outlook) -> Outlook:
        if outlook.quantized:
            raise RecipeError("the model is quantized already; one quantize stage sets all bits")
        if outlook.attached:
            raise RecipeError("quantize cannot follow attach: drop the attached layers first")
        return replace(outlook, weight_bits=_number(self.weights), activation_bits=_number(self.activations))

    def title(self) -> str:
        return f"quantize w{_short(self.weights)} a{_short(self.activations)}"

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.quantization import quantize

        weights, ends = (_unsaturated(bits, setup) for bits in (self.weights, self.first_and_last))
        if (weights, ends) != (self.weights, self.first_and_last):
            setup.note(
                f"weights get 7 bits instead of 8: {setup.target.name} adds int8 products with saturation"
            )
        model = quantize(
            state.model,
            setup.example(),
            weights=None if weights == "float" else weights,
            activations=None if self.activations == "float" else self.activations,
            first_and_last=ends,
            calibration=setup.images(self.calibrate),
        )
        return replace(state, model=model)


def _unsaturated(bits: Any, setup: Setup) -> Any:
    return 7 if setup.target.int8_saturates and bits == 8 else bits


def _number(bits: int | str) -> int:
    return FLOAT_BITS if isinstance(bits, str) else bits


def _short(bits: int | str) -> str:
    return "f" if isinstance(bits, str) else str(bits)

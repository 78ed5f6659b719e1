"""prune, prune_channels, attach, drop, keep, quantize: the stages that change or copy the model at once."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from compress_aug.errors import RecipeError
from compress_aug.stages.augmentation import RESERVED
from compress_aug.stages.base import FLOAT_BITS, KEPT_NAME, Outlook, Part, Setup, Stage, State, percent


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
            _example(setup),
            until=self.until.given(),
            importance=self.importance,
            round_to=setup.target.round_to if self.round_to is None else self.round_to,
            original=setup.original,
        )
        return replace(state, model=model)


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

        model = attach_layers(state.model, _example(setup), blocks=self.blocks, after=self.after)
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
            _example(setup),
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


def _example(setup: Setup) -> Any:
    """One normalised black image on the run's device: enough to follow the model's layers."""
    import torch

    raw = torch.zeros(1, *setup.data.image_shape, dtype=torch.uint8, device=setup.fabric.device)
    return setup.data.normalise(raw)

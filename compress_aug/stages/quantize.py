"""quantize: layers become fake-quantized ones, calibrated on training images."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from compress_aug.errors import QuantizeError, RecipeError
from compress_aug.scheme import Scheme, chosen, usual
from compress_aug.stages.auto_bits import Auto, check_keys, choose, possible_bits, tell
from compress_aug.stages.base import FLOAT_BITS, Outlook, Setup, Stage, State
from compress_aug.stages.saturation import MOST_BITS, has_8_bit_weights, said, unsaturated
from compress_aug.stages.unsigned import has_8_bit_activations, without_8_bits
from compress_aug.stages.unsigned import said as unsigned_said


def _bits(given: Any) -> Any:
    if given == "float" or (isinstance(given, int) and not isinstance(given, bool) and 2 <= given <= 8):
        return given
    raise ValueError(f"expected 2..8 bits, or float, found {given!r}")


Bits = Annotated[int | Literal["float"], BeforeValidator(_bits)]
Ends = Annotated[
    int | Literal["float", "auto"], BeforeValidator(lambda given: given if given == "auto" else _bits(given))
]


def _overrides(given: Any) -> Any:
    """What has the form of overrides, or a sentence that shows it."""
    form = "such as {fc: {weights: 8}}"
    if isinstance(given, dict) and not given:
        raise ValueError(f"names no layer: leave it out, or name layers, {form}")
    for pattern, bits in given.items() if isinstance(given, dict) else ():
        if not isinstance(bits, dict):
            raise ValueError(f"{pattern}: expected weights or activations, {form}, found {bits!r}")
    return given


Overrides = Annotated[dict[str, dict[Literal["weights", "activations"], Bits]], BeforeValidator(_overrides)]


class Quantize(Stage):
    """Swap layers for fake-quantized ones, calibrated on training images. A `train` after it is QAT."""

    word: ClassVar[str] = "quantize"

    scheme: Literal["integer", "dorefa"] = Field(
        "integer", description="integer: grids fitted to the values; dorefa: DoReFa's fixed levels, 2..7 bits"
    )
    weights: Bits = Field(8, description="bits 2..8, or float")
    activations: Bits = Field(8, description="bits 2..8, or float")
    first_and_last: Ends | None = Field(
        None,
        validate_default=True,
        description="bits of the first and the last layer, or float; by default 8, with dorefa float; auto: with "
        "bits: auto they are picked as well",
    )
    bits: Auto | None = Field(
        None, description="auto: those of each layer's weights are picked by what they cost, within size_mb"
    )
    size_mb: float | None = Field(
        None,
        gt=0,
        description="for bits: auto: what the model stores, in 10^6 bytes, k bits for a weight of k bits",
    )
    choices: list[int] | None = Field(
        None, description="for bits: auto: bits to pick from, [2, 4, 8] by default"
    )
    overrides: Overrides | None = Field(
        None,
        description="name, glob or type of layers -> weights and activations (what the layer reads); later ones win",
    )
    weight_scales: Literal["channel", "tensor"] = Field(
        "channel", description="a scale for each output channel, or one for each layer"
    )
    weight_range: Literal["auto", "max", "percentile", "mse"] = Field(
        "auto",
        description="where a weight's grid ends; auto: max from 6 bits on, below the best for normal weights",
    )
    activation_range: Literal["mse", "max", "percentile"] = Field(
        "mse",
        description="where a grid between layers ends at first: least squared error, largest value, percentile",
    )
    percentile: float = Field(
        99.99, gt=50, le=100, description="of magnitudes that are not zero, for ranges by percentile"
    )
    learned_scales: bool = Field(True, description="false: scales stay as calibrated while weights train")
    batch_norm: Literal["fold", "keep"] | None = Field(
        None,
        validate_default=True,
        description="fold into the layer before, or keep for training; by default fold, with dorefa keep",
    )
    signed: Bits | None = Field(
        None,
        validate_default=True,
        description="dorefa: bits of what may be negative (summands, linear bottlenecks), 8 by default, or float",
    )
    rescale: bool = Field(
        False, description="dorefa: layers get their mean size back, for nets without batch norm"
    )
    calibrate: int = Field(1024, ge=1, description="training images that set the scales")

    @field_validator("first_and_last", "batch_norm", "signed")
    @classmethod
    def _of_scheme(cls, given: Any, info: ValidationInfo) -> Any:
        return usual(info.data.get("scheme", ""), str(info.field_name)) if given is None else given

    @model_validator(mode="after")
    def _possible(self) -> "Quantize":
        named = {"weights", "activations"} <= self.model_fields_set or self.bits is not None
        if self.scheme == "dorefa" and not named:
            raise ValueError(
                "scheme: dorefa needs weights and activations, 2..7 bits each, such as weights: 4"
            )
        exceptions = [bits for given in (self.overrides or {}).values() for bits in given.values()]
        if {self.weights, self.activations, *exceptions} == {"float"}:
            raise ValueError("weights and activations are both float: nothing would be quantized")
        check_keys(self)
        try:
            self._choice(saturates=False)
        except QuantizeError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return self

    def foresee(self, outlook: Outlook) -> Outlook:
        if outlook.quantized:
            raise RecipeError("the model is quantized already; one quantize stage sets all bits")
        if outlook.attached:
            raise RecipeError("quantize cannot follow attach: drop the attached layers first")
        if self.scheme == "dorefa" and outlook.sparsity > 0:
            raise RecipeError(
                "scheme: dorefa has no level at zero, so that no pruned weight would stay zero: choose scheme: integer"
            )
        choice = self._choice(saturates=outlook.int8_saturates, signed_only=outlook.signed_only)
        weights = [choice.weights, *(bits.get("weights") for bits in choice.overrides.values())]
        ends = None if choice.weights is None else choice.first_and_last
        if choice.is_dorefa and outlook.int8_saturates and MOST_BITS in (*weights, ends):
            raise RecipeError(
                f"DoReFa weights of {MOST_BITS} bits are integers of 8, and the target adds int8 products with "
                f"saturation: choose at most {MOST_BITS - 1}"
            )
        activations = [choice.activations, *(bits.get("activations") for bits in choice.overrides.values())]
        return replace(
            outlook,
            weight_bits=_nominal(weights),
            activation_bits=_nominal(activations),
            zero_weights=not choice.is_dorefa,
            auto_bits=self.bits == "auto",
        )

    def title(self) -> str:
        return self._title(self.weights, self.activations)

    def _title(self, weights: Bits, activations: Bits) -> str:
        if self.bits == "auto":
            return f"quantize w auto, ≤ {self.size_mb:g} MB, a{_short(activations)}"
        scheme = "dorefa " if self.scheme == "dorefa" else ""
        return f"quantize {scheme}w{_short(weights)} a{_short(activations)}"

    def possible_weights(self) -> list[Bits]:
        """The bits that the weights of most layers may get: one number, or what bits: auto picks from."""
        return [self.weights] if self.bits is None else [*possible_bits(self)]

    def for_trials(self, images: int) -> "Quantize":
        """The same stage for files that are thrown away: fewer images, and the most bits that may be picked."""
        update: dict[str, Any] = {"calibrate": min(self.calibrate, images)}
        if self.bits == "auto":
            options = self._options(saturates=False)
            update |= {name: options[name] for name in ("weights", "first_and_last")}
            update |= dict.fromkeys(("bits", "size_mb", "choices"))
        return self.model_copy(update=update)

    def _choice(self, *, saturates: bool, signed_only: bool = False) -> Scheme:
        options = self._options(saturates)
        return chosen(**(without_8_bits(options) if signed_only else options))

    def _options(self, saturates: bool) -> dict[str, Any]:
        """What `quantize` is called with, calibration left out."""
        overrides = {
            pattern: {
                side: unsaturated(bits, saturates) if side == "weights" else bits
                for side, bits in given.items()
            }
            for pattern, given in (self.overrides or {}).items()
        }
        options = self.model_dump(exclude={"calibrate", "overrides", "bits", "size_mb", "choices"})
        if self.bits == "auto":
            options["weights"] = max(self.possible_weights())
        if self.first_and_last == "auto":
            # Of their weights nothing stays with it; of what the network and its last layer read it does.
            options["first_and_last"] = usual(self.scheme, "first_and_last")
        options["weights"] = unsaturated(options["weights"], saturates)
        # For the ends, where one number stands for weights and for activations, which keep their bits.
        options["most_weight_bits"] = unsaturated(8, saturates)
        for side in ("weights", "activations"):
            options[side] = None if options[side] == "float" else options[side]
        return {**options, "overrides": overrides}

    def run(self, state: State, setup: Setup) -> State:
        from compress_aug.quantization import quantize

        saturates = setup.target.int8_saturates
        if saturates and has_8_bit_weights(self):
            setup.note(said(setup.target.name))
        options, images = self._options(saturates), setup.images(self.calibrate)
        found = sum(len(batch) for batch in images)
        if found < self.calibrate:
            setup.note(f"calibrated on {found:,} images, all that there are, and not on {self.calibrate:,}")
        if setup.target.signed_only and has_8_bit_activations(self):
            options = without_8_bits(options)
            setup.note(unsigned_said(setup.target.name))
        title = self._title(
            *("float" if options[side] is None else options[side] for side in ("weights", "activations"))
        )
        if title != self.title():
            setup.record("title", title)
        picked = choose(self, state.model, options, images, setup) if self.bits == "auto" else None
        if picked is not None:
            given = options["overrides"]
            given |= {name: {**given.get(name, {}), "weights": bits} for name, bits in picked.bits.items()}
        model = quantize(state.model, setup.example(), **options, calibration=images, note=setup.note)
        if picked is not None:
            tell(picked, model, setup)
        return replace(state, model=model)


def _nominal(bits: list[Any]) -> int:
    """The bits of all layers but exceptions; where only exceptions are quantized, the fewest of theirs."""
    numbers = [_number(one) for one in bits if one is not None]
    return min(numbers, default=FLOAT_BITS) if bits[0] is None else _number(bits[0])


def _number(bits: int | str) -> int:
    return FLOAT_BITS if isinstance(bits, str) else bits


def _short(bits: int | str) -> str:
    return "f" if isinstance(bits, str) else str(bits)

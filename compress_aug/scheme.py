"""What `quantize` is asked for: the scheme with its bits, ranges and exceptions, checked as a whole without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from compress_aug.errors import QuantizeError, nearest

Bits = int | Literal["float"]
Override = Mapping[str, Bits | None]

_CHOICES = {
    "scheme": ("integer", "dorefa"),
    "weight_scales": ("channel", "tensor"),
    "weight_range": ("auto", "max", "percentile", "mse"),
    "activation_range": ("mse", "max", "percentile"),
    "batch_norm": ("fold", "keep"),
}

# Of DoReFa's weights: the more than 7 bits, the odd integers of (k + 1) bits fit no 8-bit kernel.
_DOREFA_BITS = (2, 7)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One choice of `quantize`, with the scheme's own defaults filled in: what its log entry holds.

    weights, activations: bits, None for float
    overrides:            pattern -> {"weights": bits, "activations": bits}, "float" for float
    signed, rescale:      mean something for dorefa only
    pooled:               with dorefa, what is pooled for a quantized last layer is quantized as well

    The other fields are those of `quantize`. The defaults here are what logs without a key were written with.
    """

    weights: int | None
    activations: int | None
    first_and_last: Bits
    scheme: str = "integer"
    overrides: Mapping[str, Mapping[str, Bits]] = field(default_factory=dict)
    weight_scales: str = "channel"
    weight_range: str = "auto"
    activation_range: str = "mse"
    percentile: float = 99.99
    learned_scales: bool = True
    batch_norm: str = "fold"
    signed: Bits = 8
    rescale: bool = False
    most_weight_bits: int = 8
    least_gate_bits: int = 2
    pooled: bool = False

    @property
    def is_dorefa(self) -> bool:
        return self.scheme == "dorefa"

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> "Scheme":
        """The choice that a log entry was written for."""
        return cls(**{part.name: entry[part.name] for part in fields(cls) if _is_there(part.name, entry)})

    def written(self) -> dict[str, Any]:
        """The keys of a log entry."""
        return {part.name: getattr(self, part.name) for part in fields(self)}


def _is_there(name: str, entry: Mapping[str, Any]) -> bool:
    return name in entry or name in ("weights", "activations", "first_and_last")


def chosen(
    *,
    scheme: str,
    weights: int | None,
    activations: int | None,
    first_and_last: Bits | None = None,
    overrides: Mapping[str, Override] | None = None,
    batch_norm: str | None = None,
    signed: Bits | None = None,
    least_gate_bits: int = 8,
    **others: Any,
) -> Scheme:
    """The options of `quantize` as one choice, None replaced by what the scheme takes.

    Raises QuantizeError, with the reason, for what cannot be, or cannot be together.

    >>> chosen(scheme="dorefa", weights=4, activations=4).first_and_last
    'float'
    """
    made = Scheme(
        scheme=scheme,
        weights=weights,
        activations=activations,
        first_and_last=usual(scheme, "first_and_last") if first_and_last is None else first_and_last,
        overrides=_plain(overrides or {}),
        batch_norm=usual(scheme, "batch_norm") if batch_norm is None else batch_norm,
        signed=8 if signed is None else signed,
        least_gate_bits=least_gate_bits,
        pooled=True,
        **others,
    )
    for name, known in _CHOICES.items():
        if getattr(made, name) not in known:
            found = getattr(made, name)
            raise QuantizeError(
                f"{name} must be {' or '.join(known)}, found {found!r}: {nearest(found, known)}"
            )
    _check_bits(made)
    _check_numbers(made)
    if made.is_dorefa:
        _check_dorefa(made)
    elif signed is not None or made.rescale:
        name = "signed" if signed is not None else "rescale"
        raise QuantizeError(f'{name} belongs to scheme "dorefa": leave it out, or choose that scheme.')
    return made


def usual(scheme: str, option: str) -> Any:
    """What an option is if it is not named: some go by the scheme.

    >>> usual("dorefa", "batch_norm"), usual("integer", "batch_norm"), usual("integer", "signed")
    ('keep', 'fold', None)
    """
    dorefa = {"first_and_last": "float", "batch_norm": "keep", "signed": 8}
    integer = {"first_and_last": 8, "batch_norm": "fold", "signed": None}
    return (dorefa if scheme == "dorefa" else integer)[option]


def _plain(overrides: Mapping[str, Override]) -> dict[str, dict[str, Bits]]:
    """None is another word for float; what has the wrong form is refused."""
    if not isinstance(overrides, Mapping):
        raise QuantizeError(f'overrides must be like {{"layer1.*": {{"weights": 8}}}}, found {overrides!r}.')
    plain = {}
    for pattern, bits in overrides.items():
        if not isinstance(bits, Mapping) or not bits or not bits.keys() <= {"weights", "activations"}:
            raise QuantizeError(
                f'overrides: "{pattern}" must map to {{"weights": bits, "activations": bits}} or one of the two, '
                f"found {bits!r}."
            )
        plain[pattern] = {name: "float" if value is None else value for name, value in bits.items()}
    return plain


def _check_bits(made: Scheme) -> None:
    named: list[tuple[str, object, object]] = [
        ("weights", made.weights, None),
        ("activations", made.activations, None),
        ("first_and_last", made.first_and_last, "float"),
        *(
            (f'overrides: {name} of "{pattern}"', value, "float")
            for pattern, bits in made.overrides.items()
            for name, value in bits.items()
        ),
    ]
    overridden = [value for bits in made.overrides.values() for value in bits.values()]
    if made.weights is made.activations is None and all(value == "float" for value in overridden):
        raise QuantizeError("weights and activations are both None (float): give one of them 2 to 8 bits.")
    for name, bits, unquantized in named:
        if bits == unquantized:
            continue
        if made.is_dorefa and _is_number(bits) and not _DOREFA_BITS[0] <= int(str(bits)) <= _DOREFA_BITS[1]:
            raise QuantizeError(f"{name}: DoReFa takes 2 to 7 bits, found {bits}: {_dorefa_reason(bits)}.")
        if not _is_number(bits) or not 2 <= int(str(bits)) <= 8:
            raise QuantizeError(f"{name} must be 2 to 8 bits or {unquantized!r} for float, found {bits!r}.")


def _is_number(bits: object) -> bool:
    return isinstance(bits, int) and not isinstance(bits, bool)


def _dorefa_reason(bits: object) -> str:
    if bits == 1:
        return (
            "at one bit it is another method (the sign times the mean size), which no device has kernels for"
        )
    return (
        "its k bits are the odd integers from -(2^k - 1) to 2^k - 1, which need k + 1 bits of the 8 that integer "
        'kernels hold; for 8 bits choose scheme "integer"'
    )


def _check_numbers(made: Scheme) -> None:
    percentile: object = made.percentile
    is_number = isinstance(percentile, int | float) and not isinstance(percentile, bool)
    if not is_number or not 50 < float(str(percentile)) <= 100:
        raise QuantizeError(f"percentile must lie above 50 and at most at 100, found {percentile!r}.")
    if made.signed != "float" and not (_is_number(made.signed) and 2 <= int(made.signed) <= 8):
        raise QuantizeError(f"signed must be 2 to 8 bits or 'float' for float, found {made.signed!r}.")
    for name in ("most_weight_bits", "least_gate_bits"):
        bits = getattr(made, name)
        if not (_is_number(bits) and 2 <= bits <= 8):
            raise QuantizeError(f"{name} must be 2 to 8, found {bits!r}.")
    for name in ("learned_scales", "rescale"):
        if not isinstance(getattr(made, name), bool):
            raise QuantizeError(f"{name} must be true or false, found {getattr(made, name)!r}.")


def _check_dorefa(made: Scheme) -> None:
    if made.batch_norm == "fold":
        raise QuantizeError(
            'batch_norm must be "keep" with scheme "dorefa": its weights lose their size in tanh(w) / max|tanh(w)|, '
            "and the batch norm behind each layer gives it back while it trains; finalize folds it."
        )
    for name, only in (("weight_scales", "channel"), ("weight_range", "auto")):
        if getattr(made, name) != only:
            raise QuantizeError(
                f'{name} belongs to scheme "integer": the levels of DoReFa are the same in every layer.'
            )

"""Targets whose int8 kernels saturate: there, weights of 8 bits get 7 from the start of training, and it is said."""

from typing import Any

MOST_BITS = 7
"""Two products of 8-bit values with weights of so many bits fit the 16 bits that such kernels add them in."""


def unsaturated(bits: Any, saturates: bool) -> Any:
    """The bits of a weight on a target, "float" included.

    >>> unsaturated(8, True), unsaturated(4, True), unsaturated(8, False), unsaturated("float", True)
    (7, 4, 8, 'float')
    """
    return MOST_BITS if saturates and bits == 8 else bits


def has_8_bit_weights(stage: Any) -> bool:
    """Whether a `quantize` asks for 8-bit weights anywhere: in all layers, at the ends, or in an override."""
    overridden = [bits.get("weights") for bits in (getattr(stage, "overrides", None) or {}).values()]
    ends = None if stage.weights == "float" else stage.first_and_last
    return 8 in (*stage.possible_weights(), ends, *overridden)


def said(target: str) -> str:
    """Why weights have fewer bits than the recipe says."""
    return (
        f"weights get {MOST_BITS} bits instead of 8 from the start of training, because {target} adds int8 products "
        "with saturation; activations keep theirs"
    )

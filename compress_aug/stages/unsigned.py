"""Targets that take signed integers only: there, activations of 8 bits get 7 from the start, and it is said."""

from collections.abc import Mapping
from typing import Any

MOST_BITS = 7
"""What never is negative fits int8 without a shift up to so many bits."""


def without_8_bits(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `quantize` with activations of at most 7 bits.

    >>> without_8_bits({"activations": 8, "first_and_last": 8, "overrides": {"fc": {"activations": 8}}})
    {'activations': 7, 'first_and_last': 7, 'overrides': {'fc': {'activations': 7}}, 'least_gate_bits': 7}
    """
    overrides = {
        pattern: {side: _at_most(bits) if side == "activations" else bits for side, bits in given.items()}
        for pattern, given in options["overrides"].items()
    }
    # One number stands for the ends' weights and for what they read.
    changed = {name: _at_most(options[name]) for name in ("activations", "first_and_last")}
    return {**options, **changed, "overrides": overrides, "least_gate_bits": MOST_BITS}


def has_8_bit_activations(stage: Any) -> bool:
    """Whether a `quantize` asks for 8 bits between layers or at the ends, or for what a layer of an override reads."""
    overridden = [bits.get("activations") for bits in (stage.overrides or {}).values()]
    ends = 8 if stage.first_and_last == "auto" else stage.first_and_last
    return 8 in (stage.activations, ends, *overridden)


def _at_most(bits: Any) -> Any:
    return MOST_BITS if bits == 8 else bits


def said(target: str) -> str:
    """Why activations have fewer bits than the recipe says."""
    return (
        f"activations (and the weights of the first and the last layer) get {MOST_BITS} bits instead of 8 from the "
        f"start of training, because {target} takes signed integers only, and half of those would never be used"
    )

"""The names of operations and what a magnitude makes them do, in words for people."""

import math

from compress_aug.augment import Operation, magnitude_arguments
from compress_aug.augment.operations import NEUTRAL_ARGUMENT


def operation_name(operation: Operation) -> str:
    """The name as papers write it.

    >>> operation_name(Operation.AUTO_CONTRAST)
    'AutoContrast'
    """
    return "".join(part.capitalize() for part in operation.name.split("_"))


def argument_words(operation: Operation, magnitude: int, *, height: int, width: int) -> str:
    """What RandAugment's magnitude 0..30 means for one operation on images of this size in pixels.

    >>> argument_words(Operation.TRANSLATE_X, 14, height=32, width=32)
    '±6 px'
    >>> argument_words(Operation.COLOR, 14, height=32, width=32)
    '×1.42 / ×0.58'
    >>> argument_words(Operation.POSTERIZE, 0, height=32, width=32)
    '8 bits: no change'
    """
    up, down = (float(value) for value in magnitude_arguments(height, width)[operation, magnitude])
    if operation == Operation.IDENTITY:
        return "no change"
    if math.isnan(up):
        return "has no magnitude"
    said = _said(operation, up, down)
    return f"{said}: no change" if up == NEUTRAL_ARGUMENT[operation] else said


def _said(operation: Operation, up: float, down: float) -> str:
    if operation in (Operation.TRANSLATE_X, Operation.TRANSLATE_Y):
        return f"±{up:g} px"
    if operation in (Operation.SHEAR_X, Operation.SHEAR_Y):
        return f"±{up:.2f} (±{math.degrees(math.atan(up)):.0f}°)"
    if operation == Operation.ROTATE:
        return f"±{up:.0f}°"
    if operation == Operation.POSTERIZE:
        return f"{up:g} bits"
    if operation == Operation.SOLARIZE:
        return f"inverts ≥ {math.ceil(up)}"
    return f"×{up:.2f} / ×{down:.2f}"

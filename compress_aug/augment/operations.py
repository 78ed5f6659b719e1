"""The image operations and their arguments, and what RandAugment's magnitude 0..30 means for each of its 14."""

import math
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from compress_aug.errors import RecipeError

LARGEST_MAGNITUDE = 30


class Operation(IntEnum):
    """The operations, numbered in the order in which the executor groups them; the argument of each.

    Every argument is what the operation itself understands, so that other policies with other magnitudes can
    use the same operations: inverting an image, for one, is SOLARIZE with threshold 0.
    """

    IDENTITY = 0  # no argument
    POSTERIZE = 1  # bits kept, 0..8
    SOLARIZE = 2  # threshold: pixels >= it are inverted, 0..256
    EQUALIZE = 3  # no argument
    AUTO_CONTRAST = 4  # no argument
    BRIGHTNESS = 5  # factor, 0 is black and 1 leaves the image as it is
    CONTRAST = 6  # factor, 0 is the mean grey
    COLOR = 7  # factor, 0 is the grey image
    SHARPNESS = 8  # factor, 0 is the smoothed image
    TRANSLATE_X = 9  # whole pixels, positive moves the content right
    TRANSLATE_Y = 10  # whole pixels, positive moves the content down
    SHEAR_X = 11  # pixels per row, positive moves the content left
    SHEAR_Y = 12  # pixels per column, positive moves the content up
    ROTATE = 13  # degrees, positive turns the content against the clock
    CUTOUT = 14  # side in pixels of a square that is painted over; its centre is the place
    CROP = 15  # no argument; the place is how far the window moves down and right
    FLIP = 16  # no argument; left and right change places


# What RandAugment draws from. The order is torchvision's and part of what a seed means: it stays as it is
# even if operations for other policies join the enumeration above.
RANDAUGMENT_OPERATIONS = (
    Operation.IDENTITY,
    Operation.SHEAR_X,
    Operation.SHEAR_Y,
    Operation.TRANSLATE_X,
    Operation.TRANSLATE_Y,
    Operation.ROTATE,
    Operation.BRIGHTNESS,
    Operation.COLOR,
    Operation.CONTRAST,
    Operation.SHARPNESS,
    Operation.POSTERIZE,
    Operation.SOLARIZE,
    Operation.AUTO_CONTRAST,
    Operation.EQUALIZE,
)

# With this argument an operation leaves every image as it is (nan: there is no such argument).
NEUTRAL_ARGUMENT = np.array([np.nan, 8, 256, np.nan, np.nan, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, np.nan, np.nan])


def check_magnitude(magnitude: object) -> int:
    """The magnitude, if it is a whole number in 0..30.

    Raises RecipeError for anything else, 14.0 and True included.

    >>> check_magnitude(14)
    14
    """
    whole = isinstance(magnitude, int | np.integer) and not isinstance(magnitude, bool)
    if not whole or not 0 <= int(magnitude) <= LARGEST_MAGNITUDE:  # type: ignore[call-overload]
        raise RecipeError(
            f"magnitude must be a whole number in 0..{LARGEST_MAGNITUDE}, or none for no RandAugment, "
            f"but it is {magnitude!r}."
        )
    return int(magnitude)  # type: ignore[call-overload, no-any-return]


@lru_cache(maxsize=64)
def magnitude_arguments(height: int, width: int) -> NDArray[np.float64]:
    """The argument of every operation at every magnitude and sign, for images of this size.

    Returns (operations, 31, 2): `Operation`, magnitude, and 0 for the positive or 1 for the negative
    direction; nan where the operation takes no argument. Unsigned operations have twice the same.

    Source: RandAugment (arXiv 1909.13719) with torchvision's magnitudes for 31 bins, which are the common
    ones whose severity grows with the magnitude. That compression uses these 14 operations, nearest
    neighbours and black fill is this project's choice: arXiv 2305.13232 does not name its operations.

    >>> magnitude_arguments(32, 32)[Operation.TRANSLATE_X, 14].tolist()
    [6.0, -6.0]
    """
    steps = LARGEST_MAGNITUDE + 1
    table = np.full((len(Operation), steps, 2), np.nan)

    def ramp(start: float, end: float) -> NDArray[np.float64]:
        # float32 first, as in the reference: 0.3 * M / 30 in double would round a few pixels elsewhere.
        return torch.linspace(start, end, steps, dtype=torch.float32).double().numpy()

    def fill(operation: Operation, values: NDArray[np.float64], negative: NDArray[np.float64]) -> None:
        table[operation, :, 0], table[operation, :, 1] = values, negative

    for operation in (Operation.BRIGHTNESS, Operation.CONTRAST, Operation.COLOR, Operation.SHARPNESS):
        fill(operation, 1.0 + ramp(0.0, 0.9), 1.0 - ramp(0.0, 0.9))
    fill(Operation.ROTATE, ramp(0.0, 30.0), -ramp(0.0, 30.0))
    # The reference goes by way of an angle in degrees. Bilinear sums show the last bit of it.
    angles = [math.radians(math.degrees(math.atan(shear))) for shear in ramp(0.0, 0.3).tolist()]
    along_x = np.array([math.tan(angle) for angle in angles])
    along_y = np.array([math.sin(angle) / math.cos(angle) for angle in angles])
    fill(Operation.SHEAR_X, along_x, -along_x)
    fill(Operation.SHEAR_Y, along_y, -along_y)
    for operation, side in ((Operation.TRANSLATE_X, width), (Operation.TRANSLATE_Y, height)):
        pixels = np.trunc(ramp(0.0, 150.0 / 331.0 * side))
        fill(operation, pixels, -pixels)
    bits = (8 - torch.arange(steps) / (LARGEST_MAGNITUDE / 4)).round().double().numpy()
    fill(Operation.POSTERIZE, bits, bits)
    thresholds = 255.0 * ramp(1.0, 0.0)
    fill(Operation.SOLARIZE, thresholds, thresholds)
    table.flags.writeable = False
    return table

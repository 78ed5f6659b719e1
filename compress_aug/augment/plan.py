"""The plan of an augmentation: which operations with which arguments for each image, drawn on the host."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress_aug.augment.draws import Stream, below, draw_words
from compress_aug.augment.operations import (
    LARGEST_MAGNITUDE,
    NEUTRAL_ARGUMENT,
    RANDAUGMENT_OPERATIONS,
    Operation,
    check_magnitude,
    magnitude_arguments,
)
from compress_aug.errors import RecipeError

# One word each, four in a block, and blocks are numbered by a byte.
MOST_OPERATIONS = 1020


@dataclass(frozen=True)
class Plan:
    """What to do to each image of a batch, one operation after the other.

    operations: int64 (N, S), an `Operation` for each image and step; IDENTITY fills up short rows
    arguments:  float64 (N, S), the argument of each (bits, factor, pixels, degrees, ...), nan for none
    places:     int64 (N, S, 2), a row and a column in pixels for those that have a place (CUTOUT, CROP),
                0 for the others; None if no step has one

    A plan is plain numbers on the host, so any policy can write one and any executor can follow it without
    asking the device how large its groups are. Crop and flip are steps like all others.
    """

    operations: NDArray[np.int64]
    arguments: NDArray[np.float64]
    places: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.operations)

    def __getitem__(self, rows: slice) -> "Plan":
        places = None if self.places is None else self.places[rows]
        return Plan(self.operations[rows], self.arguments[rows], places)

    @property
    def steps(self) -> int:
        """How many operations one image may get, S."""
        return int(self.operations.shape[1])

    def all_places(self) -> NDArray[np.int64]:
        """`places`, zeros if there are none."""
        return np.zeros((*self.operations.shape, 2), dtype=np.int64) if self.places is None else self.places

    def then(self, other: "Plan") -> "Plan":
        """This plan, and behind it the other one for the same images."""
        places = None
        if self.places is not None or other.places is not None:
            places = np.concatenate([self.all_places(), other.all_places()], axis=1)
        return Plan(
            np.concatenate([self.operations, other.operations], axis=1),
            np.concatenate([self.arguments, other.arguments], axis=1),
            places,
        )

    def simplified(self, channels: int) -> "Plan":
        """The same plan with IDENTITY for every step that would leave its image as it is."""
        idle = self.arguments == NEUTRAL_ARGUMENT[self.operations]
        # No value is above 255.
        idle |= (self.operations == Operation.SOLARIZE) & (self.arguments > 255)
        if self.places is not None:
            idle |= (self.operations == Operation.CROP) & ~self.places.any(2)
        if channels == 1:
            idle |= self.operations == Operation.COLOR
        return Plan(np.where(idle, Operation.IDENTITY, self.operations), self.arguments, self.places)


def draw_plan(
    index: NDArray[np.int64],
    magnitude: int | NDArray[np.int64],
    *,
    height: int,
    width: int,
    operations: int = 2,
    epoch: int = 0,
    seed: int = 0,
    candidate: int | NDArray[np.int64] = 0,
) -> Plan:
    """RandAugment's draw: operations picked uniformly with replacement, each with an independent direction.

    index:      (N,), position of each image in the data set
    magnitude:  0..30 for all images, or (N,) of them
    operations: how many for each image, 0..1020
    candidate:  which of several augmentations of the same image in the same epoch, 0..65535, or (N,) of them

    The operations and directions of an image do not depend on the magnitude.
    Raises RecipeError if a magnitude is not a whole number in 0..30.

    >>> plan = draw_plan(np.arange(128), 14, height=32, width=32)
    >>> plan.operations.shape
    (128, 2)
    """
    levels = _check_magnitudes(magnitude, len(index))
    blocks = [
        draw_words(index, epoch=epoch, seed=seed, stream=Stream.OPERATIONS, candidate=candidate, block=block)
        for block in range((operations + 3) // 4)
    ]
    words = np.concatenate(blocks)[:operations] if blocks else np.empty((0, len(index)), dtype=np.uint64)
    # One word decides operation and direction together: 28 equally likely outcomes.
    drawn, negative = np.divmod(below(words.T, 2 * len(RANDAUGMENT_OPERATIONS)), 2)
    kinds = np.array(RANDAUGMENT_OPERATIONS)[drawn]
    return Plan(kinds, magnitude_arguments(height, width)[kinds, levels, negative])


def draw_magnitudes(
    index: NDArray[np.int64],
    largest: int,
    *,
    epoch: int = 0,
    seed: int = 0,
    candidate: int | NDArray[np.int64] = 0,
) -> NDArray[np.int64]:
    """A magnitude for each image, uniform in 0..largest, ends included; (N,).

    Raises RecipeError if `largest` is not a whole number in 0..30.

    Source: arXiv 2305.13232, section IV-D, draws a magnitude for each candidate; that it is uniform, and that
    both ends belong to it, is this project's choice.

    >>> bool((draw_magnitudes(np.arange(500), 30) <= 30).all())
    True
    """
    words = draw_words(index, epoch=epoch, seed=seed, stream=Stream.MAGNITUDE, candidate=candidate)
    return below(words[0], check_magnitude(largest) + 1)


def _check_magnitudes(magnitude: int | NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Magnitudes as (N, 1) or (1, 1)."""
    if not isinstance(magnitude, np.ndarray):
        return np.array([[check_magnitude(magnitude)]])
    if magnitude.dtype.kind not in "iu" or magnitude.shape != (count,):
        raise RecipeError(
            f"magnitudes must be one whole number for each of the {count} images, "
            f"but they are {magnitude.dtype} {magnitude.shape}."
        )
    for wrong in magnitude[(magnitude < 0) | (magnitude > LARGEST_MAGNITUDE)]:
        check_magnitude(wrong)
    return magnitude[:, None]

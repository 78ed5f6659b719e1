"""Cutout: a square at a random place is painted over; drawn for each image, done on the whole batch."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.draws import Stream, below, draw_words
from compress_aug.augment.operations import Operation
from compress_aug.augment.plan import Plan
from compress_aug.augment.rows import check_whole, filled, on_device
from compress_aug.errors import RecipeError


def draw_cutout(
    index: NDArray[np.int64],
    side: int,
    *,
    height: int,
    width: int,
    epoch: int = 0,
    seed: int = 0,
    candidate: int | NDArray[np.int64] = 0,
) -> Plan:
    """One square for each image, its centre uniform over the pixels; what sticks out of the image is cut off.

    index: (N,), position of each image in the data set
    side:  pixels, even; the square reaches side / 2 up and left of the centre, and one pixel less down and right

    Raises RecipeError if the side is not an even whole number.

    Source: Cutout (arXiv 1708.04552), with the square of the code of arXiv 1905.05393: its sides are even.

    >>> draw_cutout(np.arange(5), 16, height=32, width=32).arguments[:, 0].tolist()
    [16.0, 16.0, 16.0, 16.0, 16.0]
    """
    check_side(side)
    words = draw_words(index, epoch=epoch, seed=seed, stream=Stream.CUTOUT, candidate=candidate)
    places = np.stack([below(words[0], height), below(words[1], width)], axis=-1)[:, None]
    shape = (len(index), 1)
    return Plan(np.full(shape, int(Operation.CUTOUT)), np.full(shape, float(side)), places)


def check_side(side: object) -> None:
    """Raise RecipeError unless the side of a square can be painted: an even whole number, 0 or more."""
    check_whole("cutout", side)
    if int(side) % 2:  # type: ignore[call-overload]
        raise RecipeError(f"cutout must be an even number of pixels, but it is {side}: a side of 16, say.")


def paint_squares(
    images: Tensor, sides: NDArray[np.float64], places: NDArray[np.int64], fill: tuple[int, ...]
) -> None:
    """Paint one square over each image, in place.

    images: uint8 (N, C, H, W), contiguous
    sides:  (N,), pixels
    places: (N, 2), row and column of the centre
    fill:   one value for each channel
    """
    height, width = images.shape[2:]
    half = (sides.astype(np.int64) // 2)[:, None]
    rows, columns = (
        np.abs(np.arange(size) - places[:, axis, None] + 0.5) < half
        for axis, size in ((0, height), (1, width))
    )
    square = on_device(rows[:, None, :, None] & columns[:, None, None, :], images.device)
    paint = filled((1, images.shape[1], 1, 1), fill, images.device)
    images.copy_(torch.where(square, paint, images))

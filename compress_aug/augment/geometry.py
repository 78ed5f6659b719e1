"""Translate, shear and rotate, nearest or bilinear, the outside filled: bit for bit as Pillow does it."""

import math
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.operations import Operation
from compress_aug.augment.rows import filled, on_device, shift_rows
from compress_aug.errors import RecipeError, nearest

Interpolation = Literal["nearest", "bilinear"]

# An affine map is six numbers a..f: the pixel at (x, y) comes from (a*x + b*y + c, d*x + e*y + f).
Coefficients = tuple[float, float, float, float, float, float]

_ONE = 1 << 16


def check_interpolation(interpolation: str) -> None:
    """Raise RecipeError unless it is one that there is."""
    names = get_args(Interpolation)
    if interpolation not in names:
        raise RecipeError(
            f'there is no interpolation "{interpolation}": {nearest(str(interpolation), names)}'
        )


def affine_coefficients(operation: int, argument: float, height: int, width: int) -> Coefficients:
    """The affine map of a geometric operation, rounded as Pillow rounds it.

    >>> affine_coefficients(Operation.TRANSLATE_X, 3.0, 32, 32)
    (1.0, 0.0, -3.0, 0.0, 1.0, 0.0)
    """
    if operation == Operation.TRANSLATE_X:
        return 1.0, 0.0, -argument, 0.0, 1.0, 0.0
    if operation == Operation.TRANSLATE_Y:
        return 1.0, 0.0, 0.0, 0.0, 1.0, -argument
    if operation == Operation.SHEAR_X:
        return 1.0, argument, 0.0, 0.0, 1.0, 0.0
    if operation == Operation.SHEAR_Y:
        return 1.0, 0.0, 0.0, argument, 1.0, 0.0
    angle = -math.radians(argument % 360.0)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2.0, height / 2.0
    return (
        cosine,
        sine,
        cosine * -x + sine * -y + x,
        -sine,
        cosine,
        -sine * -x + cosine * -y + y,
    )


def _fixed_point(coefficients: Coefficients) -> tuple[int, int, int, int, int, int]:
    """Pillow's 16.16 numbers, moved to the centre of the pixel."""
    a, b, c, d, e, f = coefficients

    def fixed(value: float) -> int:
        return math.floor(value * _ONE + 0.5)

    centre_x, centre_y = c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5
    return fixed(a), fixed(b), fixed(centre_x), fixed(d), fixed(e), fixed(centre_y)


@lru_cache(maxsize=2048)
def _row_source(
    operation: int, argument: float, height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For maps that move whole rows: the row that each row comes from, and the column that it starts at."""
    _, b, c, _, e, f = _fixed_point(affine_coefficients(operation, argument, height, width))
    rows = np.arange(height, dtype=np.int64)
    return (f + e * rows) >> 16, (c + b * rows) >> 16


# 512 maps of 32x32 take 4 MB, of 224x224 200 MB; one magnitude needs four of them.
@lru_cache(maxsize=512)
def _pixel_source(operation: int, argument: float, height: int, width: int, device: torch.device) -> Tensor:
    """For any map: int64 (H*W), the place that each pixel comes from; H*W where that is outside."""
    a, b, c, d, e, f = _fixed_point(affine_coefficients(operation, argument, height, width))
    x, y = np.arange(width, dtype=np.int64), np.arange(height, dtype=np.int64)[:, None]
    source_x, source_y = (c + b * y + a * x) >> 16, (f + e * y + d * x) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    source = np.where(inside, source_y * width + source_x, height * width)
    return torch.from_numpy(source.reshape(-1)).to(device)


def slide(
    images: Tensor, operations: NDArray[np.int64], arguments: NDArray[np.float64], fill: tuple[int, ...]
) -> None:
    """Translate and shear along x, in place: maps that move whole rows of pixels.

    images:     uint8 (N, C, H, W), contiguous
    operations: (N,), TRANSLATE_X, TRANSLATE_Y or SHEAR_X
    arguments:  (N,)
    """
    height, width = images.shape[2:]
    starts, lengths = _runs(operations, arguments)
    sources = [
        _row_source(operation, argument, height, width)
        for operation, argument in zip(operations[starts].tolist(), arguments[starts].tolist(), strict=True)
    ]
    rows = np.repeat([row for row, _ in sources], lengths, axis=0)
    columns = np.repeat([column for _, column in sources], lengths, axis=0)
    images.copy_(shift_rows(images, rows, columns, fill))


def _runs(
    operations: NDArray[np.int64], arguments: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each run of equal operations with equal arguments starts, and how long it is."""
    changes = (operations[1:] != operations[:-1]) | (arguments[1:] != arguments[:-1])
    bounds = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(operations)]])
    return bounds[:-1], np.diff(bounds)


def warp_nearest(
    images: Tensor, operations: NDArray[np.int64], arguments: NDArray[np.float64], fill: tuple[int, ...]
) -> None:
    """Shear along y and rotate, in place, by one gather for each group of images with the same map.

    images:     uint8 (N, C, H, W), contiguous
    operations: (N,), any geometric operation; equal ones with equal arguments should stand together
    arguments:  (N,)
    """
    count, channels, height, width = images.shape
    pixels = height * width
    # One more pixel behind each channel holds the fill value, so the gather itself fills the outside.
    source = filled((count, channels, pixels + 1), fill, images.device)
    source[:, :, :pixels] = images.view(count, channels, pixels)
    target = images.view(count, channels, pixels)
    for start, length in zip(*(part.tolist() for part in _runs(operations, arguments)), strict=True):
        stop = start + length
        place = _pixel_source(int(operations[start]), float(arguments[start]), height, width, images.device)
        group = place.expand(length, channels, pixels)
        torch.gather(source[start:stop], 2, group, out=target[start:stop])


@lru_cache(maxsize=128)
def _corners(
    operation: int, argument: float, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where each pixel lies between four others.

    Returns int64 (4, H*W), the places of the corners (upper left, upper right, lower left, lower right), float64
    (H*W,) how far it is from the left and (H*W,) from the upper ones, and bool (H*W,) whether it lies inside.
    """
    a, b, c, d, e, f = affine_coefficients(operation, argument, height, width)
    x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    source_x, source_y = a * x + b * y + c, d * x + e * y + f
    inside = (source_x >= 0.0) & (source_x < width) & (source_y >= 0.0) & (source_y < height)
    # Outside, any place will do: those pixels are filled.
    source_x, source_y = np.where(inside, source_x, 0.5) - 0.5, np.where(inside, source_y, 0.5) - 0.5
    left, upper = np.floor(source_x), np.floor(source_y)
    columns = [np.clip(left + n, 0, width - 1).astype(np.int64) for n in (0, 1)]
    rows = [np.clip(upper + n, 0, height - 1).astype(np.int64) for n in (0, 1)]
    places = np.stack([(row * width + column).reshape(-1) for row in rows for column in columns])
    parts = (places, (source_x - left).reshape(-1), (source_y - upper).reshape(-1), inside.reshape(-1))
    return tuple(on_device(part, device) for part in parts)  # type: ignore[return-value]


def warp_bilinear(
    images: Tensor, operations: NDArray[np.int64], arguments: NDArray[np.float64], fill: tuple[int, ...]
) -> None:
    """Shear and rotate, in place, each pixel mixed from the four round the place that it comes from.

    images:     uint8 (N, C, H, W), contiguous
    operations: (N,), any geometric operation; equal ones with equal arguments should stand together
    arguments:  (N,)
    """
    count, channels, height, width = images.shape
    flat = images.view(count, channels, height * width)
    outside = torch.tensor(fill, dtype=torch.float64).to(images.device, non_blocking=True)[:, None]
    for start, length in zip(*(part.tolist() for part in _runs(operations, arguments)), strict=True):
        key = (int(operations[start]), float(arguments[start]), height, width, images.device)
        places, right, down, inside = _corners(*key)
        group = flat[start : start + length]
        # In doubles, one rounding after the other, as in Pillow: what is cut off at the end shows each of them.
        values = group.index_select(2, places.view(-1)).double().view(length, channels, 4, -1)
        upper, lower = (values[:, :, n] + (values[:, :, n + 1] - values[:, :, n]) * right for n in (0, 2))
        mixed = upper + (lower - upper) * down
        group.copy_(torch.where(inside, mixed, outside).to(torch.uint8))

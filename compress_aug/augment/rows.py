"""Moving whole images and whole rows of pixels: the cheap moves that the other files are built from."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.errors import DataError, RecipeError

Fill = int | Sequence[int]


def check_images(images: Tensor) -> None:
    """Raise DataError unless the images are uint8 (N, C, H, W) with one or three channels."""
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(
            f"augmentation works on raw images, uint8 (N, C, H, W) in 0..255, but these are {kind} {shape}: "
            "normalise after it, not before."
        )
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape[2:]:
        last = len(shape) == 4 and shape[3] in (1, 3)
        hint = ": bring the channels forward with images.permute(0, 3, 1, 2)" if last else ""
        raise DataError(
            f"augmentation needs images (N, C, H, W) with 1 or 3 channels, but their shape is {shape}{hint}."
        )


def check_whole(name: str, value: object) -> None:
    """Raise RecipeError unless the value is a whole number, 0 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RecipeError(f"{name} must be a whole number, 0 or more, but it is {value!r}.")


def check_flag(name: str, value: object) -> None:
    """Raise RecipeError unless the value is true or false."""
    if not isinstance(value, bool):
        raise RecipeError(f"{name} must be True or False, but it is {value!r}.")


def channel_fill(fill: Fill, channels: int) -> tuple[int, ...]:
    """One fill value for each channel.

    Raises RecipeError if a value is not in 0..255, or if their number is not that of the channels.

    >>> channel_fill(7, 3)
    (7, 7, 7)
    """
    values = tuple(fill) if isinstance(fill, Sequence) else (fill,) * channels
    whole = all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255 for value in values
    )
    if not whole or len(values) != channels:
        several = (
            f", or {channels} of them, one for each channel" if channels > 1 else " for images of one channel"
        )
        raise RecipeError(f"fill must be a whole number in 0..255{several}, but it is {fill!r}.")
    return values


def filled(shape: tuple[int, ...], fill: tuple[int, ...], device: torch.device) -> Tensor:
    """A uint8 tensor (N, C, ...) that holds the fill value of each channel."""
    if len(set(fill)) == 1:
        return torch.full(shape, fill[0], dtype=torch.uint8, device=device)
    empty = torch.empty(shape, dtype=torch.uint8, device=device)
    for channel, value in enumerate(fill):
        empty[:, channel] = value
    return empty


def on_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A host array as a tensor there. The copy does not wait for work that the device has yet to do."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def _lanes(images: Tensor) -> Tensor:
    """Contiguous images as (N, L) of the widest integers that fit: 8 bytes move as fast as one."""
    rows = images.view(len(images), math.prod(images.shape[1:]))
    for dtype in (torch.int64, torch.int32, torch.int16):
        if rows.shape[1] % dtype.itemsize == 0 and rows.storage_offset() % dtype.itemsize == 0:
            return rows.view(dtype)
    return rows


def take_images(images: Tensor, order: Tensor) -> Tensor:
    """images[order] for contiguous images."""
    taken = _lanes(images).index_select(0, order)
    return taken.view(torch.uint8).view(len(order), *images.shape[1:])


def put_images(images: Tensor, order: Tensor, values: Tensor) -> None:
    """images[order] = values for contiguous images and values of the same storage alignment."""
    target, source = _lanes(images), _lanes(values)
    if source.dtype != target.dtype:
        target, source = target.view(torch.uint8), source.view(torch.uint8)
    target.index_copy_(0, order, source)


def shift_rows(
    images: Tensor, source_row: NDArray[np.int64], source_column: NDArray[np.int64], fill: tuple[int, ...]
) -> Tensor:
    """Every row of pixels taken from another row, and from further left or right.

    images:        uint8 (N, C, H, W), contiguous
    source_row:    (N, H), the row that row y is taken from; the fill value if it is outside 0..H-1
    source_column: (N, H) or (N, 1), the column that its first pixel is taken from; the fill value for
                   pixels that come from outside 0..W-1
    fill:          one value for each channel

    Returns a new uint8 (N, C, H, W).
    """
    count, channels, height, width = images.shape
    if count == 0:
        return images.clone()
    source_row = np.where((source_row < 0) | (source_row >= height), height, source_row)
    source_column = np.clip(source_column, -width, width)
    margin = int(np.abs(source_column).max(initial=0))
    # Each channel gets a margin on both sides and one row of fill below, which all outside rows share. Then
    # every row of the result is one window of consecutive bytes, and is copied as such.
    framed_width = width + 2 * margin
    framed = filled((count, channels, height + 1, framed_width), fill, images.device)
    framed[:, :, :height, margin : margin + width] = images
    offsets = on_device(source_row * framed_width + (source_column + margin), images.device)
    bases = torch.arange(count * channels, device=images.device) * ((height + 1) * framed_width)
    starts = bases.view(count, channels, 1) + offsets.view(count, 1, height)
    windows = framed.as_strided((framed.numel() - width + 1, width), (1, 1))
    return windows.index_select(0, starts.view(-1)).view(images.shape)

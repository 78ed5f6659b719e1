"""Random crop with zero padding and random horizontal flip: drawn for each image, done on the whole batch."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.draws import Stream, below, draw_words
from compress_aug.augment.rows import (
    channel_fill,
    check_images,
    check_whole,
    on_device,
    put_images,
    shift_rows,
    take_images,
)
from compress_aug.errors import DataError


def crop_and_flip(
    images: Tensor,
    index: NDArray[np.int64],
    *,
    padding: int = 4,
    flip: bool = True,
    epoch: int = 0,
    seed: int = 0,
    candidate: int = 0,
) -> Tensor:
    """Pad every side with zeros, cut out a window of the old size at random, flip half of the images.

    images:    uint8 (N, C, H, W), one or three channels
    index:     (N,), position of each image in the data set: the draw belongs to it, not to the batch
    padding:   pixels, 0 for no crop; the window moves by 0..2*padding in both directions, ends included
    flip:      whether to flip left and right with probability 1/2
    candidate: which of several augmentations of the same image in the same epoch, 0..65535

    Returns a new uint8 (N, C, H, W).
    Raises DataError if the images are not of that kind, RecipeError if the padding is not a whole number.

    >>> import torch
    >>> crop_and_flip(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), np.arange(2)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(images)
    check_whole("padding", padding)
    if len(index) != len(images):
        raise DataError(f"there are {len(images)} images, but {len(index)} positions in the index.")
    down, right, flipped = draw_crops(index, padding=padding, epoch=epoch, seed=seed, candidate=candidate)
    images = crop(images, down, right, padding=padding)
    if flip:
        flip_in_place(images, flipped)
    return images


def draw_crops(
    index: NDArray[np.int64], *, padding: int, epoch: int, seed: int, candidate: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Where each image is cropped, and whether it is flipped.

    Returns offsets down and right, (N,) each, uniform in 0..2*padding, and (N,) whether to flip.

    >>> down, right, flipped = draw_crops(np.arange(4), padding=4, epoch=0, seed=0)
    >>> bool((down <= 8).all())
    True
    """
    words = draw_words(index, epoch=epoch, seed=seed, stream=Stream.CROP_FLIP, candidate=candidate)
    return below(words[0], 2 * padding + 1), below(words[1], 2 * padding + 1), below(words[2], 2) == 1


def crop(images: Tensor, down: NDArray[np.int64], right: NDArray[np.int64], *, padding: int) -> Tensor:
    """Windows of the old size out of images that were padded with zeros.

    down, right: (N,), offset of each window in the padded image, 0..2*padding
    padding:     pixels on every side

    Returns a new uint8 (N, C, H, W).
    """
    rows = (down - padding)[:, None] + np.arange(images.shape[2])
    return shift_rows(images.contiguous(), rows, (right - padding)[:, None], channel_fill(0, images.shape[1]))


def flip_in_place(images: Tensor, flipped: NDArray[np.bool_]) -> None:
    """Exchange left and right in those of the contiguous images where `flipped`, (N,), says so."""
    chosen = on_device(np.flatnonzero(flipped), images.device)
    put_images(images, chosen, take_images(images, chosen).flip(3))

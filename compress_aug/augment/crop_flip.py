"""Random crop with padding and random horizontal flip, drawn for each image."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.draws import Stream, below, draw_words
from compress_aug.augment.operations import Operation
from compress_aug.augment.plan import Plan
from compress_aug.augment.rows import check_whole, on_device, put_images, take_images


def draw_crop_flip(
    index: NDArray[np.int64],
    *,
    padding: int = 4,
    flip: bool = True,
    epoch: int = 0,
    seed: int = 0,
    candidate: int | NDArray[np.int64] = 0,
) -> Plan:
    """A window of the old size out of the image padded on every side, then half of the images mirrored.

    index:     (N,), position of each image in the data set: the draw belongs to it, not to the batch
    padding:   pixels, 0 for no crop; the window moves by 0..2*padding in both directions, ends included
    flip:      whether to flip left and right with probability 1/2
    candidate: which of several augmentations of the same image in the same epoch, 0..65535, or (N,) of them

    Raises RecipeError if the padding is not a whole number.

    >>> draw_crop_flip(np.arange(7), padding=4).operations.shape
    (7, 2)
    """
    check_whole("padding", padding)
    words = draw_words(index, epoch=epoch, seed=seed, stream=Stream.CROP_FLIP, candidate=candidate)
    moves = np.stack([below(word, 2 * padding + 1) - padding for word in words[:2]], axis=-1)
    steps = []
    if padding:
        steps.append((np.full(len(index), int(Operation.CROP)), moves))
    if flip:
        mirrored = np.where(below(words[2], 2) == 1, Operation.FLIP, Operation.IDENTITY)
        steps.append((mirrored, np.zeros_like(moves)))
    shape = (len(index), len(steps))
    operations = np.stack([kind for kind, _ in steps], axis=1) if steps else np.zeros(shape, dtype=np.int64)
    places = (
        np.stack([place for _, place in steps], axis=1) if steps else np.zeros((*shape, 2), dtype=np.int64)
    )
    return Plan(operations.astype(np.int64), np.full(shape, np.nan), places)


def flip_in_place(images: Tensor, flipped: NDArray[np.bool_]) -> None:
    """Exchange left and right in those of the contiguous images where `flipped`, (N,), says so."""
    chosen = on_device(np.flatnonzero(flipped), images.device)
    put_images(images, chosen, take_images(images, chosen).flip(3))

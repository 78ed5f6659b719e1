"""RandAugment on batches of raw images, with crop and flip: what a training loop calls."""

from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.executor import Executor
from compress_aug.augment.operations import check_magnitude
from compress_aug.augment.pipeline import Augmentation, Candidate, Settings
from compress_aug.augment.plan import MOST_OPERATIONS, Plan, draw_magnitudes, draw_plan
from compress_aug.augment.rows import Fill, check_flag, check_images, check_whole
from compress_aug.batch import Batch
from compress_aug.errors import RecipeError


class RandAugment(Augmentation):
    """Random operations at one magnitude, then a random crop and a random flip; drawn for each image.

    operations:       how many operations for each image, drawn uniformly with replacement, 0..1020; 2 by default
    random_magnitude: draw a magnitude for each image, uniform in 0..magnitude, instead of one for all
    others:           crop_padding, flip, cutout, fill, interpolation, executor: see `Augmentation`

    Call it with (batch, magnitude, epoch, seed):
    magnitude: 0..30, or None to do crop and flip only. 0 is not None: Equalize and AutoContrast have no
               magnitude and keep their full effect.

    The same image, epoch and seed give the same result in any batch, on any device, after any resume.
    Raises RecipeError for a magnitude outside 0..30 and DataError for images that are not raw.

    >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> batch = Batch(images, targets=torch.tensor([0, 1]), index=torch.tensor([5, 9]))
    >>> RandAugment()(batch, magnitude=14, epoch=0, seed=0).images.shape
    torch.Size([2, 3, 32, 32])

    Source: RandAugment (arXiv 1909.13719); one global magnitude in 0..30 and two operations as in
    arXiv 2305.13232. The set of operations (torchvision's 14), black fill, nearest neighbours and the order
    (operations, crop, flip) are this project's choice, because that paper does not say.
    """

    def __init__(
        self,
        *,
        operations: int = 2,
        random_magnitude: bool = False,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        check_whole("operations", operations)
        if operations > MOST_OPERATIONS:
            raise RecipeError(f"operations must be in 0..{MOST_OPERATIONS}, but it is {operations}.")
        check_flag("random_magnitude", random_magnitude)
        self.operations = operations
        self.random_magnitude = random_magnitude

    def draw_operations(
        self,
        index: NDArray[np.int64],
        magnitude: int | None,
        *,
        height: int,
        width: int,
        epoch: int,
        seed: int,
        candidate: Candidate = 0,
    ) -> Plan | None:
        """Operations and directions of each image, see `draw_plan`; None without a magnitude."""
        if magnitude is None:
            return None
        levels: int | NDArray[np.int64] = check_magnitude(magnitude)
        if self.random_magnitude:
            levels = draw_magnitudes(index, magnitude, epoch=epoch, seed=seed, candidate=candidate)
        return draw_plan(
            index,
            levels,
            height=height,
            width=width,
            operations=self.operations,
            epoch=epoch,
            seed=seed,
            candidate=candidate,
        )


def augment_images(
    images: Tensor,
    magnitude: int,
    *,
    index: Tensor | None = None,
    epoch: int = 0,
    seed: int = 0,
    executor: Executor = "auto",
) -> Tensor:
    """RandAugment with two operations, without crop and flip, on plain tensors.

    images:    uint8 (N, C, H, W), one or three channels
    magnitude: 0..30
    index:     int64 (N,), position of each image in the data set; 0..N-1 if it is not given
    epoch:     another number, another draw
    seed:      the same
    executor:  see `apply_plan`

    Returns a new uint8 (N, C, H, W). Raises as `RandAugment`.

    >>> augment_images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), 14).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(images)
    place = torch.arange(len(images)) if index is None else index
    batch = Batch(images, place, place)
    only_operations = RandAugment(crop_padding=0, flip=False, executor=executor)
    return only_operations(batch, check_magnitude(magnitude), epoch, seed).images


def crop_and_flip(
    images: Tensor,
    index: NDArray[np.int64],
    *,
    padding: int = 4,
    flip: bool = True,
    fill: Fill = 0,
    epoch: int = 0,
    seed: int = 0,
) -> Tensor:
    """Pad every side, cut out a window of the old size at random, flip half of the images: `RandAugment` without M.

    images: uint8 (N, C, H, W), one or three channels
    index:  (N,), position of each image in the data set: the draw belongs to it, not to the batch
    others: see `draw_crop_flip` and `Augmentation`

    Returns a new uint8 (N, C, H, W).
    Raises DataError if the images are not of that kind, RecipeError if the padding is not a whole number.

    >>> crop_and_flip(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), np.arange(2)).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(images)
    place = torch.from_numpy(np.asarray(index, dtype=np.int64))
    augment = RandAugment(crop_padding=padding, flip=flip, fill=fill)
    return augment(Batch(images, place, place), None, epoch, seed).images

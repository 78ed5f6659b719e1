"""RandAugment on batches of raw images, with crop and flip: what a training loop calls."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.crop_flip import crop_and_flip
from compress_aug.augment.executor import apply_plan
from compress_aug.augment.operations import check_magnitude
from compress_aug.augment.plan import draw_plan
from compress_aug.augment.rows import Fill, channel_fill, check_images, check_whole
from compress_aug.batch import Batch
from compress_aug.errors import DataError


class RandAugment:
    """Random operations at one magnitude, then a random crop and a random flip; drawn for each image.

    operations:   how many operations for each image, drawn uniformly with replacement, 0 or more
    crop_padding: pixels of zeros round the image before it is cropped to its old size; 0 for no crop
    flip:         whether half of the images are flipped left to right
    fill:         value, 0..255, that shear, translate and rotate bring in, or one for each channel

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
        self, *, operations: int = 2, crop_padding: int = 4, flip: bool = True, fill: Fill = 0
    ) -> None:
        check_whole("operations", operations)
        check_whole("crop_padding", crop_padding)
        channel_fill(fill, 1 if isinstance(fill, int) else 3)
        self.operations = operations
        self.crop_padding = crop_padding
        self.flip = flip
        self.fill = fill

    def __call__(self, batch: Batch, magnitude: int | None, epoch: int, seed: int) -> Batch:
        """The batch with new images; targets and index stay. See the class."""
        if magnitude is not None:
            check_magnitude(magnitude)
        images = batch.images
        check_images(images)
        index = _host_index(batch.index, len(images))
        if magnitude is not None:
            height, width = images.shape[2:]
            plan = draw_plan(
                index,
                magnitude,
                height=height,
                width=width,
                operations=self.operations,
                epoch=epoch,
                seed=seed,
            )
            images = apply_plan(images, plan, fill=self.fill)
        if self.crop_padding or self.flip:
            images = crop_and_flip(
                images, index, padding=self.crop_padding, flip=self.flip, epoch=epoch, seed=seed
            )
        return replace(batch, images=images)


def augment_images(
    images: Tensor, magnitude: int, *, index: Tensor | None = None, epoch: int = 0, seed: int = 0
) -> Tensor:
    """RandAugment with two operations, without crop and flip, on plain tensors.

    images:    uint8 (N, C, H, W), one or three channels
    magnitude: 0..30
    index:     int64 (N,), position of each image in the data set; 0..N-1 if it is not given
    epoch:     another number, another draw
    seed:      the same

    Returns a new uint8 (N, C, H, W). Raises as `RandAugment`.

    >>> augment_images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), 14).shape
    torch.Size([2, 3, 32, 32])
    """
    check_images(images)
    place = torch.arange(len(images)) if index is None else index
    batch = Batch(images, place, place)
    only_operations = RandAugment(crop_padding=0, flip=False)
    return only_operations(batch, check_magnitude(magnitude), epoch, seed).images


def _host_index(index: Tensor, count: int) -> NDArray[np.int64]:
    if index.dtype != torch.int64 or index.shape != (count,):
        kind = str(index.dtype).removeprefix("torch.")
        raise DataError(
            f"the index of the batch must be int64 ({count},), one position for each image, "
            f"but it is {kind} {tuple(index.shape)}."
        )
    host: NDArray[np.int64] = index.cpu().numpy()
    return host

"""What every augmentation of raw images does: draw a plan (operations, crop, flip, cutout), and carry it out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.crop_flip import draw_crop_flip
from compress_aug.augment.cutout import check_side, draw_cutout
from compress_aug.augment.executor import Executor, apply_plan, check_executor
from compress_aug.augment.geometry import Interpolation, check_interpolation
from compress_aug.augment.plan import Plan
from compress_aug.augment.rows import Fill, channel_fill, check_flag, check_images, check_whole
from compress_aug.batch import Batch
from compress_aug.errors import DataError

Candidate = int | NDArray[np.int64]


class Settings(TypedDict, total=False):
    """What every augmentation may be given; see `Augmentation`."""

    crop_padding: int
    flip: bool
    cutout: int
    fill: Fill
    interpolation: Interpolation
    executor: Executor


class Augmentation(ABC):
    """Operations of some policy, then a random crop, a random flip and a cut-out square; drawn for each image.

    crop_padding:  pixels round the image before it is cropped to its old size; 4 by default, 0 for no crop
    flip:          whether half of the images are flipped left to right; they are by default
    cutout:        side in pixels, even, of a square that is painted over at the end; 0, the default, for none
    fill:          value, 0..255, for all that comes in from outside and is painted over, or one for each channel;
                   0 by default
    interpolation: of shear and rotate, nearest (the default) or bilinear
    executor:      see `apply_plan`; all give the same bytes

    Call it with (batch, magnitude, epoch, seed). The same image, epoch and seed give the same result in any
    batch, on any device, by any executor, after any resume.

    A policy of one's own derives from this and writes `draw_operations`.
    """

    def __init__(self, **settings: Unpack[Settings]) -> None:
        unknown = sorted(settings.keys() - Settings.__annotations__.keys())
        if unknown:
            raise TypeError(f"{type(self).__name__} has no argument {unknown[0]!r}")
        self.crop_padding = settings.get("crop_padding", 4)
        self.flip = settings.get("flip", True)
        self.cutout = settings.get("cutout", 0)
        self.fill = settings.get("fill", 0)
        self.interpolation = settings.get("interpolation", "nearest")
        self.executor = settings.get("executor", "auto")
        check_whole("crop_padding", self.crop_padding)
        check_flag("flip", self.flip)
        check_side(self.cutout)
        channel_fill(self.fill, 3 if isinstance(self.fill, Sequence) and len(self.fill) != 1 else 1)
        check_interpolation(self.interpolation)
        check_executor(self.executor)

    @abstractmethod
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
        """The policy's own part of the plan, or None for no operations at all.

        index:         (N,), position of each image in the data set
        height, width: of the images, in pixels
        candidate:     which of several augmentations of the same image in the same epoch, or (N,) of them
        """

    def draw(
        self,
        index: NDArray[np.int64],
        magnitude: int | None,
        *,
        height: int,
        width: int,
        epoch: int = 0,
        seed: int = 0,
        candidate: Candidate = 0,
    ) -> Plan:
        """All that happens to these images: operations, crop, flip, cutout. Arguments as for `draw_operations`."""
        size, key = {"height": height, "width": width}, {"epoch": epoch, "seed": seed, "candidate": candidate}
        moves = draw_crop_flip(index, padding=self.crop_padding, flip=self.flip, **key)  # type: ignore[arg-type]
        operations = self.draw_operations(index, magnitude, **size, **key)  # type: ignore[arg-type]
        plan = moves if operations is None else operations.then(moves)
        if self.cutout:
            plan = plan.then(draw_cutout(index, self.cutout, **size, **key))  # type: ignore[arg-type]
        return plan

    def __call__(
        self, batch: Batch, magnitude: int | None, epoch: int, seed: int, candidate: Candidate = 0
    ) -> Batch:
        """The batch with new images; targets and index stay. See the class."""
        if not isinstance(batch, Batch):
            raise DataError(
                f"an augmentation takes a Batch(images, targets, index), but this is a {type(batch).__name__}: for "
                "plain images there is AugmentTransform."
            )
        check_images(batch.images)
        height, width = batch.images.shape[2:]
        index = host_index(batch.index, len(batch.images))
        plan = self.draw(
            index, magnitude, height=height, width=width, epoch=epoch, seed=seed, candidate=candidate
        )
        return replace(batch, images=self.apply(batch.images, plan))

    def apply(self, images: Tensor, plan: Plan) -> Tensor:
        """Carry out a plan on uint8 (N, C, H, W) with the settings of this augmentation."""
        return apply_plan(
            images, plan, fill=self.fill, interpolation=self.interpolation, executor=self.executor
        )


def host_index(index: Tensor, count: int) -> NDArray[np.int64]:
    """The positions of `count` images as numpy (N,). Raises DataError unless they are int64 (N,)."""
    if index.dtype != torch.int64 or index.shape != (count,):
        kind = str(index.dtype).removeprefix("torch.")
        raise DataError(
            f"the index of the batch must be int64 ({count},), one position for each image, "
            f"but it is {kind} {tuple(index.shape)}."
        )
    host: NDArray[np.int64] = index.cpu().numpy()
    return host

"""The executor: follows a plan on a batch of images, grouped by operation, in plain torch on any device."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.colour import blend, posterize, solarize, spread
from compress_aug.augment.geometry import slide, warp_nearest
from compress_aug.augment.operations import Operation
from compress_aug.augment.plan import Plan
from compress_aug.augment.rows import Fill, channel_fill, check_images, on_device, take_images
from compress_aug.errors import DataError

# On a CPU the batch is done in pieces of this many bytes, so that what is computed stays in its cache;
# smaller pieces lose more to the number of calls than they gain (1 365 images of 32x32, 27 of 224x224).
_PIECE_BYTES = 1 << 22


def apply_plan(images: Tensor, plan: Plan, *, fill: Fill = 0) -> Tensor:
    """Do to each image what the plan says.

    images: uint8 (N, C, H, W), one or three channels, any memory format, CPU or GPU
    plan:   N rows
    fill:   value, 0..255, for what geometric operations bring in from outside, or one for each channel

    Returns a new contiguous uint8 (N, C, H, W). Every operation gives the same bytes as torchvision's
    RandAugment on Pillow images with nearest-neighbour interpolation.
    Raises DataError if images, plan and fill do not fit.

    >>> images = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    >>> plan = Plan(np.array([[Operation.POSTERIZE]]), np.array([[1.0]]))
    >>> int(apply_plan(images, plan)[0, 0, 0, 0])
    128
    """
    check_images(images)
    if len(images) != len(plan):
        raise DataError(f"the plan is for {len(plan)} images, but there are {len(images)}.")
    values = channel_fill(fill, images.shape[1])
    plan = plan.simplified(images.shape[1])
    images = images.contiguous()
    piece = max(1, _PIECE_BYTES // math.prod(images.shape[1:]))
    if len(images) <= piece or images.device.type != "cpu":
        return _apply(images, plan, values)
    starts = range(0, len(images), piece)
    return torch.cat([_apply(images[a : a + piece], plan[a : a + piece], values) for a in starts])


def _apply(images: Tensor, plan: Plan, fill: tuple[int, ...]) -> Tensor:
    # The images stay in the order of the last step; `holds` says which image stands where.
    holds = np.arange(len(images))
    for step in range(plan.operations.shape[1]):
        operations, arguments = plan.operations[holds, step], plan.arguments[holds, step]
        order = np.lexsort((arguments, operations))
        images = take_images(images, on_device(order, images.device))
        holds = holds[order]
        _apply_sorted(images, operations[order], arguments[order], fill)
    return take_images(images, on_device(np.argsort(holds), images.device))


def _apply_sorted(
    images: Tensor, operations: NDArray[np.int64], arguments: NDArray[np.float64], fill: tuple[int, ...]
) -> None:
    counts = np.bincount(operations, minlength=len(Operation))
    ends = np.cumsum(counts).tolist()

    def span(first: Operation, last: Operation) -> slice:
        return slice(ends[first - 1], ends[last])

    def present(rows: slice) -> bool:
        return bool(rows.start < rows.stop)

    if present(rows := span(Operation.POSTERIZE, Operation.POSTERIZE)):
        posterize(images[rows], arguments[rows])
    if present(rows := span(Operation.SOLARIZE, Operation.SOLARIZE)):
        solarize(images[rows], arguments[rows])
    if present(rows := span(Operation.EQUALIZE, Operation.AUTO_CONTRAST)):
        spread(images[rows], int(counts[Operation.EQUALIZE]))
    if present(rows := span(Operation.BRIGHTNESS, Operation.SHARPNESS)):
        blend(images[rows], arguments[rows], counts[Operation.BRIGHTNESS : Operation.SHARPNESS + 1].tolist())
    if present(rows := span(Operation.TRANSLATE_X, Operation.SHEAR_X)):
        slide(images[rows], operations[rows], arguments[rows], fill)
    if present(rows := span(Operation.SHEAR_Y, Operation.ROTATE)):
        warp_nearest(images[rows], operations[rows], arguments[rows], fill)

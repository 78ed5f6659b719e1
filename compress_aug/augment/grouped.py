"""The executor for any device: follows a plan on a whole batch, grouped by operation, in plain torch."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.colour import blend, posterize, solarize, spread
from compress_aug.augment.crop_flip import flip_in_place
from compress_aug.augment.cutout import paint_squares
from compress_aug.augment.geometry import Interpolation, slide, warp_bilinear, warp_nearest
from compress_aug.augment.operations import Operation
from compress_aug.augment.plan import Plan
from compress_aug.augment.rows import on_device, shift_rows, take_images

# On a CPU the batch is done in pieces of this many bytes, so that what is computed stays in its cache;
# smaller pieces lose more to the number of calls than they gain (1 365 images of 32x32, 27 of 224x224).
_PIECE_BYTES = 1 << 22


def apply_grouped(
    images: Tensor, plan: Plan, fill: tuple[int, ...], interpolation: Interpolation = "nearest"
) -> Tensor:
    """`apply_plan` for any device. fill: one value for each channel.

    Returns a new contiguous uint8 (N, C, H, W), also where the plan does nothing.
    """
    images = images.contiguous()
    piece = max(1, _PIECE_BYTES // math.prod(images.shape[1:]))
    if len(images) <= piece or not images.is_cpu:
        return _apply(images, plan, fill, interpolation)
    starts = range(0, len(images), piece)
    pieces = [_apply(images[a : a + piece], plan[a : a + piece], fill, interpolation) for a in starts]
    return torch.cat(pieces)


def _apply(images: Tensor, plan: Plan, fill: tuple[int, ...], interpolation: Interpolation) -> Tensor:
    # The images stay in the order of the last step; `holds` says which image stands where.
    holds, ours, places = np.arange(len(images)), False, plan.all_places()
    for step in range(plan.steps):
        operations = plan.operations[holds, step]
        present = np.flatnonzero(np.bincount(operations, minlength=2)[1:]) + 1
        if len(present) == 0:
            continue
        if (present == Operation.CROP).all():
            # All move, each its own way: no groups to be made.
            images, ours = _cropped(images, places[holds, step], fill), True
        elif (present == Operation.FLIP).all():
            images, ours = images if ours else images.clone(), True
            flip_in_place(images, operations == Operation.FLIP)
        else:
            order = np.lexsort((plan.arguments[holds, step], operations))
            images, ours = take_images(images, on_device(order, images.device)), True
            holds = holds[order]
            arguments = plan.arguments[holds, step]
            _apply_sorted(images, operations[order], arguments, places[holds, step], fill, interpolation)
    if (holds[1:] < holds[:-1]).any():
        return take_images(images, on_device(np.argsort(holds), images.device))
    return images if ours else images.clone()


def _cropped(images: Tensor, places: NDArray[np.int64], fill: tuple[int, ...]) -> Tensor:
    rows = places[:, :1] + np.arange(images.shape[2])
    return shift_rows(images, rows, places[:, 1:], fill)


def _apply_sorted(
    images: Tensor,
    operations: NDArray[np.int64],
    arguments: NDArray[np.float64],
    places: NDArray[np.int64],
    fill: tuple[int, ...],
    interpolation: Interpolation,
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
    warp = warp_nearest if interpolation == "nearest" else warp_bilinear
    whole_rows = Operation.SHEAR_X if interpolation == "nearest" else Operation.TRANSLATE_Y
    if present(rows := span(Operation.TRANSLATE_X, whole_rows)):
        slide(images[rows], operations[rows], arguments[rows], fill)
    if present(rows := span(Operation(whole_rows + 1), Operation.ROTATE)):
        warp(images[rows], operations[rows], arguments[rows], fill)
    if present(rows := span(Operation.CUTOUT, Operation.CUTOUT)):
        paint_squares(images[rows], arguments[rows], places[rows], fill)
    if present(rows := span(Operation.CROP, Operation.CROP)):
        images[rows] = _cropped(images[rows], places[rows], fill)
    if present(rows := span(Operation.FLIP, Operation.FLIP)):
        images[rows] = images[rows].flip(3)

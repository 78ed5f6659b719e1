"""apply_plan: does to a batch of images what a plan says, by one of several executors that give the same bytes."""

from typing import Literal

from torch import Tensor

from compress_aug.augment import compiled, grouped, pillow
from compress_aug.augment.geometry import Interpolation, check_interpolation
from compress_aug.augment.plan import Plan
from compress_aug.augment.rows import Fill, channel_fill, check_images
from compress_aug.errors import DataError, RecipeError, nearest
from compress_aug.native import kernels

Executor = Literal["auto", "compiled", "torch", "pillow"]

EXECUTORS = ("auto", "compiled", "torch", "pillow")


def check_executor(executor: str) -> None:
    """Raise RecipeError unless there is an executor of that name, and it can work here."""
    if executor not in EXECUTORS:
        raise RecipeError(f'there is no executor "{executor}": {nearest(executor, EXECUTORS)}')
    if executor == "compiled" and kernels() is None:
        raise RecipeError(
            "the compiled executor is not part of this installation (no C compiler was found when it was "
            "installed, or COMPRESS_AUG_NATIVE=0 is set): install again with one, or use executor auto."
        )


def apply_plan(
    images: Tensor,
    plan: Plan,
    *,
    fill: Fill = 0,
    interpolation: Interpolation = "nearest",
    executor: Executor = "auto",
) -> Tensor:
    """Do to each image what the plan says.

    images:        uint8 (N, C, H, W), one or three channels, any memory format, CPU or GPU
    plan:          N rows
    fill:          value, 0..255, for what comes in from outside and for what is painted over, or one for
                   each channel
    interpolation: of shear and rotate; all others move whole pixels
    executor:      torch works on any device, in groups of the same operation; compiled is a few times as fast on a
                   CPU; pillow does image after image and is what the others are compared with. auto: compiled
                   for images on a CPU where it was built, else torch. All give the same bytes, for
                   arguments within the ranges that `Operation` states.

    Returns a new contiguous uint8 (N, C, H, W) on the same device. Every operation gives the same bytes as
    torchvision's RandAugment on Pillow images.
    Raises DataError if images and plan do not fit, RecipeError for a fill, interpolation or executor that is none.

    >>> import numpy as np, torch
    >>> from compress_aug.augment import Operation
    >>> images = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
    >>> plan = Plan(np.array([[Operation.POSTERIZE]]), np.array([[1.0]]))
    >>> int(apply_plan(images, plan)[0, 0, 0, 0])
    128
    """
    check_images(images)
    check_interpolation(interpolation)
    check_executor(executor)
    if len(images) != len(plan):
        raise DataError(f"the plan is for {len(plan)} images, but there are {len(images)}.")
    values = channel_fill(fill, images.shape[1])
    if executor == "pillow":
        return pillow.apply_pillow(images, plan, values, interpolation)
    plan = plan.simplified(images.shape[1])
    if executor == "auto":
        executor = "compiled" if compiled.can_take(images) else "torch"
    if executor == "torch":
        return grouped.apply_grouped(images, plan, values, interpolation)
    return compiled.apply_compiled(images, plan, values, interpolation == "bilinear")

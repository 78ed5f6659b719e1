"""The plain executor: image after image, operation after operation, by Pillow's own calls. The others must equal it."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from compress_aug.augment.geometry import Interpolation, affine_coefficients
from compress_aug.augment.operations import Operation
from compress_aug.augment.plan import Plan

Picture = Image.Image
Place = tuple[int, int]

_ENHANCERS = {
    Operation.BRIGHTNESS: ImageEnhance.Brightness,
    Operation.CONTRAST: ImageEnhance.Contrast,
    Operation.COLOR: ImageEnhance.Color,
    Operation.SHARPNESS: ImageEnhance.Sharpness,
}
_SHIFTS = (Operation.TRANSLATE_X, Operation.TRANSLATE_Y, Operation.SHEAR_X, Operation.SHEAR_Y)


def apply_pillow(
    images: Tensor, plan: Plan, fill: tuple[int, ...], interpolation: Interpolation = "nearest"
) -> Tensor:
    """`apply_plan` without any cleverness, on the CPU. fill: one value for each channel."""
    resample = Image.Resampling.NEAREST if interpolation == "nearest" else Image.Resampling.BILINEAR
    places = plan.all_places()
    done = torch.empty(images.shape, dtype=torch.uint8)
    for n, image in enumerate(images.cpu()):
        picture = to_picture(image)
        for step in range(plan.steps):
            place = (int(places[n, step, 0]), int(places[n, step, 1]))
            operation, argument = Operation(plan.operations[n, step]), float(plan.arguments[n, step])
            picture = one_operation(picture, operation, argument, place, fill, resample)
        done[n] = to_tensor(picture)
    return done.to(images.device)


def to_picture(image: Tensor) -> Picture:
    """uint8 (C, H, W) as a Pillow image, mode L or RGB."""
    if image.shape[0] == 1:
        return Image.fromarray(image[0].numpy())
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def to_tensor(picture: Picture) -> Tensor:
    """A Pillow image, mode L or RGB, as uint8 (C, H, W)."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def one_operation(
    picture: Picture,
    operation: Operation,
    argument: float,
    place: Place,
    fill: tuple[int, ...],
    resample: Image.Resampling,
) -> Picture:
    """One operation on one Pillow image, mode L or RGB. fill: one value for each channel."""
    paint = fill[0] if len(fill) == 1 else fill
    if operation in _ENHANCERS:
        return _ENHANCERS[operation](picture).enhance(argument)
    if operation in _SHIFTS:
        coefficients = affine_coefficients(operation, argument, picture.height, picture.width)
        return picture.transform(
            picture.size, Image.Transform.AFFINE, coefficients, resample=resample, fillcolor=paint
        )
    if operation == Operation.ROTATE:
        return picture.rotate(argument, resample=resample, fillcolor=paint)
    if operation == Operation.CROP:
        return _moved(picture, place, paint)
    if operation == Operation.CUTOUT:
        return _painted(picture, int(argument), place, paint)
    plain: dict[Operation, Callable[[], Picture]] = {
        Operation.IDENTITY: lambda: picture,
        Operation.POSTERIZE: lambda: _posterized(picture, int(argument)),
        Operation.SOLARIZE: lambda: ImageOps.solarize(picture, argument),  # type: ignore[arg-type]
        Operation.EQUALIZE: lambda: ImageOps.equalize(picture),
        Operation.AUTO_CONTRAST: lambda: ImageOps.autocontrast(picture),
        Operation.FLIP: lambda: ImageOps.mirror(picture),
    }
    return plain[operation]()


def _posterized(picture: Picture, bits: int) -> Picture:
    # Pillow refuses to keep no bits at all; that is black.
    return ImageOps.posterize(picture, bits) if bits else Image.new(picture.mode, picture.size)


def _moved(picture: Picture, place: Place, paint: int | tuple[int, ...]) -> Picture:
    down, right = place
    canvas = Image.new(picture.mode, picture.size, paint)
    canvas.paste(picture, (-right, -down))
    return canvas


def _painted(picture: Picture, side: int, place: Place, paint: int | tuple[int, ...]) -> Picture:
    half, (row, column) = side // 2, place
    if half:
        picture = picture.copy()
        # Pillow draws both corners as part of the rectangle.
        corners = (column - half, row - half, column + half - 1, row + half - 1)
        ImageDraw.Draw(picture).rectangle(corners, fill=paint)
    return picture

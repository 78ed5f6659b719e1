"""Pixels: one image to a uint8 tensor, and many images decoded into memory at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize

from compress_aug.errors import DataError

Shape = tuple[int, int, int]
"""(C, H, W)."""

Progress = Callable[[int, int], None]
"""Told now and then, while images are decoded: how many are done, of how many."""

# Enough that the bookkeeping of threads costs nothing beside the decoding, few enough for a smooth bar.
_IMAGES_A_TASK = 128


class ImageItems(Protocol):
    """A map-style data set of equally large images."""

    image_shape: Shape

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """uint8 (C, H, W) and the class number."""


def decode_file(path: Path, image_size: int | None = None) -> Tensor:
    """An image file as uint8 (3, H, W).

    image_size: pixels; the shorter side is resized to it (bilinear, antialiased) and the centre is cut out.

    Raises DataError, with the path, if the file is broken or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            image.load()
            # Conversion to RGB would clip these to white without a word.
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                raise DataError(f'"{path}" has more than 8 bits a channel: convert it to 8 bits.')
            colour = image.convert("RGB")
    # Pillow raises SyntaxError for broken PNG chunks and ValueError for some broken headers.
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as reason:
        raise DataError(
            f'"{path}" is not an image that can be read ({_short(reason)}): mend or remove it.'
        ) from reason
    if image_size is not None:
        colour = center_crop(resize(colour, image_size), image_size)
    return _tensor_of(colour)


def to_uint8(image: Any, name: str) -> Tensor:
    """A PIL image or uint8 tensor as uint8 (C, H, W); a grey image keeps its one channel.

    Raises DataError that calls the image `name` if it is anything else, floats above all.
    """
    if isinstance(image, Image.Image):
        grey = image.mode in ("1", "L")
        return _tensor_of(image.convert("L" if grey else "RGB"))
    if not isinstance(image, Tensor):
        raise DataError(
            f"{name} is a {type(image).__name__}: expected a PIL image or a uint8 tensor (C, H, W)."
        )
    if image.dtype != torch.uint8:
        raise DataError(
            f"{name} is {str(image.dtype).removeprefix('torch.')}: expected uint8, 0..255; leave out "
            "ToTensor and Normalize, images become floats only after augmentation."
        )
    if image.ndim != 3:
        raise DataError(f"{name} has shape {tuple(image.shape)}: expected (channels, height, width).")
    return image


def read_all(
    items: ImageItems, rows: Tensor, threads: int = 1, on_progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Decode rows of a data set: uint8 images (N, C, H, W) and int64 targets (N,), in the order of `rows`.

    threads: 1 for data sets whose items must not be read side by side.
    """
    # Written through numpy: torch would share the copy of every image among all cores, ten times slower.
    pixels = np.empty((len(rows), *items.image_shape), dtype=np.uint8)
    targets = np.empty(len(rows), dtype=np.int64)
    numbers = rows.tolist()

    def read(start: int) -> int:
        stop = min(start + _IMAGES_A_TASK, len(rows))
        for place in range(start, stop):
            image, targets[place] = items[numbers[place]]
            pixels[place] = image.numpy()
        return stop

    starts = range(0, len(rows), _IMAGES_A_TASK)
    with ThreadPoolExecutor(threads) as pool:
        # `map` cancels what has not begun as soon as one image is broken.
        for done in pool.map(read, starts) if threads > 1 else map(read, starts):
            if on_progress is not None:
                on_progress(done, len(rows))
    return torch.from_numpy(pixels), torch.from_numpy(targets)


def size_of(shape: Shape | torch.Size) -> str:
    """Width x height in words, and the channels where they are not three.

    >>> size_of((3, 24, 32)), size_of((1, 28, 28))
    ('32x24 pixels', '28x28 pixels in 1 channel')
    """
    channels, height, width = shape
    return f"{width}x{height} pixels" + (
        "" if channels == 3 else f" in {channels} channel{'s' * (channels > 1)}"
    )


def _tensor_of(image: Image.Image) -> Tensor:
    """An "L" or "RGB" image as uint8 (C, H, W)."""
    # A copy, because torch refuses to share memory that may not be written.
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _short(reason: Exception) -> str:
    """The library's words without the path that it repeats."""
    if isinstance(reason, UnidentifiedImageError):
        return "unknown image format"
    return str(reason).strip().splitlines()[0].rstrip(".") if str(reason).strip() else type(reason).__name__

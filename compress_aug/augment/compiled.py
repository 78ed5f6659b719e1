"""The compiled executor: hands a plan to the C kernel, in pieces to several threads; same bytes as plain torch."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.geometry import affine_coefficients
from compress_aug.augment.operations import Operation
from compress_aug.augment.plan import Plan
from compress_aug.errors import DataError, MissingPart, RecipeError
from compress_aug.native import kernels

# Fixed-point places have 16 bits before the point, one of them for the sign.
_LARGEST_SIDE = 32767

# Handing a piece to a thread takes some 20 us, as long as two steps on this many bytes.
_PIECE_BYTES = 1 << 18
# More pieces than threads, because one operation takes ten times as long as another.
_PIECES_PER_THREAD = 4

_coefficients = lru_cache(maxsize=4096)(affine_coefficients)


def can_take(images: Tensor) -> bool:
    """Whether there are kernels, and they can work on these images, uint8 (N, C, H, W)."""
    return images.is_cpu and max(images.shape[2:]) <= _LARGEST_SIDE and kernels() is not None


def apply_compiled(images: Tensor, plan: Plan, fill: tuple[int, ...], bilinear: bool = False) -> Tensor:
    """Do to each image what the plan says, by the compiled kernel.

    images:   uint8 (N, C, H, W), one or three channels, any memory format, on the CPU
    plan:     N rows
    fill:     C values, 0..255
    bilinear: whether shear and rotate mix neighbours, as Pillow's BILINEAR does, or take the nearest

    Works on as many threads as torch does; their number does not change the result.
    Returns a new contiguous uint8 (N, C, H, W).
    Raises MissingPart if there are no kernels (`compress_aug.native.kernels()` is None), RecipeError if the plan
    holds a number that is no operation, DataError for images on a GPU or with sides of more than 32767 pixels.
    """
    found = kernels()
    if found is None:
        raise MissingPart(
            "the compiled executor is not there: install compress_aug again with a C compiler (gcc or clang) at "
            "hand, or use the executor torch, which gives the same images."
        )
    augment = found.augment
    if not images.is_cpu:
        raise DataError(
            f"the compiled executor takes images on the CPU, but these are on {images.device}: use executor auto "
            "or torch, which give the same images."
        )
    images = images.contiguous()
    result = torch.empty(images.shape, dtype=torch.uint8)
    count, channels, height, width = images.shape
    if max(height, width) > _LARGEST_SIDE:
        raise DataError(
            f"the compiled executor takes images of up to {_LARGEST_SIDE} pixels a side, but these have {height} x "
            f"{width}: use the executor torch, which gives the same images."
        )
    operations = np.ascontiguousarray(plan.operations, dtype=np.int64)
    arguments = np.ascontiguousarray(plan.arguments, dtype=np.float64)
    places = None if plan.places is None else np.ascontiguousarray(plan.places, dtype=np.int64)
    maps, map_rows = _rotations(operations, arguments, height, width)
    fills = np.array(fill, dtype=np.uint8)
    image_bytes, steps = channels * height * width, operations.shape[1]

    def do(start: int, stop: int) -> int:
        return augment(
            images.data_ptr() + start * image_bytes,
            result.data_ptr() + start * image_bytes,
            *(stop - start, channels, height, width),
            _address(operations) + start * steps * 8,
            _address(arguments) + start * steps * 8,
            None if places is None else _address(places) + start * steps * 16,
            *(steps, _address(maps), _address(map_rows) + start * steps * 4),
            *(_address(fills), bilinear),
        )

    bounds = _bounds(count, image_bytes)
    if len(bounds) <= 2:
        codes = [do(0, count)]
    else:
        codes = list(_pool(torch.get_num_threads()).map(do, bounds[:-1], bounds[1:]))
    _check(max(codes), operations)
    return result


def _rotations(
    operations: NDArray[np.int64], arguments: NDArray[np.float64], height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Maps (K, 6) of all different rotations, and (N, S), which of them each step is.

    They come from Python, because sines and cosines of another library may differ in the last digit. The other
    maps hold no more than their argument.
    """
    rows = np.zeros(operations.shape, dtype=np.int32)
    rotated = operations == Operation.ROTATE
    degrees, rows[rotated] = np.unique(arguments[rotated], return_inverse=True)
    maps = [_coefficients(Operation.ROTATE, value, height, width) for value in degrees.tolist()]
    return np.array(maps, dtype=np.float64).reshape(-1, 6), rows


def _address(array: NDArray[np.generic]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _bounds(count: int, image_bytes: int) -> list[int]:
    """Where the pieces of a batch start, and where the last one ends."""
    threads = torch.get_num_threads()
    pieces = min(threads * _PIECES_PER_THREAD, count * image_bytes // _PIECE_BYTES, count)
    if threads == 1 or pieces < 2:
        return [0, count]
    return [count * piece // pieces for piece in range(pieces + 1)]


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="augment")


# A forked process (a worker of a data loader) has the pool's queue but none of its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _check(code: int, operations: NDArray[np.int64]) -> None:
    if code == 1:
        raise MemoryError("there is no memory for the working space of the compiled executor")
    if code == 2:
        wrong = sorted(set(operations.reshape(-1).tolist()) - set(Operation))
        raise RecipeError(
            f"a plan holds operations 0..{max(Operation)} (see Operation), but there is {wrong[0]} in this one."
        )

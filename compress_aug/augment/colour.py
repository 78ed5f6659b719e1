"""The operations that change values and not places: bit for bit as Pillow does them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment.rows import on_device

# The functions here change contiguous uint8 (N, C, H, W) in place.


def posterize(images: Tensor, bits: NDArray[np.float64]) -> None:
    """Keep the highest bits, (N,) in 0..8, of every value."""
    masks = (0xFF00 >> bits.astype(np.int64) & 0xFF).astype(np.uint8)
    images.bitwise_and_(on_device(masks, images.device).view(-1, 1, 1, 1))


def solarize(images: Tensor, thresholds: NDArray[np.float64]) -> None:
    """Invert every value that is at least the threshold, (N,) in 0..255."""
    lowest = on_device(np.ceil(thresholds).astype(np.uint8), images.device).view(-1, 1, 1, 1)
    inverted = torch.empty_like(images)
    # Comparing into uint8 and negating (1 -> 255) is 20 times faster than a boolean mask and torch.where.
    torch.ge(images, lowest, out=inverted)
    images.bitwise_xor_(inverted.neg_())


def _histograms(index: Tensor, tables: int) -> Tensor:
    """Counts (tables, 256) of an index that is value + 256 * table."""
    if index.is_cuda:  # bincount would wait for the device to learn how large its result is
        counts = torch.zeros(tables * 256, dtype=torch.int64, device=index.device)
        counts.index_add_(0, index, torch.ones(1, dtype=torch.int64, device=index.device).expand(len(index)))
    else:
        counts = torch.bincount(index, minlength=tables * 256)
    return counts.view(tables, 256)


def _auto_contrast_tables(low: Tensor, high: Tensor, ramp: Tensor) -> Tensor:
    """Tables (K, 256) that make the darkest value, (K, 1), 0 and the brightest, (K, 1), 255."""
    low, span = low.double(), (high - low).double()
    flat = span == 0
    # A channel of one value stays: with span 255 and low 0 the table is the ramp itself.
    span.masked_fill_(flat, 255.0)
    low.masked_fill_(flat, 0.0)
    # A real division: torch computes `255.0 / tensor` as 255 * (1 / tensor), which is one level off for some.
    scale = torch.full_like(span, 255.0).div_(span)
    return (ramp * scale).sub_(low.mul_(scale))


def _equalize_tables(histograms: Tensor, high: Tensor, ramp: Tensor, pixels: int) -> Tensor:
    """Tables (K, 256) that spread the values of each histogram evenly. high: (K, 1), the brightest value."""
    # Doubles hold these whole numbers exactly and divide faster than integers. The half keeps the quotient
    # away from whole numbers, so it does not matter that a GPU multiplies by 1 / 255 instead.
    step = (pixels - histograms.gather(1, high.long())).double().add_(0.5).div_(255.0).floor_()
    table = (histograms.cumsum(1) - histograms).double()
    table.add_((step * 0.5).floor_()).div_(step)
    # A channel of one value, or with nearly all pixels at the brightest, stays.
    return torch.where(step == 0.0, ramp, table)


def spread(images: Tensor, equalized: int) -> None:
    """Equalize for the first `equalized` images, AutoContrast for the others; both by table lookup."""
    count, split = len(images) * images.shape[1], equalized * images.shape[1]
    channels = images.view(count, -1)
    ramp = torch.arange(256, dtype=torch.float64, device=images.device)
    tables = torch.empty((count, 256), dtype=torch.float64, device=images.device)
    index = channels.to(torch.int32)
    index += torch.arange(0, count * 256, 256, dtype=torch.int32, device=images.device)[:, None]
    high = channels.amax(1, keepdim=True)
    if split:
        histograms = _histograms(index[:split].view(-1), split)
        tables[:split] = _equalize_tables(histograms, high[:split], ramp, channels.shape[1])
    if split < count:
        low = channels[split:].amin(1, keepdim=True)
        tables[split:] = _auto_contrast_tables(low, high[split:], ramp)
    # By way of int16, because torch vectorises that conversion: straight to uint8 takes 4 times as long.
    lookup = tables.clamp_(0.0, 255.0).to(torch.int16).to(torch.uint8).view(-1)
    channels.copy_(lookup.index_select(0, index.view(-1)).view_as(channels))


def _grey(images: Tensor) -> Tensor:
    """The luma of float images (N, C, H, W) as (N, 1, H, W), whole numbers."""
    if images.shape[1] == 1:
        return images
    # Weights are those of ITU-R 601 in 1/65536; every sum stays below 2**24, so float32 is exact.
    luma = images[:, 0] * 19595.0
    luma.add_(images[:, 1], alpha=38470.0).add_(images[:, 2], alpha=7471.0).add_(32768.0)
    return luma.mul_(1.0 / 65536.0).floor_()[:, None]


def _rounded_mean(grey: Tensor) -> Tensor:
    """The mean of (N, 1, H, W), halves up, as (N, 1, 1, 1)."""
    pixels = grey.shape[2] * grey.shape[3]
    # Sums of one row are exact in float32, and much faster there.
    total = grey.sum(3, keepdim=True).double().sum(2, keepdim=True)
    # The quarter keeps exact halves on the upper side even if 1 / pixels is rounded.
    return total.add_(0.25).mul_(1.0 / pixels).add_(0.5).floor_()


def _smooth(images: Tensor, smooth: Tensor) -> None:
    """Pillow's SMOOTH filter of uint8 (N, C, H, W), written into the floats `smooth`; the border stays."""
    height, width = images.shape[2:]
    smooth.copy_(images)
    if height < 3 or width < 3:
        return
    # The images as one line of pixels: sums over shifted copies of it run over consecutive memory, which is
    # several times faster than over slices. What wraps round at the border is not taken over.
    line = images.view(-1).to(torch.int16)
    sums = line[:-2] + line[1:-1]
    sums += line[2:]
    box = sums[: -2 * width] + sums[width:-width]
    box += sums[2 * width :]
    box.add_(line[width + 1 : -width - 1], alpha=4)
    blurred = torch.empty_like(smooth)
    # A thirteenth in float32 is safe: a sum of bytes / 13 + 1/2 is never nearer than 1/26 to a whole number.
    blurred.view(-1)[width + 1 : -width - 1].copy_(box).mul_(1.0 / 13.0).add_(0.5).floor_()
    inner = slice(1, -1)
    smooth[..., inner, inner] = blurred[..., inner, inner]


def blend(images: Tensor, factors: NDArray[np.float64], counts: tuple[int, int, int, int]) -> None:
    """Brightness, Contrast, Color, Sharpness: away from a degenerate image (factor > 1) or towards it (< 1).

    factors: (N,)
    counts:  how many of the images get each, in that order
    """
    contrast, color, sharpness = np.cumsum(counts)[:3].tolist()
    values = images.float()
    degenerate = torch.empty_like(values)
    degenerate[:contrast] = 0.0
    if contrast < sharpness:
        grey = _grey(values[contrast:sharpness])
        degenerate[contrast:color] = _rounded_mean(grey[: color - contrast])
        degenerate[color:sharpness] = grey[color - contrast :]
    if sharpness < len(images):
        _smooth(images[sharpness:], degenerate[sharpness:])
    factor = on_device(factors.astype(np.float32), images.device).view(-1, 1, 1, 1)
    # Two roundings, as in Pillow: fused into one (addcmul, lerp) some pixels would be one level off.
    values.sub_(degenerate).mul_(factor).add_(degenerate).clamp_(0.0, 255.0)
    images.copy_(values.to(torch.int16))

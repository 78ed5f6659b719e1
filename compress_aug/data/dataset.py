"""One data set: its three parts, its shape, and how its images become inputs of a model."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from compress_aug.batch import Batch
from compress_aug.data.sources import MemorySource, Source, order_of

# Statistics settle long before: 10 000 CIFAR images give the mean to within 0.001 of all 50 000.
_MEASURED_IMAGES = 10_000
_MEASURED_BYTES = 2**28

# The test images lie in one order for every run, so that the same `limited` copy is the same images.
_TEST_ORDER_SEED = 0


@dataclass(frozen=True)
class Data:
    """A data set for image classification.

    name:         for reports
    classes:      their names; class number k is classes[k]
    image_shape:  (C, H, W) of every image
    mean, std:    per channel, of pixels in 0..1
    crop_padding: pixels of black border that a random crop may use on each side
    flip:         whether mirrored images are still of the same class
    train, validation, test: the parts; each lies in a random order that does not change, so its first
                  images are a fair sample of it
    """

    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    train: Source
    validation: Source
    test: Source

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> float32 (N, C, H, W), (pixel / 255 - mean) / std, on the same device."""
        scale, shift = _scale_and_shift(self.mean, self.std, images.device)
        return torch.addcmul(shift, images.to(torch.float32), scale)

    def to(self, device: torch.device) -> "Data":
        """The same data with its batches on this device; what lies in memory is moved there whole, once."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )

    def limited(self, train: int | None = None, test: int | None = None) -> "Data":
        """A smaller copy for quick checks: at most so many training and test images.

        The validation images shrink in proportion to the training images.

        >>> from compress_aug.data import load_data
        >>> small = load_data("digits").limited(train=90, test=50)
        >>> len(small.train), len(small.validation), len(small.test)
        (90, 10, 50)
        """
        smaller = self
        if train is not None:
            held = held_out(len(self.train), len(self.validation), train)
            smaller = replace(smaller, train=self.train.first(train), validation=self.validation.first(held))
        if test is not None:
            smaller = replace(smaller, test=self.test.first(test))
        return smaller


@dataclass(frozen=True)
class Options:
    """What may be said about any data set.

    validation:   share of the training images held out, in [0, 1); never taken from the test images
    train, test:  at most so many images; the validation images shrink in proportion to `train`
    crop_padding: pixels; None = what the data set names, or else an eighth of the height
    flip:         None = what the data set names
    """

    validation: float = 0.1
    train: int | None = None
    test: int | None = None
    crop_padding: int | None = None
    flip: bool | None = None


def held_out(train: int, validation: int, limit: int) -> int:
    """How many of the validation images go with the first `limit` of the training images.

    >>> held_out(train=900, validation=100, limit=90)
    10
    """
    if not validation or limit >= train:
        return validation
    return max(1, round(validation * limit / train))


def split_rows(length: int, options: Options, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of a training set to train on and to validate on: the last part of a permutation is held out.

    >>> train, validation = split_rows(10, Options(validation=0.2), seed=0)
    >>> len(train), len(validation)
    (8, 2)
    """
    order = order_of(length, seed)
    held = max(1, round(length * options.validation)) if options.validation else 0
    # One image must be left to train on, whatever the share.
    held = min(held, length - 1)
    train, validation = order[: length - held], order[length - held :]
    if options.train is not None:
        validation = validation[: held_out(len(train), held, options.train)]
        train = train[: options.train]
    return train, validation


def held_rows(length: int, limit: int | None) -> Tensor:
    """Rows of a test set (or of a validation set that came as its own), in an order that never changes."""
    return order_of(length, _TEST_ORDER_SEED)[:limit]


def stratified_split(targets: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train and to test on: of every class the same share (at least one image) is for testing.

    Both come sorted. A class of one image goes to the training rows alone.

    >>> train, test = stratified_split(torch.tensor([0] * 10 + [1] * 5), 0.2, seed=0)
    >>> len(train), len(test)
    (12, 3)
    """
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in sorted(set(targets.tolist())):
        rows = torch.nonzero(targets == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        held = min(max(1, round(len(rows) * share)), len(rows) - 1)
        test.append(rows[:held])
        train.append(rows[held:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values


def from_tensors(images: Tensor, targets: Tensor, rows: Tensor) -> MemorySource:
    """The rows of a decoded set, in the order of `rows`; copies them."""
    return MemorySource(images[rows], targets[rows], rows)


def measure_colours(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in 0..1, over a fair sample of the images."""
    first: Batch = next(iter(source.first(1).batches(1)))
    sample = source.first(max(1, min(_MEASURED_IMAGES, _MEASURED_BYTES // first.images[0].numel())))
    # Sums of whole numbers: the result does not depend on the size of the batches.
    total = torch.zeros(first.images.shape[1], dtype=torch.int64)
    squares, pixels = total.clone(), 0
    for batch in sample.batches(256):
        values = batch.images.to(device="cpu", dtype=torch.int64)
        total += values.sum((0, 2, 3))
        squares += (values * values).sum((0, 2, 3))
        pixels += values.numel() // values.shape[1]
    mean = total.double() / pixels
    variance = (squares.double() / pixels - mean**2).clamp(min=0)
    # A channel of one single grey would otherwise be divided by nothing.
    std = variance.sqrt().clamp(min=1.0)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


@lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as x * scale + shift; kept, because a copy to a GPU for each batch is slow."""
    # Tensors born in inference mode could never enter a training step later.
    with torch.inference_mode(False):
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        shape = (1, len(mean), 1, 1)
        return scale.float().view(shape).to(device), shift.float().view(shape).to(device)

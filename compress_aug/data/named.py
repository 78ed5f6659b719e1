"""The data sets that a recipe calls by name: digits, cifar10, cifar100, fashion_mnist."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress_aug.data.dataset import Data, Options, from_tensors, held_rows, split_rows, stratified_split
from compress_aug.errors import DataError


@dataclass(frozen=True)
class Raw:
    """A whole set, decoded: uint8 images (N, C, H, W) and int64 targets (N,) of its two official parts."""

    classes: tuple[str, ...]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Named:
    """How a named set is read, and what is known of it.

    files: what is downloaded, and `place` the folder under `root` where it lies; None = nothing is.
    """

    read: Callable[[Path], Raw]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    files: str | None = None
    place: str = ""


def load_named(name: str, root: Path, options: Options, seed: int) -> Data:
    """The data set of this name, decoded in memory; downloads lie in `root`.

    Raises DataError, which says what to put where, if the set is absent and cannot be downloaded.
    """
    named = NAMED[name]
    try:
        raw = named.read(root)
    # torchvision raises RuntimeError for a damaged file; without network it, or an OSError from urllib.
    except (OSError, RuntimeError) as reason:
        raise DataError(_absent(name, root, reason)) from reason
    train, validation = split_rows(len(raw.train[1]), options, seed)
    test = held_rows(len(raw.test[1]), options.test)
    channels, height, width = raw.train[0].shape[1:]
    return Data(
        name=name,
        classes=raw.classes,
        image_shape=(channels, height, width),
        mean=named.mean,
        std=named.std,
        crop_padding=named.crop_padding if options.crop_padding is None else options.crop_padding,
        flip=named.flip if options.flip is None else options.flip,
        train=from_tensors(*raw.train, train),
        validation=from_tensors(*raw.train, validation),
        test=from_tensors(*raw.test, test),
    )


def _digits(root: Path) -> Raw:
    """1797 handwritten digits that come with scikit-learn, 8x8 pixels of 17 greys, shown as (3, 32, 32)."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    greys = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))
    images = greys.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].repeat(1, 3, 1, 1)
    targets = torch.from_numpy(bunch.target.astype(np.int64))
    # The set has no official test part; ours is the same for every run.
    train, test = stratified_split(targets, 0.2, seed=0)
    classes = tuple(str(digit) for digit in range(10))
    return Raw(classes, (images[train], targets[train]), (images[test], targets[test]))


def _from_torchvision(class_name: str) -> Callable[[Path], Raw]:
    """A reader of one of torchvision's data sets, which downloads what is absent."""

    def read(root: Path) -> Raw:
        import torchvision

        build = getattr(torchvision.datasets, class_name)
        train, test = build(root, train=True, download=True), build(root, train=False, download=True)
        pairs = [(_channels_first(part.data), torch.as_tensor(part.targets)) for part in (train, test)]
        return Raw(tuple(train.classes), pairs[0], pairs[1])

    return read


def _channels_first(pixels: Any) -> Tensor:
    """(N, H, W, C) or (N, H, W), array or tensor -> (N, C, H, W)."""
    images = torch.as_tensor(pixels)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous()


def _absent(name: str, root: Path, reason: Exception) -> str:
    first_line = str(reason).strip().splitlines()[0].rstrip(".:")
    return (
        f"{name} is not in {root.resolve()} and could not be downloaded ({first_line}): put "
        f"{NAMED[name].files} into {(root / NAMED[name].place).resolve()}, or name the folder that holds it "
        "with `root:`."
    )


# mean and std are those of the official training images.
NAMED: dict[str, Named] = {
    "digits": Named(
        _digits, mean=(0.3053, 0.3053, 0.3053), std=(0.3759, 0.3759, 0.3759), crop_padding=2, flip=False
    ),
    "cifar10": Named(
        _from_torchvision("CIFAR10"),
        mean=(0.49139968, 0.48215841, 0.44653091),
        std=(0.24703223, 0.24348513, 0.26158784),
        crop_padding=4,
        flip=True,
        files="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    "cifar100": Named(
        _from_torchvision("CIFAR100"),
        mean=(0.50707516, 0.48654887, 0.44091784),
        std=(0.26733429, 0.25643846, 0.27615047),
        crop_padding=4,
        flip=True,
        files="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    ),
    "fashion_mnist": Named(
        _from_torchvision("FashionMNIST"),
        mean=(0.28604059,),
        std=(0.35302424,),
        crop_padding=4,
        flip=True,
        files="the four *-ubyte.gz files of https://github.com/zalandoresearch/fashion-mnist",
        place="FashionMNIST/raw",
    ),
}

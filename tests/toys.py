"""Tiny nets and tiny data for all tests: seeded, and fast enough to train in a second."""

from pathlib import Path

import torch
from torch import Tensor, nn

from compress_aug.data import Data, MemorySource
from compress_aug.training import Training

TOY_CLASSES = 4


def tiny_net(classes: int = TOY_CLASSES, channels: int = 3, width: int = 8) -> nn.Sequential:
    """A plain chain of two convolutions: 860 parameters at the defaults."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


class TinyResidual(nn.Module):
    """A stem and one residual block, the sum of which ties the channels of two layers together."""

    def __init__(self, classes: int = TOY_CLASSES, channels: int = 3, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv_norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.relu(self.norm(self.stem(images)))
        features = self.relu(stem + self.conv_norm(self.conv(stem)))
        return self.fc(features.mean((2, 3)))


class TinyConcat(nn.Module):
    """A depthwise-separable branch beside its input, joined by concatenation, in nested Sequentials."""

    def __init__(self, classes: int = TOY_CLASSES, channels: int = 3, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = _step(channels, width, 3)
        self.depthwise = _step(width, width, 3, groups=width)
        self.pointwise = _step(width, width, 1)
        self.join = _step(2 * width, width, 1)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        branch = self.pointwise(self.depthwise(stem))
        return self.fc(self.join(torch.cat([stem, branch], 1)).mean((2, 3)))


def _step(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def two_maps_net(width: int = 4, seed: int = 0) -> nn.Sequential:
    """A chain whose maps have two resolutions and two widths, of which the first is overwritten by its activation."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, TOY_CLASSES))


def cut_off(training: Training, steps: int, path: Path) -> None:
    """Train that many steps, an objective's own included, and leave the file that a stopped training leaves."""
    seen = 0

    def pause(training: Training) -> bool:
        nonlocal seen
        seen += 1
        return seen == steps

    while training.epochs_done < training.settings.epochs and training.epoch(pause):
        pass
    torch.save(training.state_dict(), path)


def tiny_images(number: int, *, size: int = 8, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 images (N, C, H, W) of dim noise with one bright quarter, and which quarter, int64 (N,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 96, (number, channels, size, size), generator=generator, dtype=torch.uint8)
    targets = torch.arange(number) % TOY_CLASSES
    half = size // 2
    for image, target in zip(images, targets.tolist(), strict=True):
        row, column = half * (target // 2), half * (target % 2)
        image[:, row : row + half, column : column + half] += 128
    return images, targets


def tiny_data(
    train: int = 64, validation: int = 16, test: int = 32, *, size: int = 8, channels: int = 3
) -> Data:
    """A whole data set that `tiny_net` can learn; parts of these numbers of images."""
    parts = []
    for seed, number in enumerate((train, validation, test)):
        images, targets = tiny_images(number, size=size, channels=channels, seed=seed)
        parts.append(MemorySource(images, targets, torch.arange(number)))
    return Data(
        name="tiny",
        classes=tuple("abcd"),
        image_shape=(channels, size, size),
        mean=(0.31,) * channels,
        std=(0.25,) * channels,
        crop_padding=1,
        # Mirroring would turn one class into another.
        flip=False,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
    )

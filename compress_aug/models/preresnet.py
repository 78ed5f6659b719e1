"""Residual nets that normalise before they convolve: PreResNets by their depth, WRNs by depth and width."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compress_aug.models.depths import blocks_by, blocks_of


class Unit(nn.Module):
    """Normalisation, ReLU and convolution, twice or (bottleneck) three times, added to what came in.

    entering, leaving: channels of the map that comes in, and of that which goes out
    stride:            of the unit's first convolution
    bottleneck:        1x1, 3x3 and 1x1 convolutions, on a quarter of `leaving` inside; otherwise two of 3x3

    The shortcut is the map as it came in; where the shape changes, it is a 1x1 convolution of what the first
    ReLU made of it.
    """

    def __init__(self, entering: int, leaving: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        inside = leaving // 4 if bottleneck else leaving
        self.bn1 = nn.BatchNorm2d(entering)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = _convolution(entering, inside, 1 if bottleneck else 3, stride)
        self.bn2 = nn.BatchNorm2d(inside)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = _convolution(inside, inside, 3)
        self.third: nn.Module | None = None
        if bottleneck:
            self.third = nn.Sequential(
                nn.BatchNorm2d(inside), nn.ReLU(inplace=True), _convolution(inside, leaving, 1)
            )
        self.shortcut: nn.Module | None = None
        if stride != 1 or entering != leaving:
            self.shortcut = _convolution(entering, leaving, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        change: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        if self.third is not None:
            change = self.third(change)
        total: Tensor = change + (x if self.shortcut is None else self.shortcut(active))
        return total


class PreActivationNet(nn.Module):
    """A 3x3 stem, three stages of `Unit`, a last normalisation and ReLU, pooling, a linear layer.

    channels: that leave the stem and the three stages
    blocks:   units in each stage; the first one of the second and of the third stage halves the resolution
    """

    def __init__(
        self, channels: Sequence[int], blocks: int, classes: int, *, bottleneck: bool, in_channels: int
    ) -> None:
        super().__init__()
        stem, first, second, third = channels
        self.conv1 = _convolution(in_channels, stem, 3)
        self.layer1 = _stage(blocks, stem, first, 1, bottleneck)
        self.layer2 = _stage(blocks, first, second, 2, bottleneck)
        self.layer3 = _stage(blocks, second, third, 2, bottleneck)
        self.bn = nn.BatchNorm2d(third)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, K)."""
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(self.relu(self.bn(features))), 1))
        return logits


def preresnet(
    depth: int, classes: int, *, width: int = 16, in_channels: int = 3, bottleneck: bool | None = None
) -> PreActivationNet:
    """A PreResNet: PreResNet-110 has 1 730 522 parameters with 10 classes, PreResNet-164 1 703 258.

    depth:       6n + 2 with basic blocks: 20, 32, 44, 56, 110, ...; 9n + 2 with bottlenecks: 164, 1001, ...
    width:       channels of the stem and inside the first stage; the second has twice, the third four times as
                 many; behind bottlenecks all three have four times that
    in_channels: of the images
    bottleneck:  True or False where the depth allows both, as 56, 110 and 164 do. By default 164 and more mean
                 bottlenecks, less means basic blocks, as in the paper; 29, 47, ... can only be bottlenecks

    Raises ValueError if there is no such depth.

    >>> preresnet(20, 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Source: He et al., arXiv 1603.05027. Bottlenecks as in the authors' code (the stride is that of the first
    1x1 convolution, a changing shape has a 1x1 convolution as shortcut); basic blocks have the same shortcut.
    """
    blocks = blocks_of(depth, bottleneck)
    wide = width * (4 if blocks.bottleneck else 1)
    channels = (width, wide, 2 * wide, 4 * wide)
    return PreActivationNet(
        channels, blocks.number, classes, bottleneck=blocks.bottleneck, in_channels=in_channels
    )


def wrn(depth: int, widening: int, classes: int, *, in_channels: int = 3) -> PreActivationNet:
    """A wide residual net: WRN-16-2 has 691 674 parameters with 10 classes, WRN-28-10 36 479 194.

    depth:       6n + 4: 10, 16, 22, 28, 40, ...
    widening:    1 or more: the stages have 16, 32 and 64 times as many channels; the stem has 16 always
    in_channels: of the images

    Raises ValueError if there is no such depth or widening.

    >>> wrn(10, 1, 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Source: Zagoruyko and Komodakis, arXiv 1605.07146, and the authors' code; without its dropout.
    """
    if widening < 1:
        raise ValueError(f"widening is {widening}: expected 1 or more")
    blocks = blocks_by(6, depth, rest=4)
    channels = (16, 16 * widening, 32 * widening, 64 * widening)
    return PreActivationNet(channels, blocks, classes, bottleneck=False, in_channels=in_channels)


def _stage(blocks: int, entering: int, leaving: int, stride: int, bottleneck: bool) -> nn.Sequential:
    first = Unit(entering, leaving, stride, bottleneck)
    return nn.Sequential(first, *(Unit(leaving, leaving, 1, bottleneck) for _ in range(blocks - 1)))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer

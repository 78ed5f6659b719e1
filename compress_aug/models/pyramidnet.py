"""PyramidNets for 32x32 images: every unit is a little wider than the one before it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_aug.models.depths import blocks_of


class Unit(nn.Module):
    """Convolutions with a normalisation before, between and behind them, added to what came in.

    entering:   channels of the map that comes in
    inside:     of the convolutions
    stride:     of the 3x3 convolution that has one
    bottleneck: 1x1, 3x3 and 1x1 convolutions, the last to four times `inside`; otherwise two of 3x3

    The shortcut has no weights: where the map gets smaller it is averaged over 2x2 pixels, and where channels
    are added they are zero in it. There is no ReLU before the first convolution.
    """

    def __init__(self, entering: int, inside: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(entering)]
        if bottleneck:
            layers += [
                _convolution(entering, inside, 1),
                *_active(inside),
                _convolution(inside, inside, 3, stride),
            ]
            layers += [*_active(inside), _convolution(inside, 4 * inside, 1), nn.BatchNorm2d(4 * inside)]
        else:
            layers += [_convolution(entering, inside, 3, stride), *_active(inside)]
            layers += [_convolution(inside, inside, 3), nn.BatchNorm2d(inside)]
        self.change = nn.Sequential(*layers)
        # Rounded up as the convolution does it, for maps with an odd number of rows or columns.
        self.shrink = nn.Identity() if stride == 1 else nn.AvgPool2d(2, ceil_mode=True)
        self.leaving = 4 * inside if bottleneck else inside
        self.added = self.leaving - entering

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shrink(x)
        if self.added:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.added))
        total: Tensor = self.change(x) + shortcut
        return total


class PyramidNet(nn.Module):
    """A pyramidal residual net with additive widening.

    depth:       6n + 2 with basic blocks, 9n + 2 with bottlenecks: a stem, n units in each of three stages, a
                 linear layer
    alpha:       channels that the units add to the stem's 16, in equal steps: unit k of 3n has 16 + k * alpha / 3n,
                 rounded; four times as many leave a bottleneck
    in_channels: of the images
    bottleneck:  True or False where the depth allows both, as 110, 164 and 200 do. By default 164 and more mean
                 bottlenecks, less means basic blocks, as in the paper

    >>> PyramidNet(20, 12, 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Raises ValueError if there is no such depth, or alpha is below 1.

    Source: Han et al., arXiv 1610.02915, and the authors' code.
    """

    def __init__(
        self,
        depth: int,
        alpha: int,
        classes: int,
        *,
        in_channels: int = 3,
        bottleneck: bool | None = None,
    ) -> None:
        super().__init__()
        if alpha < 1:
            raise ValueError(f"alpha is {alpha}: expected 1 or more")
        blocks = blocks_of(depth, bottleneck)
        self.conv1 = _convolution(in_channels, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        units: list[Unit] = []
        for number in range(3 * blocks.number):
            entering = units[-1].leaving if units else 16
            stride = 2 if number in (blocks.number, 2 * blocks.number) else 1
            inside = _widened(number + 1, alpha, 3 * blocks.number)
            units.append(Unit(entering, inside, stride, blocks.bottleneck))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*units[start * blocks.number :][: blocks.number]) for start in range(3)
        )
        self.bn = nn.BatchNorm2d(units[-1].leaving)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(units[-1].leaving, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, K)."""
        features = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(images)))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(self.relu(self.bn(features))), 1))
        return logits


def pyramidnet(
    depth: int, alpha: int, classes: int, *, in_channels: int = 3, bottleneck: bool | None = None
) -> PyramidNet:
    """PyramidNet-200-240 has 26 752 702 parameters with 10 classes, 26 844 952 with 100."""
    return PyramidNet(depth, alpha, classes, in_channels=in_channels, bottleneck=bottleneck)


def _widened(number: int, alpha: int, units: int) -> int:
    """16 + number * alpha / units, rounded half up, in whole numbers: the reference adds floats up."""
    return 16 + (2 * number * alpha + units) // (2 * units)


def _active(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer

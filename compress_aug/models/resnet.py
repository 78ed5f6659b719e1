"""ResNets for 32x32 images: depth 6n + 2, three stages of n basic blocks."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class ResNet(nn.Module):
    """A residual net for small images.

    depth:       6n + 2: a stem, n blocks of two convolutions in each of three stages, a linear layer
    width:       channels of the first stage; the second has twice, the third four times as many
    in_channels: of the images

    The shortcut where the shape changes is a 1x1 convolution with batch normalisation, as in torchvision's
    ResNets (whose blocks these are). The paper pads with zero channels at this size; this is our decision:
    cut channels and integer runtimes need a shortcut that is an ordinary layer.

    >>> ResNet(20, classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Raises ValueError if the depth is not 6n + 2.

    Source: He et al., arXiv 1512.03385, section 4.2.
    """

    def __init__(self, depth: int, classes: int, *, width: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth is {depth}: expected 6n + 2, such as 8, 14 or 20")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(blocks, width, width, stride=1)
        self.layer2 = _stage(blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, K)."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(features), 1))
        return logits


def _stage(blocks: int, entering: int, channels: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or entering != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(entering, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )
    first = BasicBlock(entering, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


def resnet8(classes: int, *, width: int = 16, in_channels: int = 3) -> ResNet:
    """78 042 parameters with 10 classes: small enough for tests and quick looks."""
    return ResNet(8, classes, width=width, in_channels=in_channels)


def resnet14(classes: int, *, width: int = 16, in_channels: int = 3) -> ResNet:
    """175 258 parameters with 10 classes."""
    return ResNet(14, classes, width=width, in_channels=in_channels)


def resnet20(classes: int, *, width: int = 16, in_channels: int = 3) -> ResNet:
    """272 474 parameters with 10 classes, 40.8 million multiply-accumulates at 32x32."""
    return ResNet(20, classes, width=width, in_channels=in_channels)


def resnet32(classes: int, *, width: int = 16, in_channels: int = 3) -> ResNet:
    """466 906 parameters with 10 classes."""
    return ResNet(32, classes, width=width, in_channels=in_channels)


def resnet56(classes: int, *, width: int = 16, in_channels: int = 3) -> ResNet:
    """855 770 parameters with 10 classes."""
    return ResNet(56, classes, width=width, in_channels=in_channels)


def resnet110(classes: int, *, width: int = 16, in_channels: int = 3) -> ResNet:
    """1 730 714 parameters with 10 classes."""
    return ResNet(110, classes, width=width, in_channels=in_channels)

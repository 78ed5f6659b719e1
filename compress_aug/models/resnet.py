"""ResNets for 32x32 images: depth 6n + 2 in three stages of n basic blocks, and ResNet18 in its four wide ones."""

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class StagedResNet(nn.Module):
    """A stem, stages of basic blocks, a linear layer; each stage is half as large and twice as wide as that before.

    stages, blocks: how many stages, and how many blocks of two convolutions in each
    width:          channels of the stem and of the first stage
    in_channels:    of the images

    The modules are called as in torchvision's ResNets, whose blocks these are; the stages are layer1, layer2, ...
    """

    def __init__(self, stages: int, blocks: int, classes: int, *, width: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stages = stages
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        entering = width
        for number in range(stages):
            channels = width << number
            stage = _stage(blocks, entering, channels, stride=1 if number == 0 else 2)
            self.add_module(f"layer{number + 1}", stage)
            entering = channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(entering, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, K)."""
        features = self.relu(self.bn1(self.conv1(images)))
        for number in range(self.stages):
            features = getattr(self, f"layer{number + 1}")(features)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(features), 1))
        return logits


class ResNet(StagedResNet):
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
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth is {depth}: expected 6n + 2, such as 8, 14 or 20")
        super().__init__(3, blocks, classes, width=width, in_channels=in_channels)


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


def resnet18(classes: int, *, width: int = 64, in_channels: int = 3) -> StagedResNet:
    """ResNet18 whose last map is 4x4 for a 32x32 image: 11 173 962 parameters with 10 classes.

    width: channels of the first stage; the four have 64, 128, 256 and 512 by default

    Torchvision's net but for its start: a 3x3 stem that keeps the resolution, and no pooling behind it, where
    the paper (made for 224x224) halves it twice.

    >>> resnet18(10).layer4[1].conv2
    Conv2d(512, 512, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)

    Source: He et al., arXiv 1512.03385, table 1; the start for 32x32 as in the code of arXiv 2004.08861.
    """
    return StagedResNet(4, 2, classes, width=width, in_channels=in_channels)

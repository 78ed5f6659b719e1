"""AlexNet for 32x32 images: five convolutions, the first 11x11, and two wide linear layers, all batch-normalised."""

import math

import torch
from torch import Tensor, nn

# What the largest map in front of the linear layers may measure: that of a 32x32 image.
_LAST_MAP = 4


class AlexNet(nn.Module):
    """AlexNet as the code of arXiv 2004.08861 builds it for CIFAR.

    width:       factor on the channels of every layer, above 0
    in_channels: of the images
    image_size:  (H, W), for which the linear layers are made

    The convolutions have 64 (11x11), 192 (5x5), 384, 256 and 256 (3x3) channels and keep the resolution, which is
    halved behind the first, the second and the last; then 4096, 4096 and K features. No layer has a bias, the
    last one included. Where other images would leave a map larger than 4x4, the last pooling is as wide as it
    takes, so that the linear layers never grow beyond those for 32x32 [ours]. The maps that the paper distils from
    are the outputs of features.7, features.10, features.13 and features.17.

    >>> AlexNet(10, width=1 / 16)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Source: Krizhevsky et al., 2012; the form for 32x32 is that of the code of arXiv 2004.08861, which also sets
    the norms' epsilon to 1e-3, here torch's 1e-5.
    """

    def __init__(
        self,
        classes: int,
        *,
        width: float = 1.0,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        first, second, third, fourth, wide = (max(1, round(width * n)) for n in (64, 192, 384, 256, 4096))
        # Two halvings come before the last pooling; a last row or column counts as a whole one in each.
        maps = [math.ceil(side / 4) for side in image_size]
        windows = [max(2, math.ceil(side / _LAST_MAP)) for side in maps]
        positions = math.prod(math.ceil(side / window) for side, window in zip(maps, windows, strict=True))
        self.features = nn.Sequential(
            *_convolution(in_channels, first, 11),
            nn.MaxPool2d(2, ceil_mode=True),
            *_convolution(first, second, 5),
            nn.MaxPool2d(2, ceil_mode=True),
            *_convolution(second, third, 3),
            *_convolution(third, fourth, 3),
            *_convolution(fourth, fourth, 3),
            nn.MaxPool2d((windows[0], windows[1]), ceil_mode=True),
        )
        self.classifier = nn.Sequential(
            *_linear(positions * fourth, wide), *_linear(wide, wide), nn.Linear(wide, classes, bias=False)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) -> logits (N, K)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def _convolution(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _linear(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]


def alexnet(
    classes: int, *, width: float = 1.0, in_channels: int = 3, image_size: tuple[int, int] = (32, 32)
) -> AlexNet:
    """36 082 624 parameters with 10 classes, nearly all of them in the two wide linear layers."""
    return AlexNet(classes, width=width, in_channels=in_channels, image_size=image_size)

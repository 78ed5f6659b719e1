"""MobileNetV2 for 32x32 images: torchvision's net with a smaller stride at the start."""

from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2

# Expansion, channels, blocks, stride of each group, as in the paper but for the second's stride: 1, not 2.
_GROUPS = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def mobilenet_v2(classes: int, *, width: float = 1.0, in_channels: int = 3) -> MobileNetV2:
    """MobileNetV2 whose last map is 4x4 for a 32x32 image: 2 236 682 parameters with 10 classes.

    width: factor on the channels of every layer, above 0

    The stem and the second group keep the resolution, where the paper (made for 224x224) halves it: in
    torchvision's own form a 32x32 image shrinks to one single pixel.

    >>> import torch
    >>> mobilenet_v2(10).features(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 1280, 4, 4])

    Source: Sandler et al., arXiv 1801.04381; the strides for 32x32 are the customary ones, not the paper's.
    """
    model = MobileNetV2(num_classes=classes, width_mult=width, inverted_residual_setting=_GROUPS)
    channels = model.features[0][0].out_channels
    stem = nn.Conv2d(in_channels, channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    model.features[0][0] = stem
    return model

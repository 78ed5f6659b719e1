"""ShuffleNetV2 for 32x32 images: torchvision's net with a smaller stride at the start."""

from torch import nn
from torchvision.models.shufflenetv2 import ShuffleNetV2

from compress_aug.errors import ModelError

# The paper's table 5: channels of the stem, of the three stages, and of the last convolution.
_CHANNELS = {
    0.5: [24, 48, 96, 192, 1024],
    1.0: [24, 116, 232, 464, 1024],
    1.5: [24, 176, 352, 704, 1024],
    2.0: [24, 244, 488, 976, 2048],
}


def shufflenet_v2(classes: int, *, width: float = 1.0, in_channels: int = 3) -> ShuffleNetV2:
    """ShuffleNetV2 whose last map is 4x4 for a 32x32 image: 1 263 854 parameters with 10 classes.

    width: 0.5, 1.0, 1.5 or 2.0

    The stem keeps the resolution and the pooling after it is left out, where the paper (made for 224x224)
    halves it twice: in torchvision's own form a 32x32 image shrinks to one single pixel.

    Raises ModelError for another width.

    >>> import torch
    >>> shufflenet_v2(10)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])

    Source: Ma et al., arXiv 1807.11164; the strides for 32x32 are the customary ones, not the paper's.
    """
    if width not in _CHANNELS:
        raise ModelError(
            f"width of shufflenet_v2 is {width}: expected one of {', '.join(map(str, _CHANNELS))}."
        )
    model = ShuffleNetV2([4, 8, 4], _CHANNELS[width], num_classes=classes)
    model.conv1[0] = nn.Conv2d(in_channels, _CHANNELS[width][0], 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model

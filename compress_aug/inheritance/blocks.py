"""The extra layers: residual blocks that keep the shape of what they get and start as the identity."""

from typing import Literal

from torch import Tensor, nn

Form = Literal["convolution", "separable", "inverted", "tokens", "features"]


class Block(nn.Module):
    """x + change(x) or, where x is never negative, the positive part of that; the shape of x.

    With such a x the positive part of x + 0 is x, so the block still starts as the identity.
    """

    def __init__(self, change: nn.Module, positive: bool) -> None:
        super().__init__()
        self.change = change
        self.positive = positive

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.change(x)
        return total.relu() if self.positive else total


class Extended(nn.Module):
    """A module, and the extra blocks behind it."""

    def __init__(self, base: nn.Module, extra: nn.Sequential) -> None:
        super().__init__()
        self.base = base
        self.extra = extra

    def forward(self, *inputs: object, **named_inputs: object) -> Tensor:
        output: Tensor = self.extra(self.base(*inputs, **named_inputs))
        return output


def new_blocks(form: Form, channels: int, blocks: int, positive: bool) -> nn.Sequential:
    """Blocks whose change is zero at the start, with random weights before that zero.

    form: "convolution"  two 3x3 convolutions
          "separable"    the same, each as a depthwise 3x3 and a 1x1 convolution
          "inverted"     MobileNetV2's block: 1x1 to six times the channels, depthwise 3x3, 1x1 back
          "tokens"       a transformer's MLP on the last dimension, four times as wide inside
          "features"     the same, as wide inside as outside

    >>> sum(parameter.numel() for parameter in new_blocks("convolution", 64, 10, True).parameters())
    739840
    """
    return nn.Sequential(*(Block(_change(form, channels), positive) for _ in range(blocks)))


def _change(form: Form, channels: int) -> nn.Sequential:
    if form == "convolution":
        layers = [*_convolution(channels, channels, 3), nn.ReLU(), *_convolution(channels, channels, 3)]
    elif form == "separable":
        layers = [*_separable(channels), nn.ReLU(), *_separable(channels)]
    elif form == "inverted":
        wide = 6 * channels
        layers = [*_convolution(channels, wide, 1), nn.ReLU(), *_convolution(wide, wide, 3, groups=wide)]
        layers += [nn.ReLU(), *_convolution(wide, channels, 1)]
    else:
        hidden = 4 * channels if form == "tokens" else channels
        layers = [nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)]
    # The last normalisation's scale (here with its shift, which is zero anyway), or the last linear layer.
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, size: int, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return [layer, nn.BatchNorm2d(outputs)]


def _separable(channels: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return [depthwise, *_convolution(channels, channels, 1)]

"""The Brevitas layers that a quantized model is made of. Importing this file imports Brevitas (2 s)."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

# torch's extension builder, imported by Brevitas, logs a missing GPU as a warning of its own.
_builder_log = logging.getLogger("torch.utils.cpp_extension")
_level = _builder_log.level
_builder_log.setLevel(logging.ERROR)
from brevitas import nn as brevitas_nn  # type: ignore[import-untyped]  # noqa: E402
from brevitas import quant  # noqa: E402

_builder_log.setLevel(_level)

# Where a grid of 2, 3, 4 or 5 bits ends for the least squared error on normally distributed weights,
# in standard deviations. From 6 bits on the largest weight is where it ends.
_ENDS = {2: 1.22, 3: 1.95, 4: 2.47, 5: 2.93}

# A channel whose weights are this much smaller than the layer's largest gets no finer grid: it could not
# matter in the output, and a bias of its own would not fit 32 bits on a grid that fine.
_FINEST = 2.0**-10

_QUANTIZED = {
    nn.Conv1d: brevitas_nn.QuantConv1d,
    nn.Conv2d: brevitas_nn.QuantConv2d,
    nn.Conv3d: brevitas_nn.QuantConv3d,
    nn.Linear: brevitas_nn.QuantLinear,
}
_CONV_ARGUMENTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
_LINEAR_ARGUMENTS = ("in_features", "out_features")


class WeightRange(nn.Module):
    """Where the grid of each output channel ends, computed from the weights at every pass: no state to load.

    From 6 bits on it ends at the channel's largest weight, below at the optimum for normally distributed
    weights: a 2-bit grid that ends at the largest weight would round nearly all others to zero
    [our decision; the idea of taking the end from the weights' statistics is that of arXiv 1807.06964].
    """

    def __init__(self, bit_width: int) -> None:
        super().__init__()
        self.end = _ENDS.get(bit_width)

    def forward(self, weight: Tensor) -> Tensor:
        """weight: (output channels, everything else) -> (output channels,)."""
        largest = weight.abs().amax(dim=1)
        ends = largest
        if self.end is not None:
            # Over the weights that are not zero: a mask must not shrink the grid of those it leaves.
            count = (weight != 0).sum(dim=1).clamp_min(1)
            deviation = (weight.square().sum(dim=1) / count).clamp_min(1e-24).sqrt()
            ends = torch.minimum(largest, self.end * deviation)
        top = largest.detach().max()
        return torch.maximum(ends, torch.where(top > 0, top * _FINEST, torch.ones_like(top)))


class _Weight(quant.Int8WeightPerChannelFloat):  # type: ignore[misc]
    """Signed, narrow range, one scale per output channel, differentiated through its statistics."""

    scaling_stats_impl = WeightRange


def quantized_layer(layer: nn.Module, bits: int) -> nn.Module:
    """The Brevitas form of a Conv or Linear layer, with its very parameters and an equal mask."""
    return _remade(layer, _QUANTIZED[_base(layer)], weight_quant=_Weight, weight_bit_width=bits)


def plain_layer(layer: nn.Module) -> nn.Module:
    """The torch.nn layer that a Brevitas layer quantizes, with its very parameters and an equal mask."""
    return _remade(layer, _base(layer))


def _base(layer: nn.Module) -> type[nn.Module]:
    return next(kind for kind in _QUANTIZED if isinstance(layer, kind))


def _remade(layer: nn.Module, kind: type[nn.Module], **more: Any) -> nn.Module:
    names = _LINEAR_ARGUMENTS if isinstance(layer, nn.Linear) else _CONV_ARGUMENTS
    arguments = {name: getattr(layer, name) for name in names}
    mask = getattr(layer, "weight_mask", None)
    weight = layer.weight if mask is None else layer.weight_orig
    assert isinstance(weight, Tensor)
    made = kind(**arguments, bias=layer.bias is not None, device=weight.device, dtype=weight.dtype, **more)
    made.weight = weight
    made.bias = layer.bias
    if mask is not None:
        prune.custom_from_mask(made, "weight", mask)  # type: ignore[no-untyped-call]
    return made.train(layer.training)


def quantizer(bits: int, largest: float, is_unsigned: bool) -> nn.Module:
    """Quantizes a value of the network; its scale is learned, from `largest` (the end of the grid) on.

    The logarithm of the scale is what is learned: it cannot change its sign, and a step of the optimizer
    is relative to its size [our decision].
    """
    kind = quant.Uint8ActPerTensorFloatMaxInit if is_unsigned else quant.Int8ActPerTensorFloatMinMaxInit
    ends = {"max_val": largest} if is_unsigned else {"min_val": -largest, "max_val": largest}
    made: nn.Module = brevitas_nn.QuantIdentity(
        act_quant=kind, bit_width=bits, restrict_scaling_type="LOG_FP", return_quant_tensor=False, **ends
    )
    return made


def activation_scale(made: Any) -> Tensor:
    """The scale of a `quantizer`, a scalar. (Brevitas' own accessor may answer from a cache of an export.)"""
    tensor_quant = made.act_quant.fused_activation_quant_proxy.tensor_quant
    scale: Tensor = tensor_quant(torch.zeros(1, device=next(made.parameters()).device))[1]
    return scale.detach()


def weight_scales(layer: Any, weight: Tensor) -> Tensor:
    """The scale of each output channel for this weight (output channels,)."""
    scale: Tensor = layer.weight_quant.tensor_quant(weight)[1]
    return scale.detach().flatten()

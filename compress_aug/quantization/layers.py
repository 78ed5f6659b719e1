"""The Brevitas layers that a quantized model is made of. Importing this file imports Brevitas (2 s)."""

import logging
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from compress_aug.measure import effective_weight
from compress_aug.quantization.dorefa import DorefaWeight, UnitClip
from compress_aug.surgery import device_of

# torch's extension builder, imported by Brevitas, logs a missing GPU as a warning of its own.
_builder_log = logging.getLogger("torch.utils.cpp_extension")
_level = _builder_log.level
_builder_log.setLevel(logging.ERROR)
from brevitas import quant  # type: ignore[import-untyped]  # noqa: E402
from brevitas.inject import ExtendedInjector  # type: ignore[import-untyped]  # noqa: E402
from brevitas.nn.quant_layer import (  # type: ignore[import-untyped]  # noqa: E402
    QuantNonLinearActLayer,
)
from brevitas.proxy import (  # type: ignore[import-untyped]  # noqa: E402
    ActQuantProxyFromInjector,
    WeightQuantProxyFromInjector,
)

from compress_aug.quantization import fast_layers  # noqa: E402

_builder_log.setLevel(_level)

# Where a grid of 2, 3, 4 or 5 bits ends for the least squared error on normally distributed weights,
# in standard deviations. From 6 bits on the largest weight is where it ends.
_ENDS = {2: 1.22, 3: 1.95, 4: 2.47, 5: 2.93}

# A channel whose weights are this much smaller than the layer's largest gets no finer grid: it could not
# matter in the output, and a bias of its own would not fit 32 bits on a grid that fine.
_FINEST = 2.0**-10

_QUANTIZED: dict[type[nn.Module], Any] = {
    nn.Conv1d: fast_layers.QuantConv1d,
    nn.Conv2d: fast_layers.QuantConv2d,
    nn.Conv3d: fast_layers.QuantConv3d,
    nn.Linear: fast_layers.QuantLinear,
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

    end: float | Tensor | None

    def __init__(self, bit_width: int) -> None:
        super().__init__()
        self.end = _ENDS.get(bit_width)

    def forward(self, weight: Tensor) -> Tensor:
        """weight: (output channels, everything else) -> (output channels,); (weights,) -> (1,)."""
        weight = weight.view(1, -1) if weight.ndim == 1 else weight
        largest = weight.abs().amax(dim=1)
        ends = largest if self.end is None else torch.minimum(largest, self.end * deviations(weight))
        top = largest.detach().max()
        return torch.maximum(ends, torch.where(top > 0, top * _FINEST, torch.ones_like(top)))


class LargestWeight(WeightRange):
    """The grid ends at the largest weight whatever its bits: nothing is cut off."""

    def __init__(self) -> None:
        super().__init__(8)


class MeasuredRange(WeightRange):
    """The grid ends a measured number of standard deviations out, (output channels,) or (1,)."""

    def __init__(self, measured: Tensor) -> None:
        nn.Module.__init__(self)
        self.register_buffer("end", measured.clone())


class FixedRange(nn.Module):
    """The grid ends where it was put, whatever becomes of the weights."""

    end: Tensor

    def __init__(self, measured: Tensor) -> None:
        super().__init__()
        self.register_buffer("end", measured.clone())

    def forward(self, weight: Tensor) -> Tensor:
        """weight: (output channels, everything else) -> (output channels,); (weights,) -> (1,)."""
        return self.end


def deviations(rows: Tensor) -> Tensor:
    """The standard deviation about zero of each row (channels, weights) -> (channels,).

    Over the weights that are not zero: a mask must not shrink the grid of those it leaves.
    """
    count = (rows != 0).sum(dim=1).clamp_min(1)
    return (rows.square().sum(dim=1) / count).clamp_min(1e-24).sqrt()


def _init_keeping(proxy: Any, preserve_state_dict: bool = False) -> None:
    """Make the quantizer of a weight anew, as Brevitas does when a mask is folded in, with what the old one held."""
    held = list(proxy.tensor_quant.named_buffers())
    WeightQuantProxyFromInjector.init_tensor_quant(proxy, preserve_state_dict)
    for name, value in held:
        proxy.tensor_quant.get_buffer(name).copy_(value)


class _Weight(quant.Int8WeightPerChannelFloat):  # type: ignore[misc]
    """Signed, narrow range, one scale per output channel, differentiated through its statistics."""

    scaling_stats_impl = WeightRange


class _TensorWeight(quant.Int8WeightPerTensorFloat):  # type: ignore[misc]
    """The same with one scale for the whole layer."""

    scaling_stats_impl = WeightRange


class _DorefaWeight(ExtendedInjector):  # type: ignore[misc]
    """What Brevitas must be told of a quantizer that is none of its own."""

    proxy_class = WeightQuantProxyFromInjector
    tensor_quant = DorefaWeight
    signed = True
    narrow_range = True
    quant_type = "INT"
    float_to_int_impl_type = "ROUND"


def quantized_layer(
    layer: nn.Module, bits: int, *, scales: str = "channel", ends: Tensor | None = None, how: str = "auto"
) -> nn.Module:
    """The Brevitas form of a Conv or Linear layer, with its very parameters and an equal mask.

    scales: "channel" or "tensor"
    how:    where grids end: "auto" (see `WeightRange`), "max", "measured" (at `ends`, and following the weights
            from there) or "fixed" (at `ends`, for good)
    ends:   (output channels,), or (1,) for scales "tensor"
    """
    kind: Any = _Weight if scales == "channel" else _TensorWeight
    given: dict[str, Any] = {"weight_bit_width": bits}
    if how == "max":
        given |= {"weight_scaling_stats_impl": LargestWeight}
    elif how != "auto":
        assert ends is not None
        follows = how == "measured"
        given |= {
            "weight_scaling_stats_impl": MeasuredRange if follows else FixedRange,
            "weight_measured": ends / deviations(weight_rows(layer, scales)) if follows else ends,
        }
    made: Any = _remade(layer, _QUANTIZED[_base(layer)], weight_quant=kind, **given)
    if ends is not None:
        # On the object, because the exporter knows Brevitas' own class only.
        made.weight_quant.init_tensor_quant = MethodType(_init_keeping, made.weight_quant)
    return made  # type: ignore[no-any-return]


def weight_rows(layer: nn.Module, scales: str) -> Tensor:
    """The weights as computed with, one row for each scale: (output channels, rest) or (1, all)."""
    weight = effective_weight(layer)
    return weight.flatten(1) if scales == "channel" else weight.view(1, -1)


def formula_ends(rows: Tensor, bits: int, how: str) -> Tensor:
    """Where the grid of each row (channels, weights) ends by "auto" or "max", (channels,)."""
    ends: Tensor = (WeightRange(bits) if how == "auto" else LargestWeight())(rows)
    return ends


def frozen_layer(layer: nn.Module, bits: int, ends: Tensor, nominal: int) -> nn.Module:
    """The layer with fixed ends (output channels,) of a signed grid of so many bits.

    nominal: the bits that the layer was given: a k-bit DoReFa weight lies on a grid of k + 1 bits
    """
    made: Any = quantized_layer(layer, bits, ends=ends, how="fixed")
    made.nominal_bits = nominal
    made.has_zero = nominal == bits
    return made  # type: ignore[no-any-return]


def dorefa_layer(layer: nn.Module, bits: int, rescale: bool) -> nn.Module:
    """The Brevitas form of a Conv or Linear layer with DoReFa weights, with its very parameters."""
    made: Any = _remade(
        layer,
        _QUANTIZED[_base(layer)],
        weight_quant=_DorefaWeight,
        weight_bit_width=bits + 1,
        weight_bits=bits,
        weight_rescale=rescale,
    )
    made.nominal_bits = bits
    # For pruning, which knows nothing of quantization.
    made.has_zero = False
    return made  # type: ignore[no-any-return]


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


def quantizer(bits: int, largest: float, is_unsigned: bool, learned: bool = True) -> nn.Module:
    """Quantizes a value of the network; its scale is learned, from `largest` (the end of the grid) on.

    The logarithm of the scale is what is learned: it cannot change its sign, and a step of the optimizer
    is relative to its size [our decision]. A scale that is not learned is kept in the same place.
    """
    kind = quant.Uint8ActPerTensorFloatMaxInit if is_unsigned else quant.Int8ActPerTensorFloatMinMaxInit
    ends = {"max_val": largest} if is_unsigned else {"min_val": -largest, "max_val": largest}
    made: Any = fast_layers.QuantIdentity(
        act_quant=kind, bit_width=bits, restrict_scaling_type="LOG_FP", return_quant_tensor=False, **ends
    )
    if not learned:
        made.requires_grad_(False)
        made.act_quant.init_tensor_quant = MethodType(_init_unlearned, made.act_quant)
    return made  # type: ignore[no-any-return]


def _init_unlearned(proxy: Any) -> None:
    """Make a quantizer anew, as Brevitas does when weights are loaded, with a scale that stays unlearned."""
    ActQuantProxyFromInjector.init_tensor_quant(proxy)
    proxy.requires_grad_(False)


def dorefa_quantizer(bits: int) -> nn.Module:
    """Rounds to multiples of 1 / (2^bits - 1) what lies in [0, 1], and cuts the rest off, gradient included.

    Brevitas' own clamp lets the gradient of what rounds to 1 pass: up to half a step above it.
    """
    made: nn.Module = QuantNonLinearActLayer(
        act_impl=UnitClip,
        passthrough_act=True,
        input_quant=None,
        act_quant=quant.Uint8ActPerTensorFloatMaxInit,
        bit_width=bits,
        max_val=1.0,
        scaling_impl_type="const",
        return_quant_tensor=False,
    )
    return made


def activation_scale(made: Any) -> Tensor:
    """The scale of a quantizer, a scalar. (Brevitas' own accessor may answer from a cache of an export.)"""
    tensor_quant = made.act_quant.fused_activation_quant_proxy.tensor_quant
    scale: Tensor = tensor_quant(torch.zeros(1, device=device_of(made)))[1]
    return scale.detach()


def weight_scales(layer: Any, weight: Tensor) -> Tensor:
    """The scale of each output channel for this weight (output channels,)."""
    scale: Tensor = layer.weight_quant.tensor_quant(weight)[1]
    return scale.detach().flatten()

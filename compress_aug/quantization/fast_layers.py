"""Brevitas layers that take a short way through fused fake quantization where it gives the same numbers.

They are the layers of Brevitas in all else: their parts, states, exports and everything unusual are those of the
stock layer. Importing this file imports Brevitas (2 s).
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from brevitas import nn as brevitas_nn  # type: ignore[import-untyped]
from brevitas.core.bit_width import BitWidthConst  # type: ignore[import-untyped]
from brevitas.core.function_wrapper import (  # type: ignore[import-untyped]
    Identity,
    RoundSte,
    ScalarSignedClampMinSte,
    TensorClamp,
    TensorClampSte,
)
from brevitas.core.function_wrapper.misc import Abs  # type: ignore[import-untyped]
from brevitas.core.quant import IntQuant, RescalingIntQuant  # type: ignore[import-untyped]
from brevitas.core.quant.delay import _NoDelay  # type: ignore[import-untyped]
from brevitas.core.restrict_val import FloatRestrictValue  # type: ignore[import-untyped]
from brevitas.core.scaling import (  # type: ignore[import-untyped]
    ConstScaling,
    ParameterScaling,
    StatsFromParameterScaling,
)
from brevitas.core.zero_point import ZeroZeroPoint  # type: ignore[import-untyped]
from torch import Tensor, nn

from compress_aug.quantization.deferred import Deferred, is_entered, rectified
from compress_aug.quantization.fused import Grid, fake_quantize, takes


class QuantIdentity(brevitas_nn.QuantIdentity):  # type: ignore[misc]
    """Quantizes what it reads, and rectifies it first where a ReLU was left to it."""

    def __call__(self, input: Any) -> Any:
        return super().__call__(rectified(input) if is_entered(self) else input)

    def forward(self, input: Any) -> Any:
        """input: float, any shape -> the same shape."""
        values = input.raw if type(input) is Deferred else input
        proxy = self.act_quant
        is_short = (
            _is_plain(values)
            and _is_usual(self)
            and not self.input_quant.is_quant_enabled
            and _is_on(proxy)
            and not proxy.cache_inference_quant_act
        )
        tensor_quant = _inner(proxy) if is_short else None
        if tensor_quant is None or not _is_known(tensor_quant, is_weight=False):
            return super().forward(rectified(input))
        bits = _bits_of(tensor_quant, passes=False)
        grid = bits.grid if values is input else _rectifying(bits.grid, input.high)
        return fake_quantize(values, _scale(tensor_quant.scaling_impl, values, bits), grid)


class _FastLayer:
    """The short way for the layers with weights."""

    def forward(self: Any, input: Any) -> Any:
        weight = quantized_weight(self) if isinstance(input, Tensor) else None
        if weight is None:
            return super().forward(input)  # type: ignore[misc]
        return self.inner_forward_impl(input, weight, self.bias)


class QuantConv1d(_FastLayer, brevitas_nn.QuantConv1d):  # type: ignore[misc]
    """Brevitas' layer with the short way."""


class QuantConv2d(_FastLayer, brevitas_nn.QuantConv2d):  # type: ignore[misc]
    """Brevitas' layer with the short way."""


class QuantConv3d(_FastLayer, brevitas_nn.QuantConv3d):  # type: ignore[misc]
    """Brevitas' layer with the short way."""


class QuantLinear(_FastLayer, brevitas_nn.QuantLinear):  # type: ignore[misc]
    """Brevitas' layer with the short way."""


def quantized_weight(layer: Any) -> Tensor | None:
    """A layer's weight as it computes with it, the shape of the weight, or None if only the long way gives it."""
    proxy = layer.weight_quant
    is_short = (
        _is_plain(layer.weight)
        and _is_usual(layer)
        and _is_on(proxy)
        and not proxy.cache_inference_quant_weight
        and not layer.input_quant.is_quant_enabled
        and not layer.output_quant.is_quant_enabled
        and not layer.bias_quant.is_quant_enabled
    )
    if not is_short or not _is_known(proxy.tensor_quant, is_weight=True):
        return None
    bits = _bits_of(proxy.tensor_quant, passes=True)
    scale = _scale(proxy.tensor_quant.scaling_impl, layer.weight, bits)
    leads = scale.numel() == 1 or scale.shape == (len(layer.weight), *(1,) * (layer.weight.ndim - 1))
    return fake_quantize(layer.weight, scale, bits.grid) if leads else None


def _is_plain(values: Any) -> bool:
    """Whether the values are ones that fused fake quantization works on, and nobody writes the network down."""
    is_written = torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()
    return type(values) in (Tensor, nn.Parameter) and not is_written and takes(values)


def _is_usual(layer: Any) -> bool:
    return not layer.export_mode and not layer.return_quant_tensor


def _is_on(proxy: Any) -> bool:
    is_watched = proxy._forward_hooks or proxy._forward_pre_hooks
    return proxy.is_quant_enabled and not proxy.export_mode and not is_watched


@dataclass(frozen=True)
class _Bits:
    """What follows from the bits of a quantizer, kept because asking a GPU for a number takes long.

    source, version: the tensor that holds the bits, and how often it had been written
    grid:            where values go
    divisor:         what the end of the grid is divided by to have the scale, ()
    restricted:      the same after a learned scale has put it through its own restriction, as it does with its value
    """

    source: Tensor
    version: int
    grid: Grid
    divisor: Tensor
    restricted: Tensor


_known_bits: WeakKeyDictionary[nn.Module, _Bits] = WeakKeyDictionary()


def _bits_of(tensor_quant: Any, passes: bool) -> _Bits:
    source = tensor_quant.msb_clamp_bit_width_impl.bit_width.value
    if source.is_inference():
        # It does not count how often it was written.
        return _read_bits(tensor_quant, source, 0, passes)
    known = _known_bits.get(tensor_quant)
    if known is None or known.source is not source or known.version != source._version:
        known = _read_bits(tensor_quant, source, source._version, passes)
        _known_bits[tensor_quant] = known
    return known


# What is kept for later must not be of inference mode: training could not use it.
@torch.inference_mode(False)
def _read_bits(tensor_quant: Any, source: Tensor, version: int, passes: bool) -> _Bits:
    inner = tensor_quant.int_quant
    grid = Grid(float(inner.min_int(source)), float(inner.max_int(source)), passes=passes)
    divisor = restricted = tensor_quant.int_scaling_impl(source)
    scaling = tensor_quant.scaling_impl
    if type(scaling) is ParameterScaling:
        restricted = scaling.restrict_clamp_threshold(scaling.restrict_threshold_pre(divisor))
    return _Bits(source, version, grid, divisor, restricted)


def _inner(proxy: Any) -> Any:
    fused = proxy.fused_activation_quant_proxy
    return fused.tensor_quant if type(fused.activation_impl) is nn.Identity else None


@cache
def _rectifying(grid: Grid, high: float) -> Grid:
    """The grid for values that are cut off at zero and `high` first."""
    return replace(grid, low=0.0, high=high)


def _is_known(tensor_quant: Any, is_weight: bool) -> bool:
    """Whether the parts are those whose order and arithmetic `fake_quantize` repeats."""
    if type(tensor_quant) is not RescalingIntQuant or tensor_quant.observer_only:
        return False
    # Straight from the dict, at every call: nn.Module's own lookup would take longer than the kernel on few values.
    outer = tensor_quant._modules
    inner = outer["int_quant"]._modules
    return (
        type(outer["int_quant"]) is IntQuant
        and type(outer["zero_point_impl"]) is ZeroZeroPoint
        and type(outer["msb_clamp_bit_width_impl"]) is BitWidthConst
        and type(inner["float_to_int_impl"]) is RoundSte
        and type(inner["tensor_clamp_impl"]) is (TensorClampSte if is_weight else TensorClamp)
        and type(inner["delay_wrapper"].delay_impl) is _NoDelay
        and type(inner["input_view_impl"]) in (Identity, nn.Identity)
        # Other scales of activations collect statistics of what flows by.
        and (is_weight or type(outer["scaling_impl"]) in (ParameterScaling, ConstScaling))
    )


def _scale(scaling: Any, values: Tensor, bits: _Bits) -> Tensor:
    """What Brevitas computes, without finding anew at each call what the end of the grid is divided by."""
    if type(scaling) is ParameterScaling and _is_idle(scaling.restrict_clamp_scale_threshold):
        learned: Tensor = scaling.restrict_clamp_scaling(scaling.value) / bits.restricted
        return learned
    if type(scaling) is StatsFromParameterScaling and (least := _least_end(scaling.stats_scaling_impl)):
        of_statistics: Tensor = _ScaleOfEnds.apply(scaling.parameter_list_stats(values), least, bits.divisor)
        return of_statistics
    computed: Tensor = scaling(values, bits.divisor)
    return computed


def _least_end(restriction: Any) -> float | None:
    """What Brevitas raises the end of a grid to, where all else that it does to one leaves positive numbers alone."""
    parts = restriction._modules
    clamps = parts["clamp_scaling"]._modules.get("clamp_min_ste"), parts["restrict_clamp_scaling"].clamp_ste
    is_usual = (
        type(parts["affine_rescaling"]) is Identity
        and type(parts["restrict_scaling_pre"]) is Abs
        and type(parts["restrict_threshold_pre"]) is Abs
        and type(parts["restrict_clamp_scaling"].restrict_value_impl) is FloatRestrictValue
        and type(parts["restrict_clamp_threshold"].restrict_value_impl) is FloatRestrictValue
        and type(parts["restrict_clamp_threshold"].clamp_ste) is Identity
        and _is_idle(parts["restrict_clamp_scale_threshold"])
        and all(type(clamp) is ScalarSignedClampMinSte for clamp in clamps)
        and clamps[0].min_val == clamps[1].min_val
    )
    return clamps[0].min_val if is_usual else None


class _ScaleOfEnds(torch.autograd.Function):
    """The ends of grids, none of them negative, over what Brevitas divides them by; the gradient passes the clamp."""

    @staticmethod
    def forward(ctx: Any, ends: Tensor, least: float, divisor: Tensor) -> Tensor:
        ctx.save_for_backward(divisor)
        return ends.clamp_min(least).div_(divisor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (divisor,) = ctx.saved_tensors
        return gradient / divisor, None, None


def _is_idle(restriction: Any) -> bool:
    return all(type(part) is Identity for part in restriction._modules.values())

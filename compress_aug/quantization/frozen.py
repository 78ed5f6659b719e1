"""Layers whose weights become integers with fixed scales: those of DoReFa, and those with a batch norm behind them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress_aug.errors import ModelError
from compress_aug.measure import effective_weight
from compress_aug.quantization.bits import is_brevitas
from compress_aug.quantization.dorefa import DorefaWeight
from compress_aug.quantization.folding import foldable_norms
from compress_aug.quantization.graph import QUANTIZABLE
from compress_aug.quantization.layerwise import keep_input
from compress_aug.quantization.ops import Scope
from compress_aug.quantization.sources import input_quantizers
from compress_aug.surgery import LogEntry

# Brevitas takes no end of a grid below 1e-10.
_LEAST_END = 1e-9

_OWN = ("weight", "weight_orig", "bias")

# Half of what int32 holds, as in the file: the other half is for the sum that the bias is added to.
_LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class Frozen:
    """What a layer will compute with: integers * (ends / steps) + bias.

    integers: shape of the weight
    ends:     of the grid of each output channel (output channels,), positive
    bias:     (output channels,), None for a layer without
    bits:     of the signed grid;  nominal: the bits that the layer was given
    norm:     the name of the batch norm that is merged
    zeros:    how many weights were zero before they were rounded
    """

    integers: Tensor
    ends: Tensor
    bias: Tensor | None
    bits: int
    nominal: int
    norm: str | None
    zeros: int

    def logged(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "nominal": self.nominal,
            "bias": self.bias is not None,
            "norm": self.norm,
            "zeros": self.zeros,
        }


@torch.no_grad()
def to_freeze(model: nn.Module) -> dict[str, Frozen]:
    """What each layer that is to be frozen will compute with, by name. Changes nothing."""
    norms = {layer: norm for norm, layer in foldable_norms(model).items()}
    found = {}
    for name, source in input_quantizers(model).items():
        layer: Any = model.get_submodule(name)
        if name in norms or isinstance(layer.weight_quant.tensor_quant, DorefaWeight):
            found[name] = _frozen(layer, model, norms.get(name), source)
    return found


def _frozen(layer: Any, model: nn.Module, norm: str | None, source: nn.Module | None) -> Frozen:
    """The same integers, with the factor of the batch norm in their scale and its sign in theirs.

    A channel whose factor is so small that its bias would not fit 32 bits on the grid gets a grid that is 2, 4,
    8, ... times as coarse, and the nearest integers on it.
    """
    from compress_aug.quantization import layers

    weight = effective_weight(layer)
    value, scale, _, bit_width = layer.weight_quant.tensor_quant(weight)
    bits = int(bit_width)
    integers = (value / scale).round().double().flatten(1)
    factor = torch.ones(len(integers), dtype=torch.float64, device=value.device)
    bias = None if layer.bias is None else layer.bias.double()
    if norm is not None:
        factor, bias = _folded(model.get_submodule(norm), bias)
    steps = 2 ** (bits - 1) - 1
    exact = scale.double().flatten() * factor.abs()
    least = torch.full_like(exact, _LEAST_END / steps)
    if source is not None and bias is not None:
        least = torch.maximum(least, bias.abs() / (layers.activation_scale(source).double() * _LARGEST_BIAS))
    doublings = (least / exact).log2().ceil().clamp_min(0)
    # A factor of zero leaves nothing of the weights: any grid will do.
    final = torch.where(exact > 0, exact * doublings.exp2(), least)
    integers = (integers * (factor.sign() * exact / final)[:, None]).round()
    return Frozen(
        integers.view(value.shape).to(value.dtype),
        (final * steps).to(value.dtype),
        None if bias is None else bias.to(value.dtype),
        bits,
        int(getattr(layer, "nominal_bits", bits)),
        norm,
        int((weight == 0).sum()),
    )


def _folded(norm: Any, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies each channel by, and the bias of a layer that it is merged into."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() if bias is None else bias - norm.running_mean.double()
    shift = shift * factor
    return factor, shift if norm.bias is None else shift + norm.bias.double()


@torch.no_grad()
def put_frozen(model: nn.Module, frozen: dict[str, Frozen]) -> None:
    """Make the layers compute with this, in stock quantizers of Brevitas; merged batch norms become a Scope."""
    from compress_aug.quantization import layers

    untie(model, frozen)
    for name, part in frozen.items():
        made = _restructured(
            model, name, part.bits, part.nominal, part.ends, part.bias is not None, part.norm
        )
        made.zeros_before_rounding = part.zeros
        masked = hasattr(made, "weight_mask")
        weight = made.weight_orig if masked else made.weight
        shape = (-1,) + (1,) * (weight.ndim - 1)
        weight.copy_(part.integers * layers.weight_scales(made, weight).view(shape))
        if masked:
            made.weight = made.weight_orig * made.weight_mask
        if part.bias is not None:
            made.bias.copy_(part.bias)


def replay_frozen(model: nn.Module, entry: LogEntry) -> nn.Module:
    """Give a model the layers of a "finalize" entry; what they compute with comes with the weights.

    Raises ModelError if the model is not the one that the entry was written for.
    """
    frozen, snapped = entry.get("frozen", {}), entry.get("layers", ())
    for name, part in frozen.items():
        layer: Any = dict(model.named_modules()).get(name)
        if not isinstance(layer, QUANTIZABLE) or not is_brevitas(layer):
            raise ModelError(
                f'The log says "finalize" of layer "{name}", but this model has no such quantized layer: '
                "give the model that the checkpoint was made from."
            )
        untie(model, [name])
        ends = torch.ones(len(effective_weight(layer)), device=layer.weight.device, dtype=layer.weight.dtype)
        made = _restructured(model, name, part["bits"], part["nominal"], ends, part["bias"], part["norm"])
        # Logs from before that was told have none.
        made.zeros_before_rounding = part.get("zeros")
    untie(model, [name for name in snapped if name in dict(model.named_modules())], ("bias",))
    return model


def untie(model: nn.Module, names: Iterable[str], keys: Iterable[str] = _OWN) -> None:
    """Give layers parameters of their own where they share them with another, which lies on another grid."""
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    for name in names:
        layer = model.get_submodule(name)
        for key in keys:
            shared = layer._parameters.get(key)
            if shared is not None and holders[id(shared)] > 1:
                holders[id(shared)] -= 1
                setattr(layer, key, nn.Parameter(shared.detach().clone(), shared.requires_grad))


def _restructured(
    model: nn.Module, name: str, bits: int, nominal: int, ends: Tensor, with_bias: bool, norm: str | None
) -> Any:
    from compress_aug.quantization import layers

    layer: Any = model.get_submodule(name)
    weight = layer.weight_orig if hasattr(layer, "weight_mask") else layer.weight
    if with_bias and layer.bias is None:
        zeros = torch.zeros(len(ends), device=weight.device, dtype=weight.dtype)
        layer.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
    # The layer draws initial weights, which are then replaced: whoever trains on must not notice.
    with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []):
        made = layers.frozen_layer(layer, bits, ends, nominal).to(weight.device)
    keep_input(layer, made)
    model.set_submodule(name, made)
    if norm is not None:
        model.set_submodule(norm, Scope())
    return made

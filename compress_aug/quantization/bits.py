"""Read a model's bits: is it quantized, and with how many bits does each layer keep its weights."""

from typing import Any

from torch import nn

from compress_aug.measure import effective_weight, prunable_layers

FLOAT_BITS = 32


def is_quantized(model: nn.Module) -> bool:
    """Whether the model holds a quantized layer or a quantizer.

    >>> is_quantized(nn.Sequential(nn.Linear(2, 2)))
    False
    """
    return any(is_brevitas(module) for module in model.modules())


def is_brevitas(module: nn.Module) -> bool:
    """Whether a module comes from Brevitas; told by its name, because importing Brevitas takes seconds."""
    return any(kind.__module__.startswith("brevitas.") for kind in type(module).__mro__)


def weight_bits(model: nn.Module) -> dict[str, int]:
    """The bits of each Conv and Linear layer's weights by name, 32 for float.

    A DoReFa layer has the bits that it was given, though its odd integers are stored with one more.

    >>> weight_bits(nn.Sequential(nn.Linear(2, 2)))
    {'0': 32}
    """
    return {name: _bits(layer) for name, layer in prunable_layers(model).items()}


def mean_weight_bits(model: nn.Module) -> float:
    """The mean bits of a Conv or Linear weight, each weight counted once; 32 for a model without any.

    >>> mean_weight_bits(nn.Sequential(nn.Linear(2, 2)))
    32.0
    """
    bits = total = 0
    for layer in prunable_layers(model).values():
        count = effective_weight(layer).numel()
        bits += _bits(layer) * count
        total += count
    return bits / total if total else float(FLOAT_BITS)


def unsigned_bits(model: nn.Module) -> set[int]:
    """The bits of the grids between layers that hold nothing negative.

    >>> unsigned_bits(nn.Sequential(nn.Linear(2, 2)))
    set()
    """
    quantizers: list[Any] = [
        module for module in model.modules() if is_brevitas(module) and hasattr(module, "act_quant")
    ]
    proxies = [one.act_quant for one in quantizers if one.act_quant.is_quant_enabled]
    return {int(proxy.bit_width()) for proxy in proxies if not proxy.is_signed}


def _bits(layer: Any) -> int:
    if not is_brevitas(layer) or not layer.weight_quant.is_quant_enabled:
        return FLOAT_BITS
    nominal: int | None = getattr(layer, "nominal_bits", None)
    return int(layer.weight_quant.bit_width()) if nominal is None else nominal

"""What weights weigh at so many bits: bytes of a quantized layer, and of all that stays float beside them."""

from typing import Any

from torch import nn

from compress_aug.measure import effective_weight, prunable_layers
from compress_aug.quantization.bits import is_brevitas, weight_bits
from compress_aug.surgery import masked_layers

_FLOAT_BYTES = 4


def layer_bytes(weights: int, bits: int, scales: int, biases: int) -> int:
    """A quantized layer in bytes: its weights packed at so many bits, float32 scales and int32 biases.

    >>> layer_bytes(weights=1000, bits=3, scales=10, biases=10)
    455
    """
    return -(-weights * bits // 8) + _FLOAT_BYTES * (scales + biases)


def quantized_layers(model: nn.Module) -> dict[str, dict[str, int]]:
    """The layers of a quantized model whose weights are quantized: name -> weights, bits, scales and biases.

    >>> quantized_layers(nn.Sequential(nn.Linear(2, 2)))
    {}
    """
    layers: dict[str, Any] = prunable_layers(model)
    bits = weight_bits(model)
    return {name: _counted(layer, bits[name]) for name, layer in layers.items() if _is_quantized(layer)}


def float_bytes(model: nn.Module) -> int:
    """What a quantized model keeps beside its quantized layers, in bytes: float layers and norms, learned scales.

    >>> float_bytes(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    56
    """
    inside = {
        id(tensor)
        for module in model.modules()
        if is_brevitas(module)
        for tensor in (*module.parameters(), *module.buffers())
    }
    masks = {id(layer.weight_mask) for layer in masked_layers(model).values()}
    floats = {
        id(tensor): tensor.numel()
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and id(tensor) not in inside | masks
    }
    return _FLOAT_BYTES * (sum(floats.values()) + sum(map(_is_quantizer, model.modules())))


def weight_bytes(model: nn.Module) -> int:
    """All that a quantized model must store, in bytes, with k bits for each weight of k bits; no graph, no names.

    What a file takes depends on how it packs: see `compress_aug.deploy.pack_weights`.

    >>> weight_bytes(nn.Sequential(nn.Linear(2, 2)))
    24
    """
    return float_bytes(model) + sum(layer_bytes(**layer) for layer in quantized_layers(model).values())


def _counted(layer: Any, bits: int) -> dict[str, int]:
    from compress_aug.quantization.layers import weight_scales

    weight = effective_weight(layer)
    return {
        "weights": weight.numel(),
        "bits": bits,
        "scales": weight_scales(layer, weight).numel(),
        "biases": 0 if layer.bias is None else layer.bias.numel(),
    }


def _is_quantized(layer: Any) -> bool:
    return is_brevitas(layer) and bool(layer.weight_quant.is_quant_enabled)


def _is_quantizer(module: nn.Module) -> bool:
    """Whether it quantizes what flows between the layers, with one scale."""
    return is_brevitas(module) and type(module).__name__ == "QuantIdentity"

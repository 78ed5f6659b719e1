"""Layers quantized one by one, each with a quantizer on its own input, where there is no graph to lay scales in."""

from typing import Any

import torch
from torch import Tensor, nn

from compress_aug.quantization.bits import is_brevitas
from compress_aug.quantization.graph import QUANTIZABLE, computes_plainly
from compress_aug.surgery import without_fast_attention

INPUT = "input_quantizer"


def read_through(layer: nn.Module, quantizer: nn.Module) -> None:
    """Send the layer's input through a module of its own, which is kept as its part `input_quantizer`."""
    layer.add_module(INPUT, quantizer)
    if _through not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_through)


def _through(layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return layer.input_quantizer(inputs[0]), *inputs[1:]


def keep_input(layer: nn.Module, successor: nn.Module) -> None:
    """Let the layer that takes another's place read through what that one read through."""
    if hasattr(layer, INPUT):
        read_through(successor, getattr(layer, INPUT))


def read_directly(layer: nn.Module) -> None:
    """Undo `read_through`."""
    for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is _through]:
        del layer._forward_pre_hooks[key]
    if hasattr(layer, INPUT):
        delattr(layer, INPUT)


def own_quantizer(layer: nn.Module) -> nn.Module | None:
    """What the layer's input is sent through, if it is a quantizer."""
    quantizer = getattr(layer, INPUT, None)
    return quantizer if isinstance(quantizer, nn.Module) and is_brevitas(quantizer) else None


@torch.no_grad()
def in_order(model: nn.Module, example: Tensor) -> list[str]:
    """The Conv and Linear layers that the example runs through as layers, by name, in the order of their first call.

    A layer whose weight its parent reads does not run as a layer. Runs on a model in evaluation mode.
    """
    seen: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(_noting(seen, name))
        for name, module in model.named_modules()
        if isinstance(module, QUANTIZABLE)
    ]
    try:
        with without_fast_attention():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return list(seen)


def _noting(seen: dict[str, None], name: str) -> Any:
    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
            seen.setdefault(name)

    return note


def why_float(layer: nn.Module) -> str:
    """Why a layer that stands by itself cannot be quantized; "" if it can."""
    if not computes_plainly(layer):
        return "it has a forward of its own"
    masked = hasattr(layer, "weight_mask") and hasattr(layer, "weight_orig")
    if not masked and "weight" not in layer._parameters:
        return "its weight is computed by something other than a mask of torch.nn.utils.prune"
    if hasattr(layer, "bias_mask"):
        return "its bias is masked"
    return ""

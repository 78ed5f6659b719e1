"""The last touch before evaluation and export: biases on the grid that integer kernels add them on."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress_aug.errors import QuantizeError
from compress_aug.measure import effective_weight
from compress_aug.quantization.bits import is_brevitas
from compress_aug.quantization.graph import QUANTIZABLE, QuantizedModel
from compress_aug.quantization.ops import moves
from compress_aug.surgery import record, surgery_log

_LARGEST = 2**31 - 1


@torch.no_grad()
def finalize(model: nn.Module) -> nn.Module:
    """Round each bias to a whole multiple of input scale x weight scale. Changes the model, returns it.

    Runtimes keep the bias of an integer layer as int32 on this grid. Left to them, the rounding moves
    values across the edges of the grids behind it. Call it after the last training step and before the
    accuracy is measured, so that what is measured is what will run. A second call changes nothing.
    Where input or weight is float there is no such grid, and the bias stays: a model without
    quantizers is returned as it is.

    Raises QuantizeError if a bias does not fit 32 bits; the model is then unchanged.

    >>> finalize(nn.Sequential(nn.Linear(2, 2)))
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    if not isinstance(model, QuantizedModel):
        return model
    snapped = {
        name: (layer, snapped_bias(name, layer, source)) for name, layer, source in integer_layers(model)
    }
    for layer, bias in snapped.values():
        layer.bias.copy_(bias)
    if snapped and not any(entry["verb"] == "finalize" for entry in surgery_log(model)):
        record(model, "finalize", layers=list(snapped))
    return model


def snapped_bias(name: str, layer: Any, source: nn.Module) -> Tensor:
    """The layer's bias on its grid (output channels,). Raises QuantizeError if it does not fit 32 bits."""
    from compress_aug.quantization import layers

    scales = layers.weight_scales(layer, effective_weight(layer))
    # The product in float32, as the file will hold it; the division in float64, so that it is exact enough
    # for the result to stay what it is when it is snapped again.
    grid = (layers.activation_scale(source) * scales).double()
    steps = (layer.bias.detach().double() / grid).round()
    if float(steps.abs().max()) > _LARGEST:
        raise QuantizeError(
            f'The bias of layer "{name}" does not fit 32 bits on its grid: '
            "the layer's weights or inputs are vanishingly small beside it."
        )
    snapped: Tensor = (steps * grid).to(layer.bias.dtype)
    return snapped


def integer_layers(model: QuantizedModel) -> Iterator[tuple[str, Any, nn.Module]]:
    """The layers with a bias whose weight and input are quantized: name, layer, quantizer of the input."""
    modules = dict(model.named_modules())
    seen = set()
    for node in model.graph.nodes:
        layer: Any = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, QUANTIZABLE) or not is_brevitas(layer) or layer.bias is None:
            continue
        source = _quantizer_before(node, modules)
        if source is not None and str(node.target) not in seen:
            seen.add(str(node.target))
            yield str(node.target), layer, source


def _quantizer_before(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    source = node.all_input_nodes[0]
    while source.op != "placeholder":
        module = modules.get(str(source.target)) if source.op == "call_module" else None
        if module is not None and is_brevitas(module) and not isinstance(module, QUANTIZABLE):
            return module
        if not moves(source, modules):
            return None
        # All that is moved together lies on one grid, so that any of the inputs will do.
        source = source.all_input_nodes[0]
    return None

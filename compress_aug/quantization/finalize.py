"""The last touch before evaluation and export: batch norms merged, biases on the grid of integer kernels."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compress_aug.errors import QuantizeError
from compress_aug.measure import effective_weight
from compress_aug.quantization.bits import is_quantized
from compress_aug.quantization.frozen import Frozen, put_frozen, to_freeze, untie
from compress_aug.quantization.sources import input_quantizers
from compress_aug.surgery import record, surgery_log

_LARGEST = 2**31 - 1


@torch.no_grad()
def finalize(model: nn.Module) -> nn.Module:
    """Make of a quantized model what a device will run. Changes the model, returns it.

    Batch norms that were kept for training are merged into the quantized layer before them, exactly: the integers
    of a channel stay, but for their sign where the norm's weight is negative, and their scale takes the norm's
    factor. DoReFa weights become integers with fixed scales, in stock quantizers of Brevitas.

    Then each bias is rounded to a whole multiple of input scale x weight scale. Runtimes keep the bias of an
    integer layer as int32 on this grid. Left to them, the rounding moves values across the edges of the grids
    behind it. The coarser these grids are, the further the rounding moves what a layer puts out, by half a step of
    its bias at most: where weights and inputs have 2 bits it costs accuracy, otherwise hardly (docs/stages.md has
    figures).

    Layers that share a weight or a bias get their own wherever one of these two steps changes it.

    Call it after the last training step and before the accuracy is measured, so that what is measured is what
    will run; to train on afterwards, call it on a copy (`surgery.copy_model`). A second call changes nothing.
    Where input or weight is float there is no such grid, and the bias stays: a model without
    quantizers is returned as it is.

    Raises QuantizeError if a bias does not fit 32 bits; the model is then unchanged.

    >>> finalize(nn.Sequential(nn.Linear(2, 2)))
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    if not is_quantized(model):
        return model
    frozen = check_final(model)
    put_frozen(model, frozen)
    untie(model, [name for name, _, _ in integer_layers(model)], ("bias",))
    snapped = []
    for name, layer, source in integer_layers(model):
        layer.bias.copy_(snapped_bias(name, layer, source))
        snapped.append(name)
    if frozen:
        parts = {name: part.logged() for name, part in frozen.items()}
        record(model, "finalize", layers=snapped, frozen=parts)
    elif snapped and not any(entry["verb"] == "finalize" for entry in surgery_log(model)):
        record(model, "finalize", layers=snapped)
    return model


def check_final(model: nn.Module) -> dict[str, Frozen]:
    """What `finalize` will freeze. Raises QuantizeError, having changed nothing, if some bias will not fit."""
    frozen = to_freeze(model)
    for name, layer, source in integer_layers(model):
        # The grid of a frozen layer is made to fit its bias.
        if name not in frozen:
            snapped_bias(name, layer, source)
    return frozen


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


def integer_layers(model: nn.Module) -> Iterator[tuple[str, Any, nn.Module]]:
    """The layers with a bias whose weight and input are quantized: name, layer, quantizer of the input."""
    for name, source in input_quantizers(model).items():
        layer: Any = model.get_submodule(name)
        if source is not None and layer.bias is not None:
            yield name, layer, source

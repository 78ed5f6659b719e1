"""The float twin of a quantized model: same weights, quantizers off."""

from torch import nn

from compress_aug.quantization.bits import is_brevitas, is_quantized
from compress_aug.quantization.graph import QUANTIZABLE
from compress_aug.quantization.layerwise import read_directly
from compress_aug.surgery import copy_model, replace_log


def without_quantizers(model: nn.Module) -> nn.Module:
    """A copy made of plain float layers of torch.nn, with the same weights and masks.

    What a quantized model is compared with for size and latency: batch norms are folded in both. The copy
    has an empty log, because its weights are no checkpoint of the base model. A model without quantizers
    is copied as it is, log included.
    """
    twin = copy_model(model)
    if not is_quantized(twin):
        return twin
    for module in list(twin.modules()):
        if isinstance(module, QUANTIZABLE):
            read_directly(module)
    tops: list[str] = []
    for name, module in twin.named_modules():
        # Parents come before their parts, of which Brevitas layers have many.
        if is_brevitas(module) and not (tops and name.startswith(f"{tops[-1]}.")):
            tops.append(name)
    for name in tops:
        # Brevitas' own switch for its quantizers would not do: with it off, a layer forgets its mask.
        twin.set_submodule(name, _plain(twin.get_submodule(name)))
    replace_log(twin, [])
    return twin


def _plain(module: nn.Module) -> nn.Module:
    from compress_aug.quantization import layers

    return layers.plain_layer(module) if isinstance(module, QUANTIZABLE) else nn.Identity()

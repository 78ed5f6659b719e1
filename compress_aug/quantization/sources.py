"""Which quantizer gives a layer its input."""

from typing import Any

from torch import fx, nn

from compress_aug.quantization.bits import is_brevitas
from compress_aug.quantization.graph import QUANTIZABLE, QuantizedModel
from compress_aug.quantization.layerwise import own_quantizer
from compress_aug.quantization.ops import moves


def input_quantizers(model: nn.Module) -> dict[str, nn.Module | None]:
    """For each Brevitas layer with weights that runs, in the order of execution, what quantizes its input.

    Layers of modules that are quantized layer by layer come last; each has a quantizer of its own.
    """
    modules = dict(model.named_modules())
    found: dict[str, nn.Module | None] = {}
    for node in model.graph.nodes if isinstance(model, QuantizedModel) else ():
        layer: Any = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, QUANTIZABLE) and is_brevitas(layer) and str(node.target) not in found:
            found[str(node.target)] = _quantizer_before(node, modules)
    for name, module in modules.items():
        own = own_quantizer(module)
        if own is not None and is_brevitas(module):
            found[name] = own
    return found


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

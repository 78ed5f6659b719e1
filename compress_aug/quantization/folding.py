"""Fold batch norms into the layer before them, under masks as well."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import fusion

from compress_aug.errors import QuantizeError
from compress_aug.quantization.graph import QUANTIZABLE, QuantizedModel
from compress_aug.quantization.ops import Scope
from compress_aug.quantization.split_norms import is_plain

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold_batch_norms(graph_model: QuantizedModel) -> list[str]:
    """Merge each batch norm into the Conv or Linear layer that alone feeds it; the names of those left float.

    A folded batch norm becomes a `Scope`, so that its name can still be hooked. What a mask of
    `torch.nn.utils.prune` hides is scaled along and stays hidden.
    """
    layers = foldable_norms(graph_model)
    for name, layer in layers.items():
        _fold(graph_model.get_submodule(layer), graph_model.get_submodule(name))
        graph_model.set_submodule(name, Scope())
    return float_norms(graph_model, set(layers))


def foldable_norms(graph_model: nn.Module) -> dict[str, str]:
    """The batch norms that can be merged into a Conv or Linear layer: name -> name of that layer."""
    found: dict[str, str] = {}
    if not isinstance(graph_model, QuantizedModel):
        return found
    calls = [str(node.target) for node in graph_model.graph.nodes if node.op == "call_module"]
    for node, norm in _norms(graph_model):
        layer = _only_source(node, graph_model, calls)
        usable = is_plain(norm) and norm.running_mean is not None
        if layer is not None and usable and calls.count(str(node.target)) == 1:
            found[str(node.target)] = layer
    return found


def float_norms(graph_model: nn.Module, but: Collection[str]) -> list[str]:
    """The names of all batch norms but some, in the order of execution; those in modules without a graph last."""
    names = [str(node.target) for node, _ in _norms(graph_model)]
    names += [name for name, module in graph_model.named_modules() if isinstance(module, _BATCH_NORMS)]
    return [name for name in dict.fromkeys(names) if name not in but]


def _norms(graph_model: nn.Module) -> Iterator[tuple[fx.Node, Any]]:
    for node in graph_model.graph.nodes if isinstance(graph_model, QuantizedModel) else ():
        norm = graph_model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(norm, _BATCH_NORMS):
            yield node, norm


def _only_source(node: fx.Node, graph_model: QuantizedModel, calls: list[str]) -> str | None:
    """The layer whose output this node reads and nobody else, if it is called once only."""
    source = node.all_input_nodes[0]
    while source.op == "call_module" and len(source.users) == 1:
        module = graph_model.get_submodule(str(source.target))
        if isinstance(module, QUANTIZABLE):
            return str(source.target) if calls.count(str(source.target)) == 1 else None
        if not isinstance(module, Scope):
            return None
        source = source.all_input_nodes[0]
    return None


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    name = "weight_orig" if hasattr(layer, "weight_mask") else "weight"
    fuse: Any = fusion.fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fusion.fuse_conv_bn_weights
    statistics = (norm.running_mean, norm.running_var, norm.eps)
    weight, bias = fuse(getattr(layer, name), layer.bias, *statistics, norm.weight, norm.bias)
    # A bias that the fold creates comes without gradient; it must go on learning what the norm's shift did.
    setattr(layer, name, weight)
    layer.bias = bias.requires_grad_(weight.requires_grad)
    if name == "weight_orig":
        layer.weight = weight * layer.weight_mask


def check_weights(graph_model: QuantizedModel) -> None:
    """Refuse layers whose weight is neither a plain parameter nor one masked by `torch.nn.utils.prune`."""
    for node in graph_model.graph.nodes:
        layer: Any = graph_model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(layer, QUANTIZABLE):
            continue
        masked = hasattr(layer, "weight_mask") and hasattr(layer, "weight_orig")
        if not masked and "weight" not in layer._parameters:
            raise QuantizeError(
                f'The weight of layer "{node.target}" is computed by something other than a mask of '
                "torch.nn.utils.prune (weight norm, a parametrization, ...): make it a plain parameter first."
            )
        if hasattr(layer, "bias_mask"):
            raise QuantizeError(
                f'The bias of layer "{node.target}" is masked: only masks on weights are carried over.'
            )

"""Fold batch norms into the layer before them, under masks as well."""

from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import fusion

from compress_aug.errors import QuantizeError
from compress_aug.quantization.graph import QUANTIZABLE, QuantizedModel
from compress_aug.quantization.ops import Scope

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold_batch_norms(graph_model: QuantizedModel) -> list[str]:
    """Merge each batch norm into the Conv or Linear layer that alone feeds it; the names of those left float.

    A folded batch norm becomes a `Scope`, so that its name can still be hooked. What a mask of
    `torch.nn.utils.prune` hides is scaled along and stays hidden.
    """
    calls = [str(node.target) for node in graph_model.graph.nodes if node.op == "call_module"]
    left = []
    for node in graph_model.graph.nodes:
        if node.op != "call_module":
            continue
        norm = graph_model.get_submodule(str(node.target))
        if not isinstance(norm, _BATCH_NORMS):
            continue
        layer = _only_source(node, graph_model, calls)
        if layer is None or norm.running_mean is None or calls.count(str(node.target)) > 1:
            left.append(str(node.target))
            continue
        _fold(layer, norm)
        graph_model.set_submodule(str(node.target), Scope())
    return list(dict.fromkeys(left))


def _only_source(node: fx.Node, graph_model: QuantizedModel, calls: list[str]) -> nn.Module | None:
    """The layer whose output this node reads and nobody else, if it is called once only."""
    source = node.args[0]
    while isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1:
        module = graph_model.get_submodule(str(source.target))
        if isinstance(module, QUANTIZABLE):
            return module if calls.count(str(source.target)) == 1 else None
        if not isinstance(module, Scope):
            return None
        source = source.args[0]
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

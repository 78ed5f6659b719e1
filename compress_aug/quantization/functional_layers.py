"""Functional calls of convolutions and linear maps as layers, where their weight is a plain parameter."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from compress_aug.quantization.graph import QuantizedModel, scope_of
from compress_aug.quantization.ops import Scope

_KINDS: dict[Any, type[nn.Module]] = {
    torch.conv1d: nn.Conv1d,
    torch.conv2d: nn.Conv2d,
    torch.conv3d: nn.Conv3d,
    functional.conv1d: nn.Conv1d,
    functional.conv2d: nn.Conv2d,
    functional.conv3d: nn.Conv3d,
    functional.linear: nn.Linear,
}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def use_layers_for_calls(model: QuantizedModel) -> list[str]:
    """Call a layer instead of `conv2d(x, self.weight, ...)` and the like; says which, and which stay float.

    The layer takes over the parameters and is named after the weight's: "stem_weight" becomes "stem". Calls
    with the same parameters and settings share one.
    """
    notes = []
    made: dict[Any, str] = {}
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target not in _KINDS:
            continue
        given = dict(zip(_ARGUMENTS, node.args, strict=False)) | node.kwargs
        call = f"{getattr(node.target, '__name__', node.target)} in {scope_of(node)}"
        reason = _why_call(model, given)
        if reason:
            notes.append(f"{call} stays float: {reason}")
            continue
        key = node.target, *(str(given.get(name)) for name in _ARGUMENTS[1:])
        with model.graph.inserting_before(node):
            called = model.graph.call_module(made.get(key, ""), (given["input"],))
        node.replace_all_uses_with(called)
        model.graph.erase_node(node)
        if key not in made:
            layer = _layer(model, _KINDS[node.target], given)
            _forget_unused(model, given["weight"], given.get("bias"))
            made[key] = called.target = _free_path(model, str(given["weight"].target))
            model.add_submodule(made[key], layer)
            notes.append(f'{call} becomes the layer "{made[key]}"')
        else:
            _forget_unused(model, given["weight"], given.get("bias"))
    model.recompile()
    return notes


def _why_call(model: QuantizedModel, given: dict[str, Any]) -> str:
    for name in ("weight", "bias"):
        node = given.get(name)
        if node is None:
            continue
        is_stored = isinstance(node, fx.Node) and node.op == "get_attr"
        if not is_stored or not isinstance(_value(model, node), nn.Parameter):
            return f"its {name} is computed and no plain parameter"
    if any(isinstance(given.get(name), fx.Node) for name in _ARGUMENTS[3:]):
        return "its settings are computed"
    return ""


def _value(model: QuantizedModel, node: fx.Node) -> Any:
    return operator.attrgetter(str(node.target))(model)


def _layer(model: QuantizedModel, kind: type[nn.Module], given: dict[str, Any]) -> nn.Module:
    weight = _value(model, given["weight"])
    bias = None if given.get("bias") is None else _value(model, given["bias"])
    # On "meta", because its initial weights are not wanted, nor the random numbers for them.
    options: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    made: Any
    if kind is nn.Linear:
        made = kind(weight.shape[1], weight.shape[0], **options)
    else:
        options |= {name: given[name] for name in _ARGUMENTS[3:] if name in given}
        inputs = weight.shape[1] * given.get("groups", 1)
        made = kind(inputs, weight.shape[0], tuple(weight.shape[2:]), **options)
    made.weight, made.bias = weight, bias
    made.train(model.training)
    return made  # type: ignore[no-any-return]


def _free_path(model: QuantizedModel, weight: str) -> str:
    """A name for the layer of this weight that nothing in the model has."""
    path = weight.removesuffix("weight").rstrip("._") or "layer"
    owner = _found(model, path)
    if isinstance(owner, nn.Module) and (isinstance(owner, Scope) or type(owner) is nn.Module):
        # The weight's own module, of which the graph has left the name only.
        path = f"{path}.layer"
    while _found(model, path) is not None:
        path += "_"
    return path


def _found(model: nn.Module, path: str) -> Any:
    thing: Any = model
    for part in path.split("."):
        thing = getattr(thing, part, None)
    return thing


def _forget_unused(model: QuantizedModel, *nodes: fx.Node | None) -> None:
    for node in nodes:
        if node is None or node.users:
            continue
        target = str(node.target)
        model.graph.erase_node(node)
        if not any(other.op == "get_attr" and other.target == target for other in model.graph.nodes):
            owner, _, name = target.rpartition(".")
            delattr(model.get_submodule(owner), name)

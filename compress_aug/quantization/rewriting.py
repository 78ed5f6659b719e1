"""Edits of a traced graph: same outputs, in a form that can be quantized and exported well."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from compress_aug.quantization.ops import Scope

Shapes = dict[fx.Node, torch.Size]

_OUT_OF_PLACE: dict[Any, Any] = {
    torch.relu_: torch.relu,
    torch.clamp_: torch.clamp,
    torch.sigmoid_: torch.sigmoid,
    functional.relu_: functional.relu,
    functional.hardtanh_: functional.hardtanh,
    functional.elu_: functional.elu,
    functional.leaky_relu_: functional.leaky_relu,
}


def _out_of_place(target: Any) -> Any:
    """The form of an operation that leaves its input alone; None if that is what it does, or if it has none."""
    if not isinstance(target, str):
        return _OUT_OF_PLACE.get(target)
    is_in_place = target.endswith("_") and not target.endswith("__") and target != "requires_grad_"
    return target[:-1] if is_in_place and hasattr(torch.Tensor, target[:-1]) else None


def free_name(model: nn.Module, name: str) -> str:
    """`name`, with as many underscores as make it new to the model.

    >>> free_name(nn.Linear(2, 2), "bias")
    'bias_'
    """
    while hasattr(model, name):
        name += "_"
    return name


def insert_after(model: fx.GraphModule, nodes: tuple[fx.Node, ...], name: str, module: nn.Module) -> None:
    """Send the values of each node through one module, before any other node reads them.

    The graph is not compiled anew: that takes as long for one module as for all.
    """
    model.add_submodule(name, module)
    for node in nodes:
        with model.graph.inserting_after(node):
            called = model.graph.call_module(name, (node,))
        _replace_reads(node, called)


def use_module_dropout(model: fx.GraphModule, node: fx.Node) -> None:
    """Call a module instead of `dropout`: a traced call has a frozen mode, a module the model's."""
    name = free_name(model, node.name)
    probability: Any = node.kwargs.get("p", 0.5)
    model.add_submodule(name, nn.Dropout(probability))
    with model.graph.inserting_after(node):
        called = model.graph.call_module(name, (node.all_input_nodes[0],))
    node.replace_all_uses_with(called)
    model.graph.erase_node(node)


def write_out_of_place(model: fx.GraphModule) -> None:
    """Give every in-place operation its out-of-place form, which later readers of the same value then read.

    A quantizer makes a new tensor, so that a write into the old one would be lost to other readers.
    """
    modules = dict(model.named_modules())
    order = {node: place for place, node in enumerate(model.graph.nodes)}
    for node in model.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        in_place = node.kwargs.get("inplace") or getattr(module, "inplace", False)
        other = _out_of_place(node.target) if node.op in ("call_function", "call_method") else None
        if not in_place and other is None:
            continue
        node.target = other or node.target
        if "inplace" in node.kwargs:
            node.update_kwarg("inplace", False)
        written = node.all_input_nodes[0]
        for reader in list(written.users):
            if order[reader] > order[node]:
                reader.replace_input_with(written, node)
    for module in modules.values():
        if hasattr(module, "inplace"):
            module.inplace = False


def use_pooling_for_means(model: fx.GraphModule, shapes: Shapes) -> None:
    """Write a mean over height and width as global average pooling, for which integer kernels exist."""
    for node in list(model.graph.nodes):
        if node.target not in (torch.mean, "mean") or len(shapes.get(node.all_input_nodes[0], ())) != 4:
            continue
        axes = _argument(node, 1, "dim", None)
        if not isinstance(axes, tuple | list) or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        source = node.all_input_nodes[0]
        with model.graph.inserting_after(node):
            made = model.graph.call_function(functional.adaptive_avg_pool2d, (source, 1))
        if not _argument(node, 2, "keepdim", False):
            with model.graph.inserting_after(made):
                made = model.graph.call_function(torch.flatten, (made, 1))
        node.replace_all_uses_with(made)
        model.graph.erase_node(node)
    model.recompile()


def use_products_for_silu(model: fx.GraphModule) -> None:
    """Write x * sigmoid(x) as the two operations that it is, for each of which integer kernels exist.

    In one piece it has none, and what it reads and writes would be turned into floats and back. A module keeps its
    name, under which hooks see what it gives.
    """
    modules = dict(model.named_modules())
    for node in list(model.graph.nodes):
        is_module = node.op == "call_module" and type(modules[str(node.target)]) is nn.SiLU
        if not is_module and not (node.op == "call_function" and node.target is functional.silu):
            continue
        [source] = node.all_input_nodes
        with model.graph.inserting_before(node):
            gate = model.graph.call_function(torch.sigmoid, (source,))
            made = model.graph.call_function(operator.mul, (source, gate))
            if is_module:
                model.set_submodule(str(node.target), Scope())
                made = model.graph.call_module(str(node.target), (made,))
        node.replace_all_uses_with(made)
        model.graph.erase_node(node)
    model.recompile()


def use_splits_for_chunks(model: fx.GraphModule, shapes: Shapes) -> None:
    """Write chunks of the channels as splits of known sizes: ONNX would compute the sizes at every run."""
    for node in list(model.graph.nodes):
        if node.target not in (torch.chunk, "chunk") or node.all_input_nodes[0] not in shapes:
            continue
        number, axis = _argument(node, 1, "chunks", None), _argument(node, 2, "dim", 0)
        if not isinstance(number, int) or axis != 1:
            continue
        total = shapes[node.all_input_nodes[0]][1]
        largest = -(-total // number)
        sizes = [min(largest, total - start) for start in range(0, total, largest)]
        with model.graph.inserting_after(node):
            made = model.graph.call_function(torch.split, (node.all_input_nodes[0], sizes, 1))
        node.replace_all_uses_with(made)
        model.graph.erase_node(node)
    model.recompile()


def _replace_reads(node: fx.Node, by: fx.Node) -> None:
    def is_another(user: fx.Node) -> bool:
        return user is not by

    node.replace_all_uses_with(by, delete_user_cb=is_another)


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default

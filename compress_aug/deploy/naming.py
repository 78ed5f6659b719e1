"""Nodes of an ONNX graph called by the module of the torch model that they come from."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import NodeProto
from torch import Tensor, nn

from compress_aug.deploy.graph import Graph
from compress_aug.deploy.grid import QUANTIZE

# Operators with a weight, as the exporter writes convolutions and linear layers.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Where a Brevitas layer keeps its quantizers of activations.
_PROXIES = ("act_quant", "input_quant", "output_quant")

_SAID = {
    "Add": "the sum",
    "Mul": "the product",
    "MatMul": "the product",
    "Concat": "the concatenation",
    **dict.fromkeys(("Split", "Slice"), "the split"),
    **dict.fromkeys(("GlobalAveragePool", "AveragePool", "ReduceMean", "MaxPool"), "the pooling"),
    **dict.fromkeys(("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish"), "the activation"),
}


def name_nodes(model: onnx.ModelProto, module: nn.Module, example: Tensor) -> None:
    """Give layers and activation quantizers in a graph the names of their modules; a second call gets `#2`.

    model:   as the exporter wrote it, which names a node by the last part of its module's name only
    module:  what it was written from
    example: float (N, C, H, W)

    Both lists, of the nodes and of the modules as they are called, are in the order of execution. A node that
    no module stands behind, such as the product in a functional call, keeps the exporter's name, which begins
    with a slash.
    """
    layers, quantizers = _calls(module, example)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    quantized = [n for n in model.graph.node if n.op_type == QUANTIZE and n.input[0] not in constants]
    _give([node for node in model.graph.node if node.op_type in WEIGHTED], layers)
    _give(quantized, quantizers)


def _calls(module: nn.Module, example: Tensor) -> tuple[list[str], list[str]]:
    """The names of weighted layers and of activation quantizers, in the order of their calls."""
    layers: list[str] = []

    def called(layer: nn.Module, inputs: Any, output: Any) -> None:
        layers.append(names[layer])

    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    names: dict[nn.Module, str] = {
        layer: name for name, layer in module.named_modules() if isinstance(layer, kinds)
    }
    handles = [layer.register_forward_hook(called) for layer in names]
    try:
        with torch.no_grad(), quantized_values(module) as values:
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return _numbered(layers), list(values)


@contextmanager
def quantized_values(module: nn.Module) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What the activation quantizers of a Brevitas model give while it runs: name -> value and scale.

    In the order of their calls; the second call of a quantizer is called `NAME#2`. Empty for a float model.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    counts: dict[str, int] = {}

    def keep(proxy: nn.Module, inputs: Any, output: Any) -> None:
        # A proxy that quantizes nothing hands its input on.
        if not isinstance(output, Tensor) and getattr(output, "scale", None) is not None:
            name = names[proxy]
            counts[name] = counts.get(name, 0) + 1
            # A copy, because what reads it may work in place.
            found[_numbers(name, counts[name])] = (output.value.detach().clone(), output.scale.detach())

    names = {
        proxy: name.removesuffix(".act_quant")
        for name, proxy in module.named_modules()
        if name.rpartition(".")[2] in _PROXIES
    }
    handles = [proxy.register_forward_hook(keep) for proxy in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _numbered(names: list[str]) -> list[str]:
    return [_numbers(name, names[: place + 1].count(name)) for place, name in enumerate(names)]


def _numbers(name: str, call: int) -> str:
    return name if call == 1 else f"{name}#{call}"


def _give(nodes: list[NodeProto], names: list[str]) -> None:
    """Name each node by the next module that its scope fits."""
    place = 0
    for node in nodes:
        scopes = _scopes(node)
        for later in range(place, len(names)):
            if _fits(names[later], scopes):
                node.name, place = names[later], later + 1
                break


def _scopes(node: NodeProto) -> list[str]:
    """The parts of the exporter's name before the operator: ["layer1", "layer1.0", "conv1"]."""
    parts = [part for part in node.name.split("/") if part][:-1]
    for proxy in _PROXIES:
        if proxy in parts:
            end = parts.index(proxy)
            return parts[:end] if proxy == "act_quant" else parts[: end + 1]
    return parts


def _fits(name: str, scopes: list[str]) -> bool:
    """Whether the exporter would call a module of this name like the last of these scopes."""
    if not scopes:
        return False
    # It goes back to the last part that is no number: "a.conv" becomes conv, "a.layers.0" layers.0.
    parts = name.partition("#")[0].split(".")
    start = max((place for place, part in enumerate(parts) if not part.isnumeric()), default=0)
    short = ".".join(parts[start:])
    # It numbers those that are then called alike.
    return re.fullmatch(re.escape(short) + r"(_\d+)?", scopes[-1]) is not None


def is_module(node: NodeProto) -> bool:
    """Whether the node bears the name of a module."""
    return bool(node.name) and not node.name.startswith("/")


def spoken(graph: Graph, node: NodeProto) -> str:
    """What to call a node: its module, "stem", or else what it does and behind which layer, "the sum after stem"."""
    if node.op_type not in (QUANTIZE, "Clip") and is_module(node):
        return node.name
    what = _SAID.get(node.op_type, node.op_type)
    before = layer_before(graph, node)
    return what if before is None else f"{what} after {before.name}"


def layer_before(graph: Graph, node: NodeProto) -> NodeProto | None:
    """The layer with a module's name that computes what the node reads; of several, the last one to run."""
    pending, seen = list(node.input), set()
    found: list[NodeProto] = []
    while pending:
        tensor = pending.pop()
        maker = graph.maker(tensor)
        if maker is None or tensor in seen:
            continue
        seen.add(tensor)
        if is_module(maker) and maker.op_type not in (QUANTIZE, "Clip"):
            found.append(maker)
        else:
            pending += maker.input
    # Only nodes with names: to compare each with all nodes would take long.
    order = {
        node.output[0]: place for place, node in enumerate(graph.nodes(*{node.op_type for node in found}))
    }
    return max(found, key=lambda node: order[node.output[0]], default=None)

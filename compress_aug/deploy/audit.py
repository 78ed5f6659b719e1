"""Which layers of a file really run on integers: read off the graph that the runtime makes of it."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto

from compress_aug.deploy.graph import Graph
from compress_aug.deploy.grid import DEQUANTIZE, QUANTIZE, grid_of
from compress_aug.deploy.naming import spoken
from compress_aug.deploy.one_sided import is_plain
from compress_aug.deploy.openvino_runtime import OpenVinoSession
from compress_aug.deploy.runtime import Session
from compress_aug.targets import Runtime

# The runtime's own names of layers whose arithmetic is on integers, and of those that multiply or add floats.
_INTEGER = {
    *("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd"),
    *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention"),
}
_MULTIPLIES = {
    *("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
}
# The operators that they are written as.
_WRITTEN = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")
_FLOAT = {*_MULTIPLIES, "Add", "Attention", "MultiHeadAttention"}


@dataclass(frozen=True)
class Audit:
    """How many layers run on integers and how many on floats, and why each of the latter does.

    Counted are convolutions, linear layers, matrix products and additions of two computed tensors.

    stayed_float: for each float layer the name of its module (or what it does, and behind which module), the
                  runtime's operator, and a short reason
    """

    integer_layers: int
    float_layers: int
    stayed_float: tuple[tuple[str, str, str], ...]


def audit(path: Path, *, runtime: Runtime = "onnxruntime") -> Audit:
    """Let the runtime optimize a file for this machine and count what it made of the layers.

    Another machine may have other kernels: audit there what must be known there.

    Raises ExportError if the file is missing or cannot be loaded, MissingPart if the runtime is not installed.

    >>> audit(Path("model.onnx")).integer_layers
    0
    """
    if runtime == "openvino":
        return _openvino_audit(path)
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        Session(path, optimized=optimized)
        graph = Graph(onnx.load(str(optimized)))
    written = _Written(path)
    integer = graph.nodes(*_INTEGER)
    stayed = [node for node in graph.nodes(*_FLOAT) if not _adds_a_constant(graph, node)]
    return Audit(
        integer_layers=len(integer),
        float_layers=len(stayed),
        stayed_float=tuple(
            (written.name(graph, node), node.op_type, _reason(graph, written, node)) for node in stayed
        ),
    )


def _openvino_audit(path: Path) -> Audit:
    became, graph = OpenVinoSession(path).layers(), Graph(onnx.load(str(path)))
    stayed, integers = [], 0
    for node in graph.nodes(*_WRITTEN):
        if _adds_a_constant(graph, node):
            continue
        kind, float_input = became.get(node.name, (node.op_type, ""))
        if float_input is None:
            integers += 1
        else:
            told = f"reads {float_input} in OpenVINO" if float_input else "OpenVINO tells nothing of it"
            stayed.append((spoken(graph, node), kind, told))
    return Audit(integers, len(stayed), tuple(stayed))


def _adds_a_constant(graph: Graph, node: NodeProto) -> bool:
    # The bias of a linear layer, or part of an activation function: not a layer of its own.
    return node.op_type == "Add" and any(graph.constant(tensor) is not None for tensor in node.input)


class _Written:
    """The file before the runtime changed it: what its layers are called, and what they read."""

    def __init__(self, path: Path) -> None:
        self._graph = Graph(onnx.load(str(path)))
        self._layers = {node.name: node for node in self._graph.nodes(*_WRITTEN) if node.name}

    def layer(self, node: NodeProto) -> NodeProto | None:
        """The layer that a node of the runtime was made from."""
        # The runtime keeps the name, or adds what it did: "fc/MatMulAddFusion".
        fits = [name for name in self._layers if node.name == name or node.name.startswith(f"{name}/")]
        return self._layers[max(fits, key=len)] if fits else None

    def name(self, graph: Graph, node: NodeProto) -> str:
        layer = self.layer(node)
        return spoken(graph, node) if layer is None else spoken(self._graph, layer)

    def has_integer_weight(self, node: NodeProto) -> bool:
        """Whether the weight comes out of integers in the file, whatever the runtime made of it."""
        layer = self.layer(node)
        if layer is None:
            return False
        return _quantized(self._graph, layer.input[1]) or is_plain(self._graph, layer.input[1])

    def has_float_bias(self, node: NodeProto) -> bool:
        layer = self.layer(node)
        if layer is None or layer.op_type not in ("Conv", "Gemm") or len(layer.input) < 3:
            return False
        return not _quantized(self._graph, layer.input[2])


def _reason(graph: Graph, written: _Written, node: NodeProto) -> str:
    """What keeps a layer from being an integer one: the first of its wires that carries floats."""
    weighted = node.op_type in _MULTIPLIES
    if weighted and not _quantized(graph, node.input[1]) and not written.has_integer_weight(node):
        maker = graph.maker(node.input[1])
        if maker is None:
            return "its weight is not quantized"
        return f"its second input is not quantized: it comes in float from {_call(graph, written, maker)}"
    inputs = node.input[:1] if weighted else node.input[:2]
    for tensor in inputs:
        if not _quantized(graph, tensor):
            return _float_input(graph, written, tensor, "its input" if weighted else "an input")
    return _float_output(graph, written, node) or _mixed(graph, node, inputs) or _no_kernel(written, node)


def _float_input(graph: Graph, written: _Written, tensor: str, what: str) -> str:
    maker = graph.maker(tensor)
    if maker is None:
        return f"{what} is not quantized: it is the model's own input"
    return f"{what} is not quantized: it comes in float from {_call(graph, written, maker)}"


def _float_output(graph: Graph, written: _Written, node: NodeProto) -> str:
    """Why the output does not go to one quantizer; "" if it does."""
    readers = graph.readers(node.output[0])
    others = [reader for reader in readers if reader.op_type != QUANTIZE]
    if others:
        return f"its output goes in float to {_call(graph, written, others[0])}, before it is quantized"
    if graph.is_output(node.output[0]):
        # The runtime's kernels for linear layers may end in float, the other ones not.
        return "the model ends with it, in float"
    if len(readers) > 1:
        return f"its output is quantized on {len(readers)} grids, and a kernel has one"
    if readers:
        grid = grid_of(graph, readers[0])
        if grid is None or grid.scale.ndim:
            return "its output is quantized with more than one scale"
    return ""


def _mixed(graph: Graph, node: NodeProto, inputs: Sequence[str]) -> str:
    """Signed activations, or signed beside unsigned ones, for which kernels are missing; "" if all are uint8."""
    nodes = [graph.maker(tensor, DEQUANTIZE) for tensor in inputs] + graph.readers(node.output[0])
    grids = [grid for maker in nodes if maker is not None and (grid := grid_of(graph, maker)) is not None]
    kinds = sorted({str(grid.zero_point.dtype) for grid in grids})
    if len(kinds) > 1:
        return f"what it reads and writes is {' and '.join(kinds)}, and its kernel wants one of them"
    return f"what it reads and writes is {kinds[0]}, its kernel wants uint8" if kinds == ["int8"] else ""


def _no_kernel(written: _Written, node: NodeProto) -> str:
    if written.has_float_bias(node):
        return "its bias is float"
    return "all of it is quantized, but this runtime has no integer kernel for it"


def _call(graph: Graph, written: _Written, node: NodeProto) -> str:
    """The operator, and its layer or the one before it."""
    name = written.name(graph, node)
    return f"{node.op_type} ({name})" if name != node.op_type else name


def _quantized(graph: Graph, tensor: str) -> bool:
    return graph.maker(tensor, DEQUANTIZE) is not None

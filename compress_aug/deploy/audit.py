"""Which layers of a file really run on integers: read off the graph that the runtime makes of it."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto

from compress_aug.deploy.graph import Graph
from compress_aug.deploy.grid import DEQUANTIZE, QUANTIZE
from compress_aug.deploy.runtime import Session

# The runtime's own names of layers whose arithmetic is on integers, and of those that multiply or add floats.
_INTEGER = {
    *("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat"),
    *("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention"),
}
_MULTIPLIES = {
    *("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
}
_FLOAT = {*_MULTIPLIES, "Add", "Attention", "MultiHeadAttention"}


@dataclass(frozen=True)
class Audit:
    """How many layers run on integers and how many on floats, and why each of the latter does.

    Counted are convolutions, linear layers, matrix products and additions of two computed tensors.

    stayed_float: for each float layer its name, its operator and a short reason
    """

    integer_layers: int
    float_layers: int
    stayed_float: tuple[tuple[str, str, str], ...]


def audit(path: Path) -> Audit:
    """Let the runtime optimize a file for this machine and count what it made of the layers.

    Another machine may have other kernels: audit there what must be known there.

    Raises ExportError if the file is missing or cannot be loaded.

    >>> audit(Path("model.onnx")).integer_layers
    0
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        Session(path, optimized=optimized)
        graph = Graph(onnx.load(str(optimized)))
    integer = graph.nodes(*_INTEGER)
    stayed = [node for node in graph.nodes(*_FLOAT) if not _adds_a_constant(graph, node)]
    return Audit(
        integer_layers=len(integer),
        float_layers=len(stayed),
        stayed_float=tuple((node.name, node.op_type, _reason(graph, node)) for node in stayed),
    )


def _adds_a_constant(graph: Graph, node: NodeProto) -> bool:
    # The bias of a linear layer, or part of an activation function: not a layer of its own.
    return node.op_type == "Add" and any(graph.constant(tensor) is not None for tensor in node.input)


def _reason(graph: Graph, node: NodeProto) -> str:
    """What keeps a layer from being an integer one: the first of its wires that carries floats."""
    weighted = node.op_type in _MULTIPLIES
    if weighted and not _quantized(graph, node.input[1]):
        computed = graph.constant(node.input[1]) is None
        return "its second input is not quantized" if computed else "its weight is not quantized"
    inputs = node.input[:1] if weighted else node.input[:2]
    if not all(_quantized(graph, tensor) for tensor in inputs):
        return "its input is not quantized" if weighted else "an input is not quantized"
    readers = graph.readers(node.output[0])
    if len(readers) != 1 or readers[0].op_type != QUANTIZE:
        if not readers:
            return "the model ends with it, unquantized"
        return f"its output goes to {readers[0].op_type} unquantized"
    return "this runtime has no integer kernel for it"


def _quantized(graph: Graph, tensor: str) -> bool:
    return graph.maker(tensor, DEQUANTIZE) is not None

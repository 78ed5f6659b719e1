"""Layers with one quantized side: their integers become floats by plain arithmetic, which the runtime leaves alone."""

from typing import Any

import numpy as np
from onnx import NodeProto

from compress_aug.deploy.graph import Graph
from compress_aug.deploy.grid import DEQUANTIZE, grid_of

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def plain_one_sided(graph: Graph) -> int:
    """Dequantize by Cast, Sub and Mul where a layer has floats on its other side; returns in how many places.

    From a DequantizeLinear in front of a layer ONNX Runtime concludes that the layer may compute with integers: it
    quantizes float weights that lie between quantizers, and the float inputs of a linear layer with integer weights,
    on grids of its own. Neither is what the model does. Of weights the arithmetic is on constants, which a runtime
    works out while it loads the file.

    Exact: a DequantizeLinear computes (integer - zero point) * scale in float32 as well.
    """
    changed = 0
    for layer in graph.nodes(*_LAYERS):
        sides = [_dequantized(graph, tensor) for tensor in layer.input[:2]]
        found = [(place, side) for place, side in enumerate(sides) if side is not None]
        if len(found) != 1:
            continue
        place, (dequantize, transpose) = found[0]
        plain = _computed(graph, dequantize)
        if plain is None:
            continue
        if transpose is not None:
            order = next((list(part.ints) for part in transpose.attribute if part.name == "perm"), None)
            kept: dict[str, Any] = {} if order is None else {"perm": order}
            plain = graph.add_node("Transpose", [plain], layer.input[place], **kept)
        graph.rewire(layer, place, plain)
        changed += 1
    return changed


def _dequantized(graph: Graph, tensor: str) -> tuple[NodeProto, NodeProto | None] | None:
    """The DequantizeLinear that a layer reads, and the Transpose between the two, as linear weights have it."""
    transpose = graph.maker(tensor, "Transpose")
    dequantize = graph.maker(tensor if transpose is None else transpose.input[0], DEQUANTIZE)
    return None if dequantize is None else (dequantize, transpose)


def _computed(graph: Graph, dequantize: NodeProto) -> str | None:
    """The tensor of the floats that a DequantizeLinear makes, by arithmetic; None where its grid is not constant."""
    grid = grid_of(graph, dequantize)
    if grid is None:
        return None
    near = dequantize.output[0]
    scale, zero_point = grid.scale.astype(np.float32), grid.zero_point.astype(np.float32)
    if scale.ndim:
        values = graph.constant(dequantize.input[0])
        axes = _axes(graph, dequantize) if values is None else values.ndim
        if axes is None:
            return None
        shape = [1] * axes
        shape[grid.axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    floats = graph.add_node("Cast", [dequantize.input[0]], near, to=1)
    if zero_point.any():
        floats = graph.add_node("Sub", [floats, graph.add_constant(zero_point, near)], near)
    return graph.add_node("Mul", [floats, graph.add_constant(scale, near)], near)


def _axes(graph: Graph, dequantize: NodeProto) -> int | None:
    """How many axes packed weights have: what they are unpacked into says so."""
    reshape = graph.maker(dequantize.input[0], "Reshape")
    shape = None if reshape is None else graph.constant(reshape.input[1])
    return None if shape is None else int(shape.size)


def is_plain(graph: Graph, tensor: str) -> bool:
    """Whether a tensor comes out of integers by the arithmetic of `plain_one_sided`."""
    steps: tuple[str, ...] = ("Transpose", "Mul", "Sub", "Cast")
    maker = graph.maker(tensor)
    while maker is not None and maker.op_type in steps:
        if maker.op_type == "Cast":
            return True
        # Each step is written once, in this order.
        steps = steps[steps.index(maker.op_type) + 1 :]
        maker = graph.maker(maker.input[0])
    return False

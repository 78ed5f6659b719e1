"""Activations as TensorRT takes them: signed, with zero points 0, and nothing between a quantizer's two halves."""

import numpy as np
from onnx import NodeProto

from compress_aug.deploy.graph import Graph
from compress_aug.deploy.grid import DEQUANTIZE, QUANTIZE, Grid, clip_bounds, grid_of
from compress_aug.errors import ExportError


def signed_activations(graph: Graph) -> int:
    """Turn every QuantizeLinear -> Clip -> DequantizeLinear of activations into int8 with zero point 0, without Clip.

    Values that cannot be negative keep their integers if these are at most 127 (7 bits). A Clip of the integers
    becomes a Clip of the floats before them, at the ends of the grid: rounding never changes the order of two
    numbers, so that both are the same.

    Returns how many quantizers were rewritten.

    Raises ExportError for integers that int8 cannot hold, with what to do.
    """
    changed = 0
    for quantize in graph.nodes(QUANTIZE):
        grid = grid_of(graph, quantize)
        if graph.constant(quantize.input[0]) is not None:
            continue
        if grid is None or grid.scale.ndim or int(grid.zero_point) != 0:
            raise ExportError(
                f"TensorRT takes one scale and the zero point 0, which {_named(quantize)} does not have: "
                "choose another target or form='onnxruntime'."
            )
        ends, bounds = _ends(graph, quantize, grid)
        if bounds[1] > 127:
            raise ExportError(
                f"TensorRT takes signed integers, in which values that are never negative have 7 bits, but "
                f"{_named(quantize)} counts up to {bounds[1]}: quantize with activations: 7 (and first_and_last: 7), "
                "or choose another target or form='onnxruntime'."
            )
        _bound_floats(graph, quantize, grid, bounds)
        for node in (quantize, *ends):
            graph.rewire(node, 2, graph.add_constant(np.array(0, np.int8), node.input[2]))
            if node is not quantize:
                graph.rewire(node, 0, quantize.output[0])
        changed += 1
    return changed


def check_weights(graph: Graph) -> None:
    """Raises ExportError if stored integers are anything but int8 with zero point 0."""
    for dequantize in graph.nodes(DEQUANTIZE):
        grid = grid_of(graph, dequantize)
        if graph.constant(dequantize.input[0]) is None:
            continue
        if grid is None or grid.zero_point.dtype != np.int8 or grid.zero_point.any():
            raise ExportError(
                f"TensorRT takes weights as int8 with zero point 0, as those of {_named(dequantize)} are not: "
                "choose another target or form='onnxruntime'."
            )


def _named(node: NodeProto) -> str:
    return f'"{node.name or node.input[0]}"'


def _ends(graph: Graph, quantize: NodeProto, grid: Grid) -> tuple[list[NodeProto], tuple[int, int]]:
    """The DequantizeLinear nodes behind a quantizer, and the integers that the Clips before them let through."""
    found: list[tuple[NodeProto, tuple[int, int]]] = []
    pending = [(quantize.output[0], grid.limits)]
    while pending:
        tensor, (low, high) = pending.pop()
        readers = [] if graph.is_output(tensor) else graph.readers(tensor)
        for node in readers:
            bounds = clip_bounds(graph, node) if node.op_type == "Clip" else None
            if bounds is not None:
                ends = (int(min(max(end, bounds[0]), bounds[1])) for end in (low, high))
                pending.append((node.output[0], (next(ends), next(ends))))
            elif node.op_type == DEQUANTIZE:
                found.append((node, (low, high)))
            else:
                readers = []
                break
        if not readers:
            raise ExportError(
                f"TensorRT takes no integers outside of quantizers, as behind {_named(quantize)}."
            )
    if len({bounds for _, bounds in found}) != 1:
        raise ExportError(f"{_named(quantize)} has two ranges; TensorRT takes one.")
    return [node for node, _ in found], found[0][1]


def _bound_floats(graph: Graph, quantize: NodeProto, grid: Grid, bounds: tuple[int, int]) -> None:
    """Put a Clip before a quantizer on those sides on which int8 itself would not stop there."""
    source = quantize.input[0]
    never_negative = graph.maker(source, "Relu") is not None
    low = bounds[0] > -128 and not (bounds[0] == 0 and never_negative)
    high = bounds[1] < 127
    if not low and not high:
        return
    ends = [
        graph.add_constant(np.array(np.float32(bound) * grid.scale, np.float32), source) if wanted else ""
        for bound, wanted in zip(bounds, (low, high), strict=True)
    ]
    while ends and not ends[-1]:
        ends.pop()
    graph.rewire(quantize, 0, graph.add_node("Clip", [source, *ends], source))

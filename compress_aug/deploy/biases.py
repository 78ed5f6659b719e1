"""Biases of quantized layers as integers, on the grid that the layer's integer kernel sums on."""

import numpy as np
from onnx import NodeProto, helper

from compress_aug.deploy.graph import Array, Graph
from compress_aug.deploy.grid import DEQUANTIZE, Grid, grid_of

# Half of what int32 holds: the other half is for the sum that the bias is added to.
_LARGEST = 2**30


def integer_biases(graph: Graph) -> int:
    """Store biases as int32 on the grid that a layer sums on: input scale times weight scale.

    A bias that lies on that grid already (quantization puts it there in its last touch) keeps its value; any
    other is rounded to it, as the runtime does itself when it makes the layer an integer one. Older runtimes
    make a layer an integer one only if its bias is stored like this.

    The scale of a channel of zeros is next to nothing, its bias is not, and would overflow 32 bits without
    the runtime noticing. The weights of such a channel are put on a coarser grid first.

    Returns how many biases were stored.
    """
    stored = 0
    for node in graph.nodes("Conv", "Gemm"):
        bias = graph.constant(node.input[2]) if len(node.input) == 3 else None
        grids = _grids(graph, node)
        if bias is None or bias.dtype != np.float32 or bias.ndim != 1 or grids is None:
            continue
        inputs, weights = grids
        if weights.scale.ndim and weights.scale.shape != bias.shape:
            continue
        doublings = _doublings(bias, inputs.scale * weights.scale)
        if doublings.any():
            weights = _coarsened(graph, node, weights, doublings)
        scale = np.broadcast_to(inputs.scale * weights.scale, bias.shape).astype(np.float32)
        integers = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
        names = [graph.add_constant(v, node.input[2]) for v in (integers, scale, np.zeros_like(integers))]
        graph.rewire(node, 2, graph.add_node(DEQUANTIZE, names, node.input[2], axis=0))
        stored += 1
    return stored


def _grids(graph: Graph, node: NodeProto) -> tuple[Grid, Grid] | None:
    """The grids of a layer's input and weight; None if it does not sum integers of one scale an output."""
    makers = [graph.maker(tensor, DEQUANTIZE) for tensor in node.input[:2]]
    grids = [grid for maker in makers if maker is not None and (grid := grid_of(graph, maker)) is not None]
    if len(grids) != 2 or grids[0].scale.ndim:
        return None
    if makers[1] is None or graph.constant(makers[1].input[0]) is None:
        return None
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return None
    outputs = 1 if node.op_type == "Gemm" and not attributes.get("transB", 0) else 0
    if grids[1].scale.ndim and grids[1].axis != outputs:
        return None
    return grids[0], grids[1]


def _doublings(bias: Array, scale: Array) -> Array:
    """How often the scale must double until the bias fits, for each channel if the scale is per channel."""
    steps = np.abs(bias.astype(np.float64)) / (scale.astype(np.float64) * _LARGEST)
    doublings = np.ceil(np.log2(np.maximum(steps, 1.0)))
    return np.asarray(doublings if scale.ndim else doublings.max())


def _coarsened(graph: Graph, node: NodeProto, grid: Grid, doublings: Array) -> Grid:
    """Double the weight scale so often, and halve the integers; returns the new grid.

    Exact for a channel of zeros. In any other, the bias is that much larger than all that is added to it.
    """
    dequantize = graph.maker(node.input[1], DEQUANTIZE)
    weights = graph.constant(dequantize.input[0]) if dequantize is not None else None
    assert weights is not None
    shape = [1] * weights.ndim
    if grid.scale.ndim:
        shape[grid.axis] = -1
    factor, zero = np.exp2(doublings).reshape(shape), grid.zero_point.astype(np.float64).reshape(shape)
    coarse = (np.rint((weights - zero) / factor) + zero).astype(weights.dtype)
    wide = Grid((grid.scale * np.exp2(doublings)).astype(np.float32), grid.zero_point, grid.axis)
    names = [graph.add_constant(value, node.input[1]) for value in (coarse, wide.scale, wide.zero_point)]
    graph.rewire(node, 1, graph.add_node(DEQUANTIZE, names, node.input[1], axis=grid.axis))
    return wide

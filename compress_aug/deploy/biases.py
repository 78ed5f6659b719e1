"""Biases of quantized layers as integers, on the grid that the layer's integer kernel sums on."""

import numpy as np
from onnx import NodeProto, helper

from compress_aug.deploy.graph import Array, Graph
from compress_aug.deploy.grid import DEQUANTIZE, grid_of


def integer_biases(graph: Graph) -> int:
    """Store biases as int32 on the grid that a layer sums on: input scale times weight scale.

    A bias that lies on that grid already (quantization puts it there in its last touch) keeps its value; any
    other is rounded to it, as the runtime does itself when it makes the layer an integer one. Older runtimes
    make a layer an integer one only if its bias is stored like this.

    The scale of a pruned channel is next to nothing, its bias is not and would overflow 32 bits, which the
    runtime does not notice. The weights of such a channel are put on a coarser grid first.
    """
    stored = 0
    for node in graph.nodes("Conv", "Gemm"):
        bias = graph.constant(node.input[2]) if len(node.input) == 3 else None
        if bias is None or bias.dtype != np.float32 or bias.ndim != 1 or _sum_scale(graph, node) is None:
            continue
        _coarsen_weights(graph, node, bias)
        scale = _sum_scale(graph, node)
        assert scale is not None
        integers = np.rint(bias.astype(np.float64) / scale).astype(np.int32)
        constants = (integers, np.broadcast_to(scale, bias.shape).copy(), np.zeros_like(integers))
        names = [graph.add_constant(value, node.input[2]) for value in constants]
        graph.rewire(node, 2, graph.add_node(DEQUANTIZE, names, node.input[2], axis=0))
        stored += 1
    return stored


def _sum_scale(graph: Graph, node: NodeProto) -> Array | None:
    """Input scale times weight scale of a layer, scalar or (K,); None if it is not quantized like that."""
    makers = [graph.maker(tensor, DEQUANTIZE) for tensor in node.input[:2]]
    grids = [grid_of(graph, maker) for maker in makers if maker is not None]
    if len(grids) != 2 or grids[0] is None or grids[1] is None or grids[0].scale.ndim:
        return None
    if makers[1] is None or graph.constant(makers[1].input[0]) is None:
        return None
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return None
    outputs = 1 if node.op_type == "Gemm" and not attributes.get("transB", 0) else 0
    if grids[1].scale.ndim and grids[1].axis != outputs:
        return None
    return np.asarray(grids[0].scale * grids[1].scale, dtype=np.float32)


# Half of what int32 holds: the other half is for the sum that the bias is added to.
_LARGEST_BIAS = 2**30


def _coarsen_weights(graph: Graph, node: NodeProto, bias: Array) -> None:
    """Double the weight scale of a channel, and halve its integers, until its bias fits.

    Exact for a channel of zeros. In any other the bias is that much larger than all that is added to it.
    """
    scale = _sum_scale(graph, node)
    dequantize = graph.maker(node.input[1], DEQUANTIZE)
    assert scale is not None and dequantize is not None
    needed = np.abs(bias.astype(np.float64)) / (scale.astype(np.float64) * _LARGEST_BIAS)
    doublings = np.ceil(np.log2(np.maximum(needed, 1.0)))
    if scale.ndim == 0:
        doublings = doublings.max()
    if not doublings.any():
        return
    grid = grid_of(graph, dequantize)
    weights = graph.constant(dequantize.input[0])
    assert grid is not None and weights is not None
    shape = [1] * weights.ndim
    if scale.ndim:
        shape[grid.axis] = -1
    zero_point = grid.zero_point.astype(np.float64)
    coarse = np.rint((weights - zero_point.reshape(shape)) / np.exp2(doublings).reshape(shape))
    values = (
        (coarse + zero_point.reshape(shape)).astype(weights.dtype),
        np.asarray(grid.scale * np.exp2(doublings), dtype=np.float32),
    )
    names = [graph.add_constant(value, node.input[1]) for value in values]
    graph.rewire(
        node, 1, graph.add_node(DEQUANTIZE, [*names, dequantize.input[2]], node.input[1], axis=grid.axis)
    )

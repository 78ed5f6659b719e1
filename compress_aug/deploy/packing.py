"""Weights of few bits packed several to a byte; the runtime unpacks them once, when it loads the file."""

import math

import numpy as np
from onnx import NodeProto

from compress_aug.deploy.graph import Array, Graph
from compress_aug.deploy.grid import DEQUANTIZE

# The nodes that unpack a weight weigh about 350 bytes themselves.
_WORTH_BYTES = 700


def pack_weights(graph: Graph) -> int:
    """Store integer weights with few different values as digits, several to a byte; returns how many weights.

    16 values (4 bits) go two to a byte, 4 values (2 bits) four, 3 values (ternary) five. Unpacking is a few
    operators on constants, which a runtime works out while it loads the file and then forgets, so that speed
    and memory are those of 8-bit weights: what shrinks is the file. With the runtime's optimizations off, the
    weights are unpacked in every run instead.

    Exact: the weights come out as they went in.
    """
    packed = 0
    for dequantize in graph.nodes(DEQUANTIZE):
        weights = graph.constant(dequantize.input[0])
        if weights is None or weights.dtype not in (np.int8, np.uint8) or weights.size <= _WORTH_BYTES:
            continue
        values, digits = np.unique(weights, return_inverse=True)
        digits_a_byte = int(math.log(256.5, max(len(values), 2)))
        if digits_a_byte > 1 and weights.size - weights.size / digits_a_byte > _WORTH_BYTES:
            _pack(graph, dequantize, values, digits.reshape(-1), digits_a_byte)
            packed += 1
    return packed


def _pack(graph: Graph, dequantize: NodeProto, values: Array, digits: Array, digits_a_byte: int) -> None:
    """Replace the weight by its packed digits and the operators that unpack them."""
    weights = graph.constant(dequantize.input[0])
    assert weights is not None
    near = dequantize.input[0]
    powers = len(values) ** np.arange(digits_a_byte)
    rows = np.zeros((-(-digits.size // digits_a_byte), digits_a_byte), np.int64)
    rows.reshape(-1)[: digits.size] = digits

    def constant(value: Array) -> str:
        return graph.add_constant(np.asarray(value), near)

    stored = constant((rows @ powers).astype(np.uint8).reshape(-1, 1))
    # int32, because runtimes have no division of 8-bit integers.
    wide = graph.add_node("Cast", [stored], near, to=6)
    shifted = graph.add_node("Div", [wide, constant(powers.astype(np.int32))], near)
    unpacked = graph.add_node("Mod", [shifted, constant(np.array(len(values), np.int32))], near)
    looked_up = graph.add_node("Gather", [constant(values), unpacked], near)
    if rows.size != digits.size:
        flat = graph.add_node("Reshape", [looked_up, constant(np.array([-1]))], near)
        ends = [constant(np.array([end])) for end in (0, digits.size)]
        looked_up = graph.add_node("Slice", [flat, *ends], near)
    restored = graph.add_node("Reshape", [looked_up, constant(np.array(weights.shape))], near)
    graph.rewire(dequantize, 0, restored)

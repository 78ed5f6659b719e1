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
        together = digits_a_byte(weights.size, len(values))
        if together > 1:
            _pack(graph, dequantize, values, digits.reshape(-1), together)
            packed += 1
    return packed


def digits_a_byte(weights: int, values: int) -> int:
    """How many of so many weights go into a byte, if they have so many different values; 1 where it is not worth it.

    >>> [digits_a_byte(10_000, values) for values in (255, 16, 7, 3)], digits_a_byte(100, 3)
    ([1, 2, 2, 5], 1)
    """
    digits = int(math.log(256.5, max(values, 2)))
    return digits if weights - weights / digits > _WORTH_BYTES else 1


def _pack(graph: Graph, dequantize: NodeProto, values: Array, digits: Array, together: int) -> None:
    """Replace the weight by its packed digits and the operators that unpack them."""
    weights = graph.constant(dequantize.input[0])
    assert weights is not None
    near = dequantize.input[0]
    powers = len(values) ** np.arange(together)
    rows = np.zeros((-(-digits.size // together), together), np.int64)
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

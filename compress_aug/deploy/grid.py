"""Quantizers in an ONNX graph: which real numbers their integers stand for, and the bounds of a Clip."""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from compress_aug.deploy.graph import Array, Graph

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Grid:
    """The real numbers that a quantized tensor can hold: (integer - zero_point) * scale.

    scale:      float32 scalar, or (K,) along `axis`
    zero_point: of the same shape, of the integer type that is stored
    """

    scale: Array
    zero_point: Array
    axis: int

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer of the type."""
        kind = np.iinfo(self.zero_point.dtype)
        return int(kind.min), int(kind.max)

    def same_as(self, other: "Grid") -> bool:
        """Whether an integer means the same number on both."""
        return (
            self.zero_point.dtype == other.zero_point.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
            and (self.scale.ndim == 0 or self.axis == other.axis)
        )

    def nearest(self, number: float) -> int:
        """The integer that QuantizeLinear turns a number into, for a scalar grid; float32, ties to even."""
        integer = float(np.rint(np.float32(number) / self.scale.astype(np.float32))) + int(self.zero_point)
        low, high = self.limits
        return int(min(max(integer, low), high))


def grid_of(graph: Graph, node: NodeProto) -> Grid | None:
    """The grid of a QuantizeLinear or DequantizeLinear; None where it is not constant."""
    if len(node.input) < 3:
        return None
    scale, zero_point = graph.constant(node.input[1]), graph.constant(node.input[2])
    if scale is None or zero_point is None or zero_point.dtype.kind not in "iu":
        return None
    if scale.size == 1:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    return Grid(scale, zero_point, axis)


def clip_bounds(graph: Graph, clip: NodeProto) -> tuple[float, float] | None:
    """The two bounds of a Clip, infinite where it has none; None if one is computed."""
    bounds = [-np.inf, np.inf]
    for place in (1, 2):
        if len(clip.input) > place and clip.input[place]:
            bound = graph.constant(clip.input[place])
            if bound is None:
                return None
            bounds[place - 1] = float(bound)
    return bounds[0], bounds[1]

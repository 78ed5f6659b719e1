"""Proof that rewriting a graph moves no number: every rewrite against what the graph computed before it."""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from compress_aug.deploy.biases import integer_biases
from compress_aug.deploy.graph import Array, Graph
from compress_aug.deploy.grid import DEQUANTIZE, QUANTIZE
from compress_aug.deploy.runtime import Session
from compress_aug.deploy.shuffles import fold_shuffles
from compress_aug.errors import ParityError

# The sums of a layer are the same for every image; a few reach every bound that a rewrite touches.
PROOF_IMAGES = 4


@dataclass(frozen=True)
class Rewrite:
    """What one rewrite did to a graph.

    name:         of the function in `deploy.rewrite`, `deploy.biases` or `deploy.packing`
    places:       in how many places it changed the graph
    max_abs_diff: largest difference that it made to a logit of a test image; 0 if it is exact
    """

    name: str
    places: int
    max_abs_diff: float


class RewriteProof:
    """Runs a graph after each of its rewrites, with the runtime's optimizations off, as it is written.

    stock:  the graph as the exporter wrote it
    images: float32 (N, C, H, W)

    rewrites: what each rewrite did, so far
    notes:    one sentence for each that could not be exact
    """

    def __init__(self, stock: onnx.ModelProto, images: Array) -> None:
        self._images = images
        self._expected = self._outputs(stock)
        self._last = stock.SerializeToString()
        self._biases = _biases(stock)
        self.rewrites: list[Rewrite] = []
        self.notes: list[str] = []

    def __call__(self, name: str, places: int, model: onnx.ModelProto) -> None:
        """Look at the graph after a rewrite. Raises ParityError if that changed an output.

        Only the rounding of biases may, and only of biases that lie off the grid of integer kernels, as those of
        a model that was not finalized; what follows is then compared with the rounded graph.

        A rewrite that changes the order in which a layer sums is exact for integers, not for the floats that they
        are computed as here. It is compared with all scales rounded to powers of two, which make float sums exact.
        """
        found, biases = self._outputs(model), _biases(model)
        if name == fold_shuffles.__name__:
            before, after = (_with_exact_sums(part) for part in (self._last, model.SerializeToString()))
            difference = _difference(self._outputs(before), self._outputs(after))
            self._expected = found
        else:
            difference = _difference(self._expected, found)
        if difference and name == integer_biases.__name__ and (moved := _moved(self._biases, biases)):
            layer = max(moved, key=lambda name: moved[name])
            self.notes.append(
                f"biases of {len(moved)} layers lay off the grid of integer kernels and were rounded to it, by up "
                f'to {moved[layer]:.2g} steps ("{layer}"): finalize the model before, so that it computes the same'
            )
            self._expected = found
        elif difference:
            raise ParityError(
                f"The rewrite {name} changes what the graph computes: logits of {len(self._images)} images move by "
                f"up to {difference:.3g}. The file was not written; this is a mistake in compress_aug."
            )
        self._biases, self._last = biases, model.SerializeToString()
        self.rewrites.append(Rewrite(name, places, difference))

    def _outputs(self, model: onnx.ModelProto) -> Array:
        return Session(model, optimize=False).run(self._images)


def _with_exact_sums(model: bytes) -> onnx.ModelProto:
    """The graph with powers of two as scales: products of integers then sum to the same floats in any order."""
    rounded: onnx.ModelProto = onnx.ModelProto.FromString(model)
    scales = {node.input[1] for node in rounded.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE)}
    for tensor in rounded.graph.initializer:
        if tensor.name in scales:
            value = numpy_helper.to_array(tensor)
            # Zeros, of which there should be none, stay.
            with np.errstate(divide="ignore"):
                powers = np.exp2(np.rint(np.log2(value))).astype(value.dtype)
            tensor.CopyFrom(numpy_helper.from_array(powers, tensor.name))
    return rounded


def _difference(expected: Array, found: Array) -> float:
    """The largest difference; infinite if shapes or what is no number differ."""
    if np.array_equal(expected, found, equal_nan=True):
        return 0.0
    if expected.shape != found.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(expected.astype(np.float64) - found).max())
    return largest if np.isfinite(largest) else float("inf")


def _biases(model: onnx.ModelProto) -> dict[str, tuple[Array, Array | None]]:
    """The biases of all layers as real numbers, and their steps where they are stored as integers."""
    graph, found = Graph(model), {}
    for node in graph.nodes("Conv", "Gemm"):
        bias = node.input[2] if len(node.input) == 3 else ""
        stored = graph.maker(bias, DEQUANTIZE)
        parts = [graph.constant(name) for name in (stored.input if stored is not None else [bias])]
        if parts[0] is None:
            continue
        step = parts[1] if len(parts) > 1 else None
        found[node.name] = (parts[0] if step is None else (parts[0] * step).astype(np.float32), step)
    return found


def _moved(
    before: dict[str, tuple[Array, Array | None]], after: dict[str, tuple[Array, Array | None]]
) -> dict[str, float]:
    """How many steps each bias was moved at most, for the layers that it was."""
    moved = {}
    for name, (bias, step) in after.items():
        if step is not None and name in before and not np.array_equal(before[name][0], bias):
            moved[name] = float((np.abs(before[name][0].astype(np.float64) - bias) / step).max())
    return moved

"""The runtime against the model, layer by layer, in quantization steps; each layer from the model's own inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from compress_aug.deploy.graph import Array, Graph
from compress_aug.deploy.grid import DEQUANTIZE, QUANTIZE, Grid, grid_of
from compress_aug.deploy.naming import WEIGHTED, is_module, quantized_values, spoken
from compress_aug.deploy.runtime import Session

# Sums of floats (the model) and of integers (the runtime) differ in their last bits, so that of 10 000 values
# about one that lies next to the middle between two steps may be rounded the other way.
MOST_FLIPPED = 1e-4
MOST_STEPS = 1.0

# In a layer of few values, two of them are more than that share.
_FEW = 2

# So many images of 64x64 pixels, and accordingly fewer larger ones, but no fewer than _BATCH.
MOST_IMAGES = 64
_BATCH = 8

# A value that is not quantized is measured in 255ths of its range, the steps that 8 bits would give it.
_FLOAT_STEPS = 255


@dataclass(frozen=True)
class LayerSteps:
    """How far the file's values lie from the model's at one place.

    layer:     the module that computes them, or what does and behind which module
    quantizer: the module that rounds them; "" if they stay float: a step is then 1/255 of the range of the values
    max_steps: the largest difference, in steps; infinite if one is not a number or shapes differ
    flipped:   share of the values that are more than half a step apart, in [0, 1]
    values:    how many were compared
    """

    layer: str
    quantizer: str
    max_steps: float
    flipped: float
    values: int

    @property
    def diverges(self) -> bool:
        """Whether this is more than rounding: more than 1 step, or more than 1 value in 10 000 (and than 2)."""
        many = self.flipped > MOST_FLIPPED and round(self.flipped * self.values) > _FEW
        return self.is_wrong or many

    @property
    def is_wrong(self) -> bool:
        """Whether a value is more than 1 step off, which no rounding explains."""
        return not self.max_steps <= MOST_STEPS

    def __str__(self) -> str:
        """One clause.

        >>> str(LayerSteps("stem", "relu", 1.0, 0.002, 1000))
        '"stem" (up to 1 step off, 0.2 % of its values by more than half a step)'
        """
        steps = f"{self.max_steps:.3g} step{'s' * (self.max_steps != 1)}"
        return f'"{self.layer}" (up to {steps} off, {100 * self.flipped:.3g} % of its values by more than half a step)'


def layer_steps(
    model: nn.Module, path: Path, images: Tensor, *, optimize: bool = True
) -> tuple[LayerSteps, ...]:
    """Compare a file with its model at every quantizer and at the end, in the order of execution.

    model:    as it was written, in evaluation mode, on the CPU
    images:   normalised float32 (N, C, H, W), of which up to 64 are used
    optimize: whether the runtime may use its integer kernels; without, it computes the file as it is written

    The file is cut at the quantizers: each part gets the integers that the model has there, so that no part
    inherits the differences of the parts before it.
    A file without quantizers is not cut; the outputs of its layers are compared as they are.

    A file that does not name its quantizers as `write` does gives the values at its end only.

    Raises ExportError if the runtime refuses the model's values.

    >>> layers = layer_steps(model.eval(), Path("model.onnx"), torch.rand(8, 3, 8, 8))
    >>> [(layer.layer, layer.diverges) for layer in layers]
    [('0', False), ('3', False), ('8', False)]
    """
    graph = Graph(onnx.load(str(path)))
    taps = _quantizers(graph) or _float_layers(graph)
    tallies: dict[str, _Tally] = {}
    session: Session | None = None
    for start in range(0, _number(images), _BATCH):
        batch = images[start : start + _BATCH]
        with torch.no_grad(), quantized_values(model) as quantized, _layer_values(model) as layers:
            logits = model(batch)
        taps = [tap for tap in taps if (tap.name in quantized if tap.grid else tap.name in layers)]
        if session is None:
            cut = _cut(graph, taps, {name: tuple(value.shape) for name, (value, _) in quantized.items()})
            session = Session(cut, threads=torch.get_num_threads(), optimize=optimize)
        entries = {
            tap.entry: _integers(*quantized[tap.name], tap.grid) for tap in taps if tap.grid and tap.is_read
        }
        *found, end = session.run_all({cut.graph.input[0].name: batch.numpy(), **entries})
        for tap, values in zip(taps, found, strict=True):
            tally = tallies.setdefault(tap.name, _Tally(tap.layer, tap.name if tap.grid else ""))
            if tap.grid:
                value, scale = quantized[tap.name]
                tally.add(_real(values, tap.grid), value.numpy(), float(scale))
            else:
                tally.add_nearest(values, [value.numpy() for value in layers[tap.name]])
        _add_logits(tallies, graph, end, logits.numpy())
    order = {name: place for place, name in enumerate((*quantized, *layers))}
    ordered = sorted(tallies, key=lambda name: order.get(name, len(order)))
    return tuple(tallies[name].result() for name in ordered)


def _number(images: Tensor) -> int:
    pixels = int(np.prod(images.shape[2:]))
    return min(len(images), MOST_IMAGES, max(_BATCH, MOST_IMAGES * 64 * 64 // max(pixels, 1)))


@dataclass(frozen=True)
class _Tap:
    """A place where file and model are compared.

    name:    of the quantizer, or of the layer where grid is None
    layer:   what computes the values
    tensor:  in the file
    is_read: whether anything reads it, so that it is cut there
    """

    name: str
    layer: str
    tensor: str
    grid: Grid | None
    is_read: bool

    @property
    def entry(self) -> str:
        return f"{self.tensor}.given"


def _quantizers(graph: Graph) -> list[_Tap]:
    """The integers behind each quantizer that bears a module's name, and behind the Clip that narrows it."""
    taps = []
    for quantize in graph.nodes(QUANTIZE):
        grid = grid_of(graph, quantize)
        if not is_module(quantize) or grid is None or grid.scale.ndim:
            continue
        tensor, readers = quantize.output[0], graph.readers(quantize.output[0])
        if len(readers) == 1 and readers[0].op_type == "Clip" and not graph.is_output(tensor):
            tensor = readers[0].output[0]
        if not graph.is_output(tensor):
            layer = _computed_by(graph, quantize.input[0])
            taps.append(_Tap(quantize.name, layer, tensor, grid, bool(graph.readers(tensor))))
    return taps


def _computed_by(graph: Graph, tensor: str) -> str:
    """The layer that computes a tensor: the nearest one with a weight, before any quantizer."""
    pending, seen, nearest = [tensor], set(), ""
    while pending:
        node = graph.maker(pending.pop(0))
        if node is None or node.op_type == QUANTIZE or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.op_type in WEIGHTED and is_module(node):
            return node.name
        if node.op_type not in (DEQUANTIZE, "Clip") and not nearest:
            nearest = spoken(graph, node)
        pending += node.input
    return nearest or "the input"


def _float_layers(graph: Graph) -> list[_Tap]:
    """The outputs of the layers that bear a module's name."""
    taps = []
    for node in graph.nodes(*WEIGHTED):
        tensor, readers = node.output[0], graph.readers(node.output[0])
        if node.op_type == "MatMul" and len(readers) == 1 and readers[0].op_type == "Add":
            # A linear layer of more than two axes: the bias comes after.
            tensor = readers[0].output[0]
        if is_module(node) and not graph.is_output(tensor):
            taps.append(_Tap(node.name, node.name, tensor, None, False))
    return taps


@contextmanager
def _layer_values(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """What each layer with a weight gives at its first call, and the batch norm after it, if one is next."""
    found: dict[str, list[Tensor]] = {}
    last: list[tuple[str, Tensor]] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        # Copies, because a ReLU behind may work in place.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # The exporter merges it into the layer.
            if last and inputs[0] is last[0][1]:
                found[last[0][0]].append(output.clone())
            last.clear()
        elif names[module] not in found and isinstance(output, Tensor):
            found[names[module]] = [output.clone()]
            last[:] = [(names[module], output)]

    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, kinds)
    }
    handles = [module.register_forward_hook(keep) for module in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _cut(graph: Graph, taps: list[_Tap], shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The file's graph with an output at each tap, and with an input there for all that read it."""
    cut: onnx.ModelProto = onnx.ModelProto.FromString(graph.model.SerializeToString())
    entries = {tap.tensor: tap.entry for tap in taps if tap.is_read}
    for node in cut.graph.node:
        for place, tensor in enumerate(node.input):
            if tensor in entries:
                node.input[place] = entries[tensor]
    [end] = cut.graph.output
    del cut.graph.output[:]
    for tap in taps:
        kind = onnx.TensorProto.FLOAT
        if tap.grid:
            kind = helper.np_dtype_to_tensor_dtype(tap.grid.zero_point.dtype)
        if tap.is_read:
            shape: list[str | int | None] = ["batch", *shapes[tap.name][1:]]
            cut.graph.input.append(helper.make_tensor_value_info(tap.entry, kind, shape))
        cut.graph.output.append(helper.make_tensor_value_info(tap.tensor, kind, None))
    cut.graph.output.append(end)
    return cut


def _integers(value: Tensor, scale: Tensor, grid: Grid) -> Array:
    """The stored integers of the model's values."""
    integers = np.rint(value.numpy() / scale.numpy()) + int(grid.zero_point)
    stored: Array = np.clip(np.nan_to_num(integers), *grid.limits).astype(grid.zero_point.dtype)
    return stored


def _real(integers: Array, grid: Grid) -> Array:
    return (integers.astype(np.int32) - int(grid.zero_point)).astype(np.float32) * grid.scale


def _add_logits(tallies: dict[str, "_Tally"], graph: Graph, found: Array, expected: Array) -> None:
    layer = _computed_by(graph, graph.model.graph.output[0].name)
    # No module is called like this.
    tallies.setdefault("", _Tally(layer, "")).add_nearest(found, [expected])


@dataclass
class _Tally:
    """Sums over the batches, at one place."""

    layer: str
    quantizer: str
    largest: float = 0.0
    flips: int = 0
    values: int = 0
    step: float = 0.0

    def add(self, found: Array, expected: Array, step: float) -> None:
        self.values += expected.size
        if found.shape != expected.shape:
            self.largest, self.flips = float("inf"), self.flips + expected.size
            return
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            steps = np.nan_to_num(np.abs(found.astype(np.float64) - expected) / step, nan=np.inf)
        self.largest = max(self.largest, float(steps.max(initial=0.0)))
        self.flips += int((steps > 0.5).sum())

    def add_nearest(self, found: Array, candidates: list[Array]) -> None:
        """Of what a layer and the norm after it give, compare with what the file's value is."""
        alike = [value for value in candidates if value.shape == found.shape] or candidates[:1]
        expected = min(alike, key=lambda value: _distance(found, value))
        # The range of the first images: one unit for all.
        self.step = self.step or float(np.ptp(expected)) / _FLOAT_STEPS or 1.0
        self.add(found, expected, self.step)

    def result(self) -> LayerSteps:
        # A value is a multiple of its scale but for the last bits of a float, which are no step.
        return LayerSteps(
            self.layer, self.quantizer, round(self.largest, 3), self.flips / max(self.values, 1), self.values
        )


def _distance(one: Array, other: Array) -> float:
    if one.shape != other.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        distance = float(np.abs(one - other).mean())
    return distance if np.isfinite(distance) else float("inf")

"""Rewrites of a quantized graph that let the runtime use its integer kernels, none of which moves a number.

A quantizer stands in the file as QuantizeLinear -> Clip -> DequantizeLinear (the Clip where it has fewer than
8 bits). As the exporter writes it, runtimes keep many layers in float: because activations are signed,
because a Clip or Relu stands between a layer and its quantizer, or because a weight passes through a Clip.
Every function here takes one such obstacle away, exactly, and returns in how many places.
"""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import NodeProto

from compress_aug.deploy.biases import integer_biases
from compress_aug.deploy.graph import Graph, lift_constants
from compress_aug.deploy.grid import DEQUANTIZE, QUANTIZE, Grid, clip_bounds, grid_of
from compress_aug.deploy.narrow import narrow_weights
from compress_aug.deploy.one_sided import plain_one_sided
from compress_aug.deploy.packing import pack_weights
from compress_aug.deploy.shapes import fixed_shapes
from compress_aug.deploy.shuffles import fold_shuffles
from compress_aug.deploy.signed import check_weights, signed_activations
from compress_aug.errors import ExportError

# int8 and uint8 differ by this shift, in values, bounds and zero points alike.
_SHIFT = 128


def rewrite(
    model: onnx.ModelProto,
    *,
    pack: bool = True,
    opset: int = 13,
    watch: Callable[[str, int, onnx.ModelProto], None] | None = None,
) -> onnx.ModelProto:
    """Every rewrite, in the order in which they serve each other; `pack`: see `pack_weights`.

    opset: of the model's operators, which says how small a tensor's type may be (see `narrow_weights`)
    watch: told after each rewrite that did something its name, in how many places it did, and the graph as it
           is then (see `proof.RewriteProof`)

    Takes the model over. A graph with control flow (If, Loop) is left as it is.
    """
    graph = Graph(lift_constants(model))
    if graph.has_subgraphs:
        return graph.finish()
    for name, places in _rewrites(graph, pack, opset):
        if watch is not None and places:
            watch(name, places, graph.finish())
    graph.shorten_names()
    return graph.finish()


def _rewrites(graph: Graph, pack: bool, opset: int) -> Iterator[tuple[str, int]]:
    """Do one rewrite after the other: the name of each, and in how many places it did something."""
    yield "drop_identities", drop_identities(graph)
    yield "fixed_shapes", fixed_shapes(graph)
    yield "fold_weight_clips", fold_weight_clips(graph)
    yield "unsigned_activations", unsigned_activations(graph)
    # Again as long as it does something, for one clamp behind another.
    yield "clamp_as_integers", sum(iter(lambda: clamp_as_integers(graph), 0))
    yield "drop_idle_clips", drop_idle_clips(graph)
    yield "drop_requantization", drop_requantization(graph)
    moving = iter(
        lambda: move_data_as_integers(graph) + pad_as_integers(graph) + drop_requantization(graph), 0
    )
    yield "move_data_as_integers", sum(moving)
    yield "integer_biases", integer_biases(graph)
    yield "fold_shuffles", fold_shuffles(graph)
    if pack:
        yield "narrow_weights", narrow_weights(graph, opset)
        yield "pack_weights", pack_weights(graph)
    yield "plain_one_sided", plain_one_sided(graph)


def rewrite_float(
    model: onnx.ModelProto, *, watch: Callable[[str, int, onnx.ModelProto], None] | None = None
) -> onnx.ModelProto:
    """A graph without quantizers, with sizes as constants (see `fixed_shapes`).

    watch: see `rewrite`

    Takes the model over.
    """
    graph = Graph(lift_constants(model))
    places = 0 if graph.has_subgraphs else fixed_shapes(graph)
    if watch is not None and places:
        watch(fixed_shapes.__name__, places, graph.finish())
    return graph.finish()


def rewrite_for_tensorrt(
    model: onnx.ModelProto, *, watch: Callable[[str, int, onnx.ModelProto], None] | None = None
) -> onnx.ModelProto:
    """The graph as TensorRT takes it: quantizers signed and symmetric around floats, and nothing moved between them.

    watch: see `rewrite`

    Takes the model over. Biases stay float, weights are not packed: TensorRT has no operators for either.

    Raises ExportError for what TensorRT cannot hold, with what to do.
    """
    graph = Graph(lift_constants(model))
    if graph.has_subgraphs:
        raise ExportError("The model has control flow (If, Loop), whose quantizers cannot be made signed.")
    for rewrite_once in (drop_identities, fixed_shapes, fold_weight_clips, signed_activations):
        places = rewrite_once(graph)
        if watch is not None and places:
            watch(rewrite_once.__name__, places, graph.finish())
    check_weights(graph)
    graph.shorten_names()
    return graph.finish()


def drop_identities(graph: Graph) -> int:
    """Drop Identity nodes, behind which the exporter hides the copies of equal constants."""
    dropped = 0
    for node in graph.nodes("Identity"):
        if not graph.is_output(node.output[0]):
            graph.replace(node.output[0], node.input[0])
            dropped += 1
    return dropped


def fold_weight_clips(graph: Graph) -> int:
    """Clip integer weights once, here, instead of at every start of the runtime."""
    folded = 0
    for clip in graph.nodes("Clip"):
        value = graph.constant(clip.input[0])
        bounds = clip_bounds(graph, clip)
        if value is None or value.dtype.kind not in "iu" or bounds is None or graph.is_output(clip.output[0]):
            continue
        clipped = np.clip(value, *bounds).astype(value.dtype)
        graph.replace(clip.output[0], graph.add_constant(clipped, clip.input[0]))
        folded += 1
    return folded


def unsigned_activations(graph: Graph) -> int:
    """Store signed activations as uint8: every integer moves up by 128, and its zero point with it.

    Runtimes fuse a convolution to its integer kernel for uint8 activations far more reliably than for int8.
    """
    changed = 0
    for quantize in graph.nodes(QUANTIZE):
        grid = grid_of(graph, quantize)
        if grid is None or grid.zero_point.dtype != np.int8 or graph.constant(quantize.input[0]) is not None:
            continue
        readers = _integer_readers(graph, quantize)
        if readers is None:
            continue
        for node in (quantize, *readers):
            places = (1, 2) if node.op_type == "Clip" else (2,)
            _shift_up(graph, node, places)
        changed += 1
    return changed


def _integer_readers(graph: Graph, quantize: NodeProto) -> list[NodeProto] | None:
    """Clip and DequantizeLinear nodes behind a quantizer; None if anything else sees its integers."""
    found: list[NodeProto] = []
    tensors = [quantize.output[0]]
    while tensors:
        tensor = tensors.pop()
        if graph.is_output(tensor):
            return None
        for node in graph.readers(tensor):
            if node.op_type == "Clip" and clip_bounds(graph, node) is not None:
                tensors.append(node.output[0])
            elif node.op_type != DEQUANTIZE or grid_of(graph, node) is None:
                return None
            found.append(node)
    return found


def _shift_up(graph: Graph, node: NodeProto, places: tuple[int, ...]) -> None:
    for place in places:
        if len(node.input) > place and node.input[place]:
            value = graph.constant(node.input[place])
            assert value is not None
            shifted = (value.astype(np.int32) + _SHIFT).astype(np.uint8)
            graph.rewire(node, place, graph.add_constant(shifted, node.input[place]))


def clamp_as_integers(graph: Graph) -> int:
    """Turn a Relu or Clip that only quantizers read into bounds on their integers.

    Rounding never changes the order of two numbers, so clamping before it or after it is the same.
    """
    folded = 0
    for clamp in graph.nodes("Relu", "Clip"):
        bounds = (0.0, np.inf) if clamp.op_type == "Relu" else clip_bounds(graph, clamp)
        # A clamp behind this one that was folded already still reads it, but is read by nothing.
        readers = graph.readers(clamp.output[0])
        quantizers = [node for node in readers if node.op_type == QUANTIZE or _is_read(graph, node)]
        grids = [grid_of(graph, node) for node in quantizers if node.op_type == QUANTIZE]
        scalar = [grid for grid in grids if grid is not None and grid.scale.ndim == 0]
        if bounds is None or not scalar or len(scalar) != len(quantizers):
            continue
        if any(graph.is_output(node.output[0]) for node in (clamp, *quantizers)):
            continue
        for quantize, grid in zip(quantizers, scalar, strict=True):
            graph.rewire(quantize, 0, clamp.input[0])
            _bound_integers(graph, quantize, grid, (grid.nearest(bounds[0]), grid.nearest(bounds[1])))
        folded += 1
    return folded


def _is_read(graph: Graph, node: NodeProto) -> bool:
    return any(graph.is_output(tensor) or graph.readers(tensor) for tensor in node.output)


def _bound_integers(graph: Graph, quantize: NodeProto, grid: Grid, bounds: tuple[int, int]) -> None:
    """Put a Clip behind a quantizer, or narrow the one that stands there."""
    if bounds == grid.limits:
        return
    readers = graph.readers(quantize.output[0])
    if len(readers) == 1 and readers[0].op_type == "Clip":
        present = clip_bounds(graph, readers[0])
        if present is not None and not graph.is_output(quantize.output[0]):
            # Clamping to one range and then to another is clamping both of its ends to the other.
            low, high = (min(max(bound, present[0]), present[1]) for bound in bounds)
            _set_bounds(graph, readers[0], grid, (int(low), int(high)))
            return
    clipped = graph.add_node("Clip", [quantize.output[0], "", ""], quantize.output[0])
    clip = graph.maker(clipped)
    assert clip is not None
    _set_bounds(graph, clip, grid, bounds)
    for reader in readers:
        graph.rewire(reader, 0, clipped)


def _set_bounds(graph: Graph, clip: NodeProto, grid: Grid, bounds: tuple[int, int]) -> None:
    while len(clip.input) < 3:
        clip.input.append("")
    for place, bound in enumerate(bounds, 1):
        value = np.array(bound, grid.zero_point.dtype)
        graph.rewire(clip, place, graph.add_constant(value, clip.output[0]))


def drop_idle_clips(graph: Graph) -> int:
    """Drop integer Clips that let every value of their type through."""
    dropped = 0
    for clip in graph.nodes("Clip"):
        values = [value for name in clip.input[1:] if (value := graph.constant(name)) is not None]
        bounds = clip_bounds(graph, clip)
        if (
            not values
            or values[0].dtype.kind not in "iu"
            or bounds is None
            or graph.is_output(clip.output[0])
        ):
            continue
        limits = np.iinfo(values[0].dtype)
        if bounds[0] <= limits.min and bounds[1] >= limits.max:
            graph.replace(clip.output[0], clip.input[0])
            dropped += 1
    return dropped


def drop_requantization(graph: Graph) -> int:
    """Drop DequantizeLinear -> QuantizeLinear onto the same grid: the integers come out as they went in."""
    dropped = 0
    for quantize in graph.nodes(QUANTIZE):
        dequantize = graph.maker(quantize.input[0], DEQUANTIZE)
        if dequantize is None or graph.is_output(quantize.output[0]) or not graph.readers(quantize.output[0]):
            continue
        before, after = grid_of(graph, dequantize), grid_of(graph, quantize)
        if before is not None and after is not None and before.same_as(after):
            graph.replace(quantize.output[0], dequantize.input[0])
            dropped += 1
    return dropped


# Operators that only move values about, so that they may as well move integers. MaxPool belongs here because
# dequantizing keeps the order; what it pads with is never the largest.
_MOVES = (
    "Transpose",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "MaxPool",
    "Split",
    "Concat",
    "Slice",
    "Gather",
)


def move_data_as_integers(graph: Graph) -> int:
    """Dequantize behind an operator that only moves data, instead of before it."""
    moved = 0
    for node in graph.nodes(*_MOVES):
        sources = _dequantized_alike(graph, node)
        outputs = list(node.output)
        if not sources or any(graph.is_output(name) or not graph.readers(name) for name in outputs):
            continue
        for place, source in enumerate(sources):
            graph.rewire(node, place, source.input[0])
        for tensor in outputs:
            integer = graph.new_name(tensor)
            graph.rename_output(node, tensor, integer)
            graph.add_node(DEQUANTIZE, [integer, *sources[0].input[1:]], tensor, output=tensor)
        moved += 1
    return moved


def pad_as_integers(graph: Graph) -> int:
    """Fill in the zero point of integers instead of zeros in floats: channels that a PyramidNet's shortcut gains."""
    moved = 0
    for node in graph.nodes("Pad"):
        sources = _dequantized_alike(graph, node)
        output = node.output[0]
        if (
            not sources
            or graph.is_output(output)
            or not graph.readers(output)
            or not _fills_with_zero(graph, node)
        ):
            continue
        source = sources[0]
        graph.rewire(node, 0, source.input[0])
        node.input.extend([""] * (3 - len(node.input)))
        graph.rewire(node, 2, source.input[2])
        integer = graph.new_name(output)
        graph.rename_output(node, output, integer)
        graph.add_node(DEQUANTIZE, [integer, *source.input[1:]], output, output=output)
        moved += 1
    return moved


def _fills_with_zero(graph: Graph, node: NodeProto) -> bool:
    """Whether a Pad puts constant zeros, along all axes."""
    mode = next((attribute.s for attribute in node.attribute if attribute.name == "mode"), b"constant")
    value = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    return mode == b"constant" and value is not None and not np.any(value) and len(node.input) < 4


def _dequantized_alike(graph: Graph, node: NodeProto) -> list[NodeProto]:
    """The DequantizeLinear of each moved input, if they share one scalar grid; else none."""
    moved = node.input if node.op_type == "Concat" else node.input[:1]
    sources = [source for tensor in moved if (source := graph.maker(tensor, DEQUANTIZE)) is not None]
    grids = [grid for source in sources if (grid := grid_of(graph, source)) is not None]
    # A grid with an axis would have to move with the data.
    alike = len(grids) == len(moved) and all(
        grid.scale.ndim == 0 and grid.same_as(grids[0]) for grid in grids
    )
    return sources if alike else []

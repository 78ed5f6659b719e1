"""Sizes that a file computes from its tensors as constants, wherever only the number of images is open."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from compress_aug.deploy.graph import Graph

# An entry of a shape is a number, the number of images, or None where it is not known.
_BATCH = "the number of images"
_Entries = NDArray[Any]

_INT64 = onnx.TensorProto.INT64

# Tensors with more elements than this hold no shape; shape inference need not see their values.
_MOST_ENTRIES = 64


def fixed_shapes(graph: Graph) -> int:
    """Write sizes that do not depend on the number of images as constants; returns how many inputs of nodes.

    `x.view(n, groups, c // groups, h, w)` becomes a dozen operators that take the shape of x apart and put it
    together again at each run. A Reshape whose first size is the number of images that it reads gets 0 there, which
    means the same in ONNX.
    """
    batch = _batch_name(graph)
    written = 0
    # Behind a Reshape of unknown sizes nothing is known: each round reaches the next one.
    while graph.nodes("Shape") and batch:
        found = _round(graph, batch)
        if not found:
            break
        written += found
    return written


def _batch_name(graph: Graph) -> str:
    """What the first axis of the model's input is called; "" if it is not free."""
    entries = graph.model.graph.input
    dims = entries[0].type.tensor_type.shape.dim if len(entries) == 1 else []
    return dims[0].dim_param if len(dims) else ""


def _round(graph: Graph, batch: str) -> int:
    dims = _dims(graph, batch)
    known: dict[str, _Entries] = {}
    written = 0
    # What makes a tensor comes before what reads it, because `_dims` has put the nodes in order.
    for node in list(graph.model.graph.node):
        entries = _computed(graph, node, known, dims)
        if entries is not None:
            known[node.output[0]] = entries
    for tensor, entries in known.items():
        for reader in graph.readers(tensor):
            if reader.output[0] in known or graph.is_output(tensor):
                continue
            constant = _constant(entries, reader, list(reader.input).index(tensor), dims)
            if constant is not None:
                name = graph.add_constant(constant, tensor)
                for place, source in enumerate(reader.input):
                    if source == tensor:
                        graph.rewire(reader, place, name)
                        written += 1
    return written


def _dims(graph: Graph, batch: str) -> dict[str, list[Any]]:
    """The sizes of tensors as far as ONNX can infer them from the graph alone."""
    whole = graph.finish()
    light = onnx.ModelProto()
    light.CopyFrom(onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import))
    light.graph.name = whole.graph.name
    light.graph.node.extend(whole.graph.node)
    light.graph.input.extend(whole.graph.input)
    light.graph.output.extend(whole.graph.output)
    for tensor in whole.graph.initializer:
        if int(np.prod(tensor.dims)) <= _MOST_ENTRIES:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    found = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.HasField("shape"):
            sizes = value.type.tensor_type.shape.dim
            found[value.name] = [
                size.dim_value if size.HasField("dim_value") else _BATCH if size.dim_param == batch else None
                for size in sizes
            ]
    return found


def _computed(
    graph: Graph, node: NodeProto, known: dict[str, _Entries], dims: dict[str, list[Any]]
) -> _Entries | None:
    """What a node computes of shapes alone, as an array of entries; None if it is something else."""
    if node.op_type == "Shape":
        # Later operator sets can take a part of the shape.
        return None if node.attribute or node.input[0] not in dims else _entries(dims[node.input[0]])
    if not any(tensor in known for tensor in node.input):
        return None
    inputs = [_read(graph, tensor, known) for tensor in node.input if tensor]
    if any(value is None for value in inputs):
        return None
    values = [value for value in inputs if value is not None]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return _operate(node.op_type, values, attributes)


def _operate(kind: str, values: list[_Entries], attributes: dict[str, Any]) -> _Entries | None:
    first = values[0]
    if kind == "Cast":
        return first if attributes.get("to") == _INT64 else None
    if kind == "Gather" and first.ndim == 1 and not attributes.get("axis", 0):
        return np.asarray(first[values[1].astype(np.int64)], dtype=object)
    if kind == "Concat" and all(value.ndim == 1 for value in values):
        return np.concatenate(values)
    if kind == "Unsqueeze" and first.ndim == 0:
        return first.reshape(1)
    if kind == "Squeeze" and first.shape == (1,):
        return first.reshape(())
    if kind == "Slice" and first.ndim == 1 and len(values) >= 3:
        step = values[4].item() if len(values) > 4 else 1
        return first[values[1].item() : values[2].item() : step]
    if kind in ("Add", "Sub", "Mul", "Div") and len(values) == 2:
        one, other = np.broadcast_arrays(*values)
        pairs = zip(one.reshape(-1), other.reshape(-1), strict=True)
        return _entries([_arithmetic(kind, *pair) for pair in pairs]).reshape(one.shape)
    return None


def _arithmetic(kind: str, one: Any, other: Any) -> int | None:
    # ONNX divides towards zero, Python downwards: the same for what is not negative.
    if not isinstance(one, int) or not isinstance(other, int) or min(one, other) < 0:
        return None
    if kind == "Div":
        return one // other if other else None
    return {"Add": one + other, "Sub": one - other, "Mul": one * other}[kind]


def _read(graph: Graph, tensor: str, known: dict[str, _Entries]) -> _Entries | None:
    if tensor in known:
        return known[tensor]
    value = graph.constant(tensor)
    if value is None or value.dtype != np.int64 or value.size > _MOST_ENTRIES:
        return None
    return _entries(value.reshape(-1).tolist()).reshape(value.shape)


def _entries(values: list[Any]) -> _Entries:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def _constant(
    entries: _Entries, reader: NodeProto, place: int, dims: dict[str, list[Any]]
) -> NDArray[np.int64] | None:
    """What the reader may be given instead of these entries; None if they are open."""
    if all(isinstance(entry, int) for entry in entries.reshape(-1)):
        return entries.astype(np.int64)
    if reader.op_type != "Reshape" or place != 1 or entries.ndim != 1 or entries[0] != _BATCH:
        return None
    rest = entries[1:].tolist()
    same_images = dims.get(reader.input[0], [None])[:1] == [_BATCH]
    # A 0 among the others means another thing, and with 0 as the first size stands for what is read.
    if not same_images or not all(isinstance(entry, int) and entry for entry in rest):
        return None
    return np.array([0, *rest], np.int64)

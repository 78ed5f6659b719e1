"""Weights of few bits as INT4 and INT2 tensors, for runtimes that know later operator sets."""

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from compress_aug.deploy.graph import Array, Graph
from compress_aug.deploy.grid import DEQUANTIZE
from compress_aug.deploy.packing import digits_a_byte
from compress_aug.errors import ExportError

# The operator sets in which a tensor may have so few bits.
OPSET_OF_BITS = {4: 21, 2: 25}

_TYPES = {4: TensorProto.INT4, 2: getattr(TensorProto, "INT2", None)}


def with_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same graph in a later operator set.

    Raises ExportError where ONNX cannot convert one of its operators, or does not know the set.
    """
    try:
        converted = version_converter.convert_version(model, opset)
        kept: dict[str, str] = {entry.key: entry.value for entry in model.metadata_props}
        helper.set_model_props(converted, kept)
        converted.ir_version = helper.find_min_ir_version_for(converted.opset_import)
    # Whatever the converter, which is written in C++, raises.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ExportError(f"The file cannot be written with ONNX operators {opset}: {reason}.") from error
    return converted


def narrow_weights(graph: Graph, opset: int) -> int:
    """Store integer weights that fit 4 bits as INT4 and, from operator set 25 on, 2 bits as INT2; returns how many.

    A Cast makes bytes of them, which a runtime does once, while it loads the file. Read by DequantizeLinear itself,
    INT4 keeps ONNX Runtime from its integer kernels, and INT2 is refused. Left to `pack_weights` are the odd levels of
    DoReFa, which do not fit, and, before operator set 25, weights of three values, which INT4 would waste space on.

    Exact: the weights come out as they went in.
    """
    narrowed = 0
    for dequantize in graph.nodes(DEQUANTIZE):
        weights = graph.constant(dequantize.input[0])
        if weights is None or weights.dtype != np.int8:
            continue
        fit = [bits for bits, needed in OPSET_OF_BITS.items() if opset >= needed and _fits(weights, bits)]
        packed = digits_a_byte(weights.size, len(np.unique(weights)))
        if not fit or packed == 1 or (min(fit) == 4 and packed > 2):
            continue
        name = graph.add_stored(_stored(weights, min(fit)), dequantize.input[0])
        graph.rewire(dequantize, 0, graph.add_node("Cast", [name], name, to=TensorProto.INT8))
        narrowed += 1
    return narrowed


def _fits(weights: Array, bits: int) -> bool:
    half = 2 ** (bits - 1)
    return bool(weights.min() >= -half and weights.max() < half)


def _stored(weights: Array, bits: int) -> TensorProto:
    """The tensor, the first of the weights in the lowest bits of a byte."""
    together = 8 // bits
    rows = np.zeros((-(-weights.size // together), together), np.uint8)
    rows.reshape(-1)[: weights.size] = weights.reshape(-1).view(np.uint8) & (2**bits - 1)
    packed = np.zeros(len(rows), np.uint8)
    for place in range(together):
        packed |= rows[:, place] << (bits * place)
    return TensorProto(data_type=_TYPES[bits], dims=weights.shape, raw_data=packed.tobytes())

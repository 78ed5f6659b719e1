"""The form for TensorRT: plain signed symmetric quantizers, in which not a number differs from the stock graph.

The reference is the stock exporter's graph in ONNX Runtime with its optimizations off, and the model in torch.
"""

import brevitas.nn as qnn
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
from onnx import numpy_helper
from torch import nn
from toys import TinyConcat, TinyResidual

from compress_aug import deploy, quantization
from compress_aug.deploy.exporter import export_graph
from compress_aug.deploy.graph import Graph, lift_constants
from compress_aug.deploy.rewrite import rewrite_for_tensorrt
from compress_aug.errors import ExportError

SHAPE = (3, 8, 8)


def _quantized(net, bits):
    images = torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    model = quantization.quantize(
        net.eval(), images[:1], weights=8, activations=bits, first_and_last=7, calibration=[images]
    )
    return quantization.finalize(model).eval()


def _run(graph, images):
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), settings, ["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


def _images(number=64):
    # Wider than the calibration images, so that every bound is reached.
    return np.random.default_rng(0).normal(0, 2, (number, *SHAPE)).astype(np.float32)


def assert_plain(graph):
    """Only QuantizeLinear -> DequantizeLinear on int8 with zero points 0, and float layers around them."""
    wires = Graph(lift_constants(graph))
    quantizers = wires.nodes("QuantizeLinear", "DequantizeLinear")
    assert quantizers
    for node in quantizers:
        zero_point = wires.constant(node.input[2])
        assert zero_point.dtype == np.int8 and not zero_point.any()
    for node in wires.nodes("QuantizeLinear"):
        readers = wires.readers(node.output[0])
        assert readers and {reader.op_type for reader in readers} == {"DequantizeLinear"}
    for node in wires.nodes("DequantizeLinear"):
        stored = wires.constant(node.input[0])
        assert wires.maker(node.input[0], "QuantizeLinear") is not None or stored.dtype == np.int8
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"Cast", "Gather", "Mod"}, "nothing is packed"


@pytest.mark.parametrize("net", [TinyResidual, TinyConcat])
@pytest.mark.parametrize("bits", [7, 4, 2])
def test_the_graph_is_plain_and_not_a_number_differs(net, bits, tmp_path):
    model = _quantized(net(), bits)
    stock, _, _ = export_graph(model, torch.zeros(1, *SHAPE), 13)
    images = _images()
    wanted = _run(stock, images)
    deploy.write(model, tmp_path / "a.onnx", image_shape=SHAPE, form="tensorrt")
    written = onnx.load(str(tmp_path / "a.onnx"))
    assert np.array_equal(_run(written, images), wanted)
    assert_plain(written)
    onnx.checker.check_model(written, full_check=True)

    # As its users run it: as equal to the model as any file has to be.
    with torch.no_grad():
        targets = model(torch.from_numpy(images)).argmax(1)
    parity = deploy.check_parity(model, tmp_path / "a.onnx", [(torch.from_numpy(images), targets)])
    deploy.require(parity)


def test_the_usual_form_of_the_same_model_is_another_one(tmp_path):
    """So that the test above cannot pass on files that never needed a change."""
    deploy.write(_quantized(TinyResidual(), 7), tmp_path / "a.onnx", image_shape=SHAPE)
    with pytest.raises(AssertionError):
        assert_plain(onnx.load(str(tmp_path / "a.onnx")))


def test_what_has_8_bits_and_no_sign_is_refused_with_what_to_do(tmp_path):
    images = torch.rand(16, *SHAPE)
    model = quantization.quantize(TinyResidual().eval(), images[:1], calibration=[images]).eval()
    with pytest.raises(ExportError, match=r"counts up to 255: quantize with activations: 7"):
        deploy.write(model, tmp_path / "a.onnx", image_shape=SHAPE, form="tensorrt")
    assert list(tmp_path.iterdir()) == []


def _by_hand(act_quant, bits, **keys):
    torch.manual_seed(0)
    net = nn.Sequential(
        qnn.QuantIdentity(act_quant=act_quant, bit_width=bits, return_quant_tensor=False, **keys),
        qnn.QuantConv2d(3, 4, 3, bias_quant=None, weight_quant=Int8WeightPerChannelFloat),
        nn.Flatten(),
        qnn.QuantLinear(144, 2, bias=True, bias_quant=None, weight_quant=Int8WeightPerChannelFloat),
    )
    with torch.no_grad(), calibration_mode(net):
        net(torch.randn(8, *SHAPE))
    return net.eval()


@pytest.mark.parametrize(
    ("kind", "bits", "bounds"),
    [
        # int8 itself stops at both ends: no Clip is left.
        (Int8ActPerTensorFloat, 8, None),
        (Int8ActPerTensorFloat, 5, (-16, 15)),
        # The end at 127 is that of int8; nothing but the sum itself says that it is not negative.
        (Uint8ActPerTensorFloat, 7, (0, None)),
        (Uint8ActPerTensorFloat, 3, (0, 7)),
    ],
)
def test_bounds_of_integers_become_bounds_of_floats(kind, bits, bounds):
    stock, _, _ = export_graph(_by_hand(kind, bits), torch.zeros(1, *SHAPE), 13)
    images = _images()
    wanted = _run(stock, images)
    changed = rewrite_for_tensorrt(onnx.ModelProto.FromString(stock.SerializeToString()))
    assert np.array_equal(_run(changed, images), wanted)
    assert_plain(changed)
    wires = Graph(changed)
    [quantize] = wires.nodes("QuantizeLinear")
    clips = wires.nodes("Clip")
    if bounds is None:
        assert clips == []
        return
    [clip] = clips
    scale = wires.constant(quantize.input[1])
    found = [wires.constant(name) if name else None for name in clip.input[1:]] + [None]
    for bound, end in zip(bounds, found, strict=False):
        assert (end is None) == (bound is None)
        assert end is None or end == np.float32(bound) * scale


def test_a_zero_point_that_is_none_is_refused():
    graph, _, _ = export_graph(_by_hand(Int8ActPerTensorFloat, 8), torch.zeros(1, *SHAPE), 13)
    wires = Graph(lift_constants(graph))
    [quantize] = wires.nodes("QuantizeLinear")
    shifted = numpy_helper.from_array(np.array(3, np.int8), "three")
    graph.graph.initializer.append(shifted)
    for node in graph.graph.node:
        if node.name == quantize.name:
            node.input[2] = "three"
    with pytest.raises(ExportError, match="the zero point 0"):
        rewrite_for_tensorrt(graph)


def test_a_float_model_is_the_same_file_in_both_forms(tmp_path):
    for form in ("onnxruntime", "tensorrt"):
        deploy.write(TinyResidual().eval(), tmp_path / form, image_shape=SHAPE, form=form)
    assert (tmp_path / "onnxruntime").read_bytes() == (tmp_path / "tensorrt").read_bytes()

"""Proof in three layers: rewrites against the stock graph, each layer against the model, classes. And the audit."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from test_deploy import SHAPE, _batches, _conv, _quantizer, _shuffling
from torch import nn
from toys import TinyConcat, TinyResidual, tiny_net

from compress_aug import deploy, quantization
from compress_aug.deploy import rewrite as rewrites
from compress_aug.deploy.exporter import export_graph
from compress_aug.deploy.naming import WEIGHTED, name_nodes
from compress_aug.deploy.steps import layer_steps
from compress_aug.errors import ParityError
from compress_aug.models import load_model

SMALL = (3, 8, 8)


def _final(net, bits=8):
    images = torch.randn(32, *SMALL, generator=torch.Generator().manual_seed(0))
    net.train()(images)
    quantized = quantization.quantize(
        net.eval(), images[:1], weights=bits, activations=bits, calibration=[images]
    )
    return quantization.finalize(quantized.eval())


@pytest.fixture(scope="module", params=[8, 4], ids=["w8a8", "w4a4"])
def residual(request):
    return _final(TinyResidual(width=16), request.param)


def _images(number=64, seed=1, shape=SMALL):
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(seed))


def _with_bias(path, layer, steps):
    """Move the integer bias of a layer in a file by so many steps of its own grid."""
    model = onnx.load(str(path))
    made = {output: node for node in model.graph.node for output in node.output}
    [node] = [node for node in model.graph.node if node.name == layer]
    stored = made[node.input[2]].input[0]
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == stored]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.int32(steps), stored))
    onnx.save(model, str(path))


# Rewrites --------------------------------------------------------------


def test_every_rewrite_of_a_finalized_model_is_exact(tmp_path, residual):
    written = deploy.write(residual, tmp_path / "a.onnx", image_shape=SMALL, images=_images())
    assert {"fold_weight_clips", "clamp_as_integers", "integer_biases"} <= {r.name for r in written.rewrites}
    assert all(r.places > 0 and r.max_abs_diff == 0 for r in written.rewrites)
    assert written.notes == ()


def test_biases_off_the_grid_are_told(tmp_path):
    written = deploy.write(_shuffling(4, 4), tmp_path / "a.onnx", image_shape=SHAPE)
    moved = {r.name: r.max_abs_diff for r in written.rewrites if r.max_abs_diff}
    assert list(moved) == ["integer_biases"]
    assert "biases of 5 layers lay off the grid" in written.notes[0] and "finalize" in written.notes[0]


def test_a_broken_rewrite_is_caught_and_named(tmp_path, monkeypatch):
    def drop_idle_clips(graph):
        clips = [clip for clip in graph.nodes("Clip") if graph.maker(clip.input[0], "QuantizeLinear")]
        for clip in clips:
            graph.replace(clip.output[0], clip.input[0])
        return len(clips)

    monkeypatch.setattr(rewrites, "drop_idle_clips", drop_idle_clips)
    with pytest.raises(ParityError, match="The rewrite drop_idle_clips changes what the graph computes"):
        deploy.write(_shuffling(4, 4), tmp_path / "a.onnx", image_shape=SHAPE)
    assert list(tmp_path.iterdir()) == []


# Layers ----------------------------------------------------------------


def test_every_layer_agrees_from_equal_inputs(tmp_path, residual):
    deploy.write(residual, tmp_path / "a.onnx", image_shape=SMALL)
    layers = deploy.layer_steps(residual, tmp_path / "a.onnx", _images())
    names = [layer.layer for layer in layers]
    assert names == ["the input", "stem", "conv", "the sum after conv", "the pooling after conv", "fc"]
    assert layers[1].quantizer == "activation_quantizers.relu" and layers[-1].quantizer == ""
    assert layers[1].values == 64 * 16 * 8 * 8
    assert [(layer.max_steps, layer.flipped) for layer in layers[:-1]] == [(0, 0)] * 5
    assert layers[-1].max_steps < 0.01


def test_a_quantizer_that_is_called_again_has_a_name_for_each_call(tmp_path):
    net = _shuffling(8, 4)
    deploy.write(net, tmp_path / "a.onnx", image_shape=SHAPE)
    layers = {
        layer.quantizer: layer
        for layer in deploy.layer_steps(net, tmp_path / "a.onnx", _images(16, shape=SHAPE))
    }
    # The third call does nothing that the first two have not done.
    assert {"signed", "signed#2", "signed#4"} <= set(layers) and "signed#3" not in layers
    # The biases were rounded: a step at most.
    assert max(layer.max_steps for layer in layers.values()) == 1
    assert layers["sum_out"].max_steps == 0


def test_a_bias_moved_by_one_step_of_its_grid_is_caught_and_named(tmp_path):
    net = _final(TinyResidual(width=4), 8)
    deploy.write(net, tmp_path / "a.onnx", image_shape=SMALL)
    inputs = _batches(net, shape=SMALL)
    assert deploy.check_parity(net, tmp_path / "a.onnx", inputs).diverging is None
    _with_bias(tmp_path / "a.onnx", "conv", 1)
    parity = deploy.check_parity(net, tmp_path / "a.onnx", inputs)
    assert parity.diverging.layer == "conv" and 1e-4 < parity.diverging.flipped < 0.1
    # The layers after it get the model's inputs, and agree.
    assert [layer.layer for layer in parity.layers if layer.flipped] == ["conv"]
    assert parity.diverging.max_steps == 1 and parity.wrong is None


def test_a_layer_that_is_far_off_is_an_error_that_names_it(tmp_path, residual):
    deploy.write(residual, tmp_path / "a.onnx", image_shape=SMALL)
    inputs = _batches(residual, shape=SMALL)
    _with_bias(tmp_path / "a.onnx", "conv", 5000)
    parity = deploy.check_parity(residual, tmp_path / "a.onnx", inputs)
    assert parity.wrong.layer == "conv" and parity.wrong.max_steps > 1
    with pytest.raises(ParityError, match=r'layer "conv" \(up to [\d.]+ steps off|diverges, .* is "conv" \('):
        deploy.require(parity)


def test_the_layer_of_a_float_file_that_differs_is_named(tmp_path):
    net, other = tiny_net().eval(), tiny_net().eval()
    for each in (net, other):
        each[1].running_var.fill_(0.3)
    deploy.write(other, tmp_path / "a.onnx", image_shape=SMALL)
    layers = deploy.layer_steps(net, tmp_path / "a.onnx", _images())
    assert [layer.layer for layer in layers] == ["0", "3", "8"]
    assert max(layer.max_steps for layer in layers) < 0.01
    with torch.no_grad():
        net[3].weight.mul_(1.5)
    parity = deploy.check_parity(net, tmp_path / "a.onnx", _batches(net, shape=SMALL))
    assert parity.diverging.layer == parity.wrong.layer == "3"


@pytest.mark.parametrize("quantizes", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "preresnet_20", "alexnet"])
def test_nets_that_work_in_place_are_compared_with_what_their_layers_gave(tmp_path, name, quantizes):
    """A ReLU behind a layer may overwrite what that gave, statistics of trained norms make it visible."""
    small = (
        {"name": name}
        if name == "preresnet_20"
        else {"name": name, "width": 0.25 if name != "resnet8" else 4}
    )
    torch.manual_seed(0)
    net = load_model(small, classes=4, image_shape=(3, 32, 32))
    batch = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        for _ in range(5):
            net.train()(batch)
    net.eval()
    if quantizes:
        net = quantization.finalize(quantization.quantize(net, batch[:1], calibration=[batch]))
    deploy.write(net, tmp_path / "a.onnx", image_shape=(3, 32, 32))
    layers = deploy.layer_steps(net, tmp_path / "a.onnx", batch, optimize=False)
    assert len(layers) > 5 and not [str(layer) for layer in layers if layer.is_wrong]


@pytest.mark.parametrize(
    ("max_steps", "flipped", "values", "diverges"),
    [
        (0.0, 0.0, 100, False),
        (1.0, 1e-4, 10**6, False),
        (1.0, 1.1e-4, 10**6, True),
        (1.0, 0.02, 100, False),
        (1.0, 0.03, 100, True),
        (1.2, 0.0, 100, True),
        (float("inf"), 1.0, 100, True),
        (float("nan"), 0.0, 100, True),
    ],
)
def test_what_diverges(max_steps, flipped, values, diverges):
    assert deploy.LayerSteps("conv", "relu", max_steps, flipped, values).diverges == diverges


def test_values_that_are_no_numbers_diverge(tmp_path):
    net = tiny_net().eval()
    deploy.write(net, tmp_path / "a.onnx", image_shape=SMALL)
    with torch.no_grad():
        net[8].bias[1] = float("nan")
    assert deploy.layer_steps(net, tmp_path / "a.onnx", _images())[-1].max_steps == float("inf")


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
def test_nodes_bear_the_names_of_their_modules(quantized):
    net = _final(TinyConcat()) if quantized else TinyConcat().eval()
    graph, _, _ = export_graph(net, torch.zeros(1, *SMALL), 13)
    name_nodes(graph, net, torch.zeros(1, *SMALL))
    layers = [node.name for node in graph.graph.node if node.op_type in WEIGHTED]
    assert layers == ["stem.0", "depthwise.0", "pointwise.0", "join.0", "fc"]
    modules = dict(net.named_modules())
    quantizers = [node.name for node in graph.graph.node if node.op_type == "QuantizeLinear"]
    assert bool(quantizers) == quantized
    assert all(name.partition("#")[0] in modules for name in quantizers)


# Audit -----------------------------------------------------------------


def _stayed(tmp_path, net, shape=SHAPE):
    deploy.write(net, tmp_path / "a.onnx", image_shape=shape)
    return {name: (kind, reason) for name, kind, reason in deploy.audit(tmp_path / "a.onnx").stayed_float}


def test_layers_of_a_float_file_have_float_weights(tmp_path):
    stayed = _stayed(tmp_path, tiny_net(), SMALL)
    assert list(stayed) == ["0", "3", "8"]
    assert {reason for _, reason in stayed.values()} == {"its weight is not quantized"}


def test_a_missing_quantizer_is_seen_from_both_sides(tmp_path):
    net = _shuffling(8, 8)
    net.stem_out = nn.Identity()
    stayed = _stayed(tmp_path, net)
    assert "its output goes in float to " in stayed["stem"][1]
    assert stayed["left"][1].startswith("its input is not quantized: it comes in float from ")
    assert "after stem" in stayed["left"][1]
    assert set(stayed) == {"stem", "left"}


def test_a_sum_in_float_names_what_comes_in_float(tmp_path):
    net = _shuffling(8, 8)
    net.sum_out = nn.Identity()
    kind, reason = _stayed(tmp_path, net)["the sum after narrow"]
    assert kind == "Add"
    assert (
        reason == "its output goes in float to ReduceMean (the pooling after narrow), before it is quantized"
    )


class _OneInput(nn.Module):
    """A sum of which one side is float, and a product of two computed tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.out = _quantizer(8), _quantizer(8)
        self.conv = _conv(3, 3, 8)

    def forward(self, images):
        total = self.out(self.out(self.conv(self.enter(images))) + images.sigmoid())
        pixels = total.flatten(2)
        return (pixels @ pixels.transpose(1, 2).sigmoid()).mean(2)


def test_sums_and_products_of_computed_tensors_name_the_side_that_is_float(tmp_path):
    net = _OneInput().eval()
    stayed = _stayed(tmp_path, net)
    assert (
        stayed["the sum after conv"][1]
        == "an input is not quantized: it comes in float from Sigmoid (the activation)"
    )
    assert stayed["the product after conv"][1].startswith(
        "its second input is not quantized: it comes in float from Sigmoid"
    )
    assert deploy.audit(tmp_path / "a.onnx").integer_layers == 1


def _one_layer(path, *, kind="Conv", enter=np.uint8, leave=(np.uint8,), clip=False, computed_bias=False):
    """A file of one layer between quantizers: their types, how many there are behind it, a Clip in each."""
    made, nodes = onnx.helper.make_node, []
    constants = {
        "weight": np.ones((4, 3, 1, 1) if kind == "Conv" else (3, 4, 1, 1), np.int8),
        "weight_scale": np.full(4, 0.02, np.float32),
        "weight_zero": np.zeros(4, np.int8),
    }

    def quantizer(source, name, kind, scale):
        zero = 128 if kind is np.uint8 else 0
        values = {"scale": np.float32(scale)} | {
            key: np.array(zero + shift, kind) for key, shift in (("zero", 0), ("low", -8), ("high", 7))
        }
        constants.update({f"{name}_{key}": value for key, value in values.items()})
        grid, integers = [f"{name}_scale", f"{name}_zero"], f"{name}_integers"
        nodes.append(made("QuantizeLinear", [source, *grid], [integers]))
        if clip:
            nodes.append(made("Clip", [integers, f"{name}_low", f"{name}_high"], [f"{name}_clipped"]))
        nodes.append(made("DequantizeLinear", [f"{name}_clipped" if clip else integers, *grid], [name]))

    quantizer("input", "entered", enter, 0.1)
    axis = 0 if kind == "Conv" else 1
    nodes.append(
        made("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["real_weight"], axis=axis)
    )
    inputs = ["entered", "real_weight"]
    if computed_bias:
        constants["shape"] = np.array([4])
        nodes.append(made("ReduceMean", ["input"], ["mean"], keepdims=0))
        nodes.append(made("Expand", ["mean", "shape"], ["bias"]))
        inputs.append("bias")
    nodes.append(made(kind, inputs, ["summed"], name="layer"))
    for place, given in enumerate(leave):
        quantizer("summed", f"left{place}", given, 0.1 + 0.1 * place)
    ends = [f"left{place}" for place in range(len(leave))]
    nodes.append(made("Concat", ends, ["joined"], axis=1))
    nodes.append(made("Flatten", ["joined"], ["logits"]))
    graph = onnx.helper.make_graph(
        nodes,
        "toy",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 3, 4, 4])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7),
        str(path),
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, ""),
        ({"clip": True}, ""),
        (
            {"enter": np.int8, "leave": (np.int8,), "clip": True},
            "what it reads and writes is int8, its kernel wants uint8",
        ),
        (
            {"enter": np.int8, "clip": True},
            "what it reads and writes is int8 and uint8, and its kernel wants one of them",
        ),
        (
            {"leave": (np.uint8, np.uint8)},
            "its output is quantized on 2 grids, and a kernel has one",
        ),
        ({"computed_bias": True}, "its bias is float"),
        (
            {"kind": "ConvTranspose"},
            "all of it is quantized, but this runtime has no integer kernel for it",
        ),
    ],
)
def test_what_keeps_a_quantized_layer_in_float(tmp_path, given, reason):
    _one_layer(tmp_path / "a.onnx", **given)
    found = deploy.audit(tmp_path / "a.onnx")
    kind = given.get("kind", "Conv")
    assert [(name, reason) for name, _, reason in found.stayed_float] == (
        [("layer", reason)] if reason else []
    )
    assert all(operator in (kind, f"Fused{kind}") for _, operator, _ in found.stayed_float)
    assert found.integer_layers == (not reason)


# One side quantized ------------------------------------------------------


class _Lines(nn.Module):
    """Two convolutions and two linear layers, so that one of each can be excepted."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.hidden, self.head = nn.Linear(8, 64), nn.Linear(64, 4)

    def forward(self, x):
        x = torch.relu(self.middle(torch.relu(self.first(x)))).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("side", ["weights", "activations"])
@pytest.mark.parametrize("layer", ["middle", "hidden"])
def test_a_layer_with_one_quantized_side_stays_as_it_is_in_the_model(tmp_path, layer, side, bits):
    """ONNX Runtime would quantize its other side too, on a grid of its own."""
    images = _images()
    net = quantization.quantize(
        _Lines().eval(),
        images[:1],
        weights=bits,
        activations=bits,
        overrides={layer: {side: "float"}},
        calibration=[images],
    )
    model = quantization.finalize(net).eval()
    path = tmp_path / "a.onnx"
    written = deploy.write(model, path, image_shape=SMALL, images=images)
    assert {r.name: r.max_abs_diff for r in written.rewrites}["plain_one_sided"] == 0
    assert all(steps.max_steps <= 1 and steps.flipped < 1e-3 for steps in layer_steps(model, path, images))
    audit = deploy.audit(path)
    assert layer in {name for name, _, _ in audit.stayed_float}
    assert audit.integer_layers + audit.float_layers == 4, "each of the four layers is in one of the lists"


def test_layers_with_two_quantized_sides_are_left_alone(tmp_path, residual):
    written = deploy.write(residual, tmp_path / "a.onnx", image_shape=SMALL)
    assert "plain_one_sided" not in {r.name for r in written.rewrites}

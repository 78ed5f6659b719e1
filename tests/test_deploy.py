"""Deploy: each rewrite against the stock exporter's graph, the file against its model, errors, latency.

The reference is ONNX Runtime with its optimizations off, which computes a graph as it is written.
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
from torch.nn import functional
from torch.nn.utils import prune
from toys import TinyResidual, tiny_net

from compress_aug import deploy, quantization, surgery
from compress_aug.deploy import rewrite as rewrites
from compress_aug.deploy.biases import integer_biases
from compress_aug.deploy.exporter import export_graph
from compress_aug.deploy.graph import Graph, lift_constants
from compress_aug.deploy.narrow import narrow_weights
from compress_aug.deploy.packing import pack_weights
from compress_aug.errors import ExportError, ParityError

SHAPE = (3, 12, 12)


def _conv(inputs, outputs, bits, **keys):
    keys.setdefault("kernel_size", 3)
    keys.setdefault("padding", keys["kernel_size"] // 2)
    return qnn.QuantConv2d(
        inputs,
        outputs,
        bias_quant=None,
        weight_quant=Int8WeightPerChannelFloat,
        weight_bit_width=bits,
        **keys,
    )


def _quantizer(bits, *, signed=True):
    kind = Int8ActPerTensorFloat if signed else Uint8ActPerTensorFloat
    return qnn.QuantIdentity(act_quant=kind, bit_width=bits, return_quant_tensor=False)


class Shuffling(nn.Module):
    """What the rewrites look for: ReLU, ReLU6, a sum, a pool, a split, a shuffle, a depthwise layer."""

    def __init__(self, weights, activations):
        super().__init__()
        self.enter = _quantizer(8)
        self.stem, self.stem_out = _conv(3, 16, weights), _quantizer(activations, signed=False)
        self.left, self.left_out = _conv(8, 16, weights), _quantizer(activations, signed=False)
        self.depth, self.depth_out = _conv(16, 16, weights, groups=16), _quantizer(activations)
        self.narrow = _conv(16, 8, weights, kernel_size=1)
        self.signed = _quantizer(activations)
        self.sum_out = _quantizer(activations)
        self.last = qnn.QuantLinear(
            16, 5, bias=True, bias_quant=None, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=8
        )
        self.last_in = _quantizer(8)

    def forward(self, images):
        stem = self.stem_out(functional.relu(self.stem(self.enter(images))))
        pooled = functional.max_pool2d(stem, 2)
        one, two = pooled.chunk(2, dim=1)
        left = self.left_out(functional.relu6(self.left(one)))
        left = self.signed(self.narrow(self.depth_out(functional.relu6(self.depth(left)))))
        both = self.signed(torch.cat([left, self.signed(two)], 1))
        shuffled = both.view(-1, 2, 8, 6, 6).transpose(1, 2).reshape(-1, 16, 6, 6)
        total = self.sum_out(shuffled + self.signed(pooled))
        return self.last(self.last_in(total.mean((2, 3))))


def _shuffling(weights, activations):
    torch.manual_seed(0)
    net = Shuffling(weights, activations).eval()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, 0, 0.3)
    with torch.no_grad(), calibration_mode(net):
        net(2 * torch.randn(16, *SHAPE))
    return net.eval()


@pytest.fixture(scope="module", params=[(8, 8), (4, 4), (2, 3)], ids=lambda bits: "w{}a{}".format(*bits))
def stock(request):
    """The graph as the exporter writes it."""
    graph, _, _ = export_graph(_shuffling(*request.param), torch.zeros(1, *SHAPE), 13)
    return graph


def _copy(graph):
    return onnx.ModelProto.FromString(graph.SerializeToString())


def _run(graph, images, *, optimize=False):
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    if not optimize:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), settings, ["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


def _images(number=64, seed=0):
    # Wider than the calibration images, so that every clip is reached.
    return np.random.default_rng(seed).normal(0, 3, (number, *SHAPE)).astype(np.float32)


def _changed(graph, *changes):
    """The graph after these rewrites, and in how many places each did something."""
    wires = Graph(lift_constants(_copy(graph)))
    counts = [change(wires) for change in changes]
    return wires.finish(), counts


# What must come first for a rewrite to find anything.
BEFORE = {
    rewrites.drop_requantization: (rewrites.fold_weight_clips, rewrites.move_data_as_integers),
}
# Behind the pool and the split, an input shows its grid only once the integers themselves have moved.
BEFORE_BIASES = (
    rewrites.drop_identities,
    rewrites.fold_weight_clips,
    rewrites.move_data_as_integers,
    rewrites.move_data_as_integers,
)


@pytest.mark.parametrize(
    "change",
    [
        rewrites.fold_weight_clips,
        rewrites.unsigned_activations,
        rewrites.clamp_as_integers,
        rewrites.drop_requantization,
        rewrites.move_data_as_integers,
    ],
)
def test_a_rewrite_alone_changes_no_number(stock, change):
    changed, counts = _changed(stock, *BEFORE.get(change, ()), change)
    assert counts[-1] > 0
    onnx.checker.check_model(changed, full_check=True)
    assert np.array_equal(_run(changed, _images()), _run(stock, _images()))


def test_idle_clips_are_dropped_and_nothing_changes(stock):
    changed, counts = _changed(stock, rewrites.unsigned_activations, rewrites.drop_idle_clips)
    tight, _ = _changed(stock, rewrites.unsigned_activations)
    dropped = sum(node.op_type == "Clip" for node in tight.graph.node) - sum(
        node.op_type == "Clip" for node in changed.graph.node
    )
    assert dropped == counts[-1]
    assert np.array_equal(_run(changed, _images()), _run(stock, _images()))


def test_all_rewrites_together_change_no_number_when_biases_lie_on_the_grid(stock):
    # Round the biases first: their rounding is the one change that is meant.
    snapped, counts = _changed(stock, *BEFORE_BIASES, integer_biases)
    assert counts[-1] == 5
    rewritten = rewrites.rewrite(_copy(snapped))
    onnx.checker.check_model(rewritten, full_check=True)
    assert np.array_equal(_run(rewritten, _images()), _run(snapped, _images()))
    again = rewrites.rewrite(_copy(stock))
    assert np.array_equal(_run(again, _images()), _run(snapped, _images()))


def test_all_activations_end_up_unsigned_and_the_weights_whole(stock):
    rewritten = rewrites.rewrite(_copy(stock), pack=False)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in rewritten.graph.initializer}
    quantizers = [node for node in rewritten.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers and all(constants[node.input[2]].dtype == np.uint8 for node in quantizers)
    clips = [node for node in rewritten.graph.node if node.op_type == "Clip"]
    assert not any(clip.input[0] in constants for clip in clips)
    assert not any(node.op_type in ("Relu", "Identity") for node in rewritten.graph.node)
    kinds = {constants[node.input[0]].dtype for node in rewritten.graph.node if node.input[0] in constants}
    assert kinds == {np.dtype(np.int8), np.dtype(np.int32)}


def test_a_clamp_before_a_narrow_quantizer_becomes_its_bounds():
    quantize = [
        onnx.helper.make_node("Clip", ["input", "low", "high"], ["clamped"]),
        onnx.helper.make_node("QuantizeLinear", ["clamped", "scale", "zero"], ["integers"]),
        onnx.helper.make_node("Clip", ["integers", "least", "most"], ["narrow"]),
        onnx.helper.make_node("DequantizeLinear", ["narrow", "scale", "zero"], ["logits"]),
    ]
    constants = {
        "low": np.float32(-0.35),
        "high": np.float32(0.85),
        "scale": np.float32(0.1),
        "zero": np.uint8(100),
        "least": np.uint8(95),
        "most": np.uint8(120),
    }
    graph = onnx.helper.make_graph(
        quantize,
        "toy",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n"])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    changed, counts = _changed(model, rewrites.clamp_as_integers)
    assert counts == [1]
    assert [node.op_type for node in changed.graph.node] == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    line = np.linspace(-3, 3, 1201, dtype=np.float32)
    assert np.array_equal(_run(changed, line), _run(model, line))


def _padded(value=0.0, mode="constant", scale=0.1):
    """Quantized, dequantized, padded along the channels, and something that reads it."""
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["integers"]),
        onnx.helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["floats"]),
        onnx.helper.make_node("Pad", ["floats", "pads", "fill"], ["wide"], mode=mode),
        onnx.helper.make_node("Abs", ["wide"], ["logits"]),
    ]
    constants = {
        "scale": np.float32(scale),
        "zero": np.uint8(100),
        "pads": np.array([0, 0, 0, 1], dtype=np.int64),
        "fill": np.float32(value),
    }
    graph = onnx.helper.make_graph(
        nodes,
        "toy",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 3])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(item), name) for name, item in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)


def test_zeros_are_padded_as_integers():
    model = _padded()
    changed, counts = _changed(model, rewrites.pad_as_integers)
    assert counts == [1]
    kinds = [node.op_type for node in changed.graph.node]
    assert kinds == ["QuantizeLinear", "Pad", "DequantizeLinear", "Abs"]
    onnx.checker.check_model(changed, full_check=True)
    images = np.random.default_rng(0).normal(0, 5, (50, 3)).astype(np.float32)
    assert np.array_equal(_run(changed, images), _run(model, images))


@pytest.mark.parametrize("given", [{"value": 0.5}, {"mode": "edge"}])
def test_what_is_padded_otherwise_stays_in_float(given):
    _, counts = _changed(_padded(**given), rewrites.pad_as_integers)
    assert counts == [0]


def test_a_bias_is_rounded_by_at_most_half_a_step(stock):
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in stock.graph.initializer}
    changed, counts = _changed(stock, *BEFORE_BIASES, integer_biases)
    assert counts[-1] == 5
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    made = {node.output[0]: node for node in changed.graph.node}
    biased = [node for node in changed.graph.node if node.op_type in ("Conv", "Gemm")]
    original = [node for node in stock.graph.node if node.op_type in ("Conv", "Gemm")]
    for node, old in zip(biased, original, strict=True):
        integers, scale, zero = (after[name] for name in made[node.input[2]].input)
        assert integers.dtype == np.int32 and not zero.any()
        wanted = before[old.input[2]]
        assert np.all(np.abs(integers * scale.astype(np.float64) - wanted) <= 0.5001 * scale)


def test_a_bias_beside_weights_that_are_all_zero_does_not_overflow():
    net = _shuffling(8, 8)
    with torch.no_grad():
        net.stem.weight[:4] = 0
        net.stem.bias[:4] = torch.tensor([0.5, -0.7, 1.5, 0.9])
    graph, _, _ = export_graph(net, torch.zeros(1, *SHAPE), 13)
    changed = rewrites.rewrite(_copy(graph))
    # A stock file is right here only with the optimizations off.
    wanted = _run(graph, _images())
    for optimize in (False, True):
        found = _run(changed, _images(), optimize=optimize)
        assert np.abs(found - wanted).max() < 0.05 * np.ptp(wanted)


def _weight_file(weights, opset=13):
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["real"]),
            onnx.helper.make_node("Add", ["real", "input"], ["logits"]),
        ],
        "toy",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(weights, "weight"),
            numpy_helper.from_array(np.array(1, np.float32), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ],
    )
    sets = [onnx.helper.make_opsetid("", opset)]
    version = onnx.helper.find_min_ir_version_for(sets)
    return onnx.helper.make_model(graph, opset_imports=sets, ir_version=version)


@pytest.mark.parametrize("values", [[-1, 1], [-1, 0, 1], [-3, -1, 1, 3], range(-7, 8), range(-3, 4)])
def test_packed_weights_come_out_as_they_went_in(values):
    weights = np.random.default_rng(0).choice(np.array(values, np.int8), (37, 41, 3)).astype(np.int8)
    model = _weight_file(weights)
    changed, counts = _changed(model, pack_weights)
    assert counts == [1]
    assert np.array_equal(_run(changed, np.zeros(1, np.float32)), weights)
    most = {2: 1 / 8, 3: 1 / 5, 4: 1 / 4, 7: 1 / 2, 15: 1 / 2}[len(values)]
    assert len(changed.SerializeToString()) < weights.size * most + 850


@pytest.mark.parametrize(
    ("values", "opset", "kind"),
    [
        (range(-7, 8), 21, "INT4"),
        ([-3, -1, 1, 3], 21, None),
        (range(-1, 2), 21, None),
        (range(-1, 2), 25, "INT2"),
        (range(-2, 2), 25, "INT2"),
        (range(-7, 8), 25, "INT4"),
        (range(-7, 8), 13, None),
        (range(-15, 16, 2), 25, None),
        (range(-127, 128), 25, None),
    ],
)
def test_later_operators_have_tensors_of_few_bits(values, opset, kind):
    weights = np.random.default_rng(0).choice(np.array(values, np.int8), (37, 41, 3)).astype(np.int8)
    model = _weight_file(weights, opset)
    changed, counts = _changed(model, lambda graph: narrow_weights(graph, opset))
    assert counts == [kind is not None]
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in changed.graph.initializer}
    assert kinds == {"FLOAT", "INT8"} | ({kind} if kind else set())
    for optimize in (False, True):
        assert np.array_equal(_run(changed, np.zeros(1, np.float32), optimize=optimize), weights)
    if kind:
        assert len(changed.SerializeToString()) < weights.size * int(kind[-1]) / 8 + 300


@pytest.mark.parametrize(("bits", "opset"), [(4, 21), (2, 25)])
def test_a_file_of_later_operators_computes_the_same_on_integers(tmp_path, bits, opset):
    net = _shuffling(bits, 4)
    for version in (13, opset):
        written = deploy.write(net, tmp_path / f"{version}.onnx", image_shape=SHAPE, opset=version)
        assert written.opset == version
    one, other = (onnx.load(str(tmp_path / f"{version}.onnx")) for version in (13, opset))
    assert other.opset_import[0].version == opset
    assert np.array_equal(_run(one, _images(), optimize=True), _run(other, _images(), optimize=True))
    assert deploy.audit(tmp_path / f"{opset}.onnx").float_layers == 0


def test_operators_that_do_not_exist_yet_are_told(tmp_path):
    with pytest.raises(ExportError, match="cannot be written with ONNX operators 99: "):
        deploy.write(tiny_net(), tmp_path / "a.onnx", image_shape=(3, 8, 8), opset=99)


def test_weights_of_8_bits_are_not_packed(stock):
    graph, _, _ = export_graph(_shuffling(8, 8), torch.zeros(1, *SHAPE), 13)
    assert _changed(graph, rewrites.fold_weight_clips, pack_weights)[1][-1] == 0


# The whole file --------------------------------------------------------


def _names_in(folder):
    return [path.name for path in folder.iterdir()]


def _batches(net, number=96, seed=3, shape=SHAPE):
    images = torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (number, *shape)).astype(np.float32))
    with torch.no_grad():
        targets = net(images).argmax(1)
    return [(images[start : start + 32], targets[start : start + 32]) for start in range(0, number, 32)]


def test_a_float_model_and_its_file_agree(tmp_path):
    net = TinyResidual().eval()
    assert deploy.write(net, tmp_path / "a.onnx", image_shape=(3, 8, 8)) == deploy.Written(13)
    parity = deploy.check_parity(net, tmp_path / "a.onnx", _batches(net, shape=(3, 8, 8)))
    assert parity.max_abs_diff < 1e-5
    assert (parity.top1_agreement, parity.accuracy, parity.model_accuracy) == (1.0, 1.0, 1.0)
    assert (parity.images, parity.disagreements, parity.due_to_runtime) == (96, 0, None)
    deploy.require(parity)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in "ab":
        deploy.write(_shuffling(4, 4), tmp_path / f"{name}.onnx", image_shape=SHAPE)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_file_has_the_interface_that_was_promised(tmp_path):
    deploy.write(_shuffling(4, 4), tmp_path / "a.onnx", image_shape=SHAPE)
    model = onnx.load(str(tmp_path / "a.onnx"))
    onnx.checker.check_model(model, full_check=True)
    [entry], [end] = model.graph.input, model.graph.output
    assert (entry.name, end.name) == ("input", "logits")
    dims = entry.type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch" and [dim.dim_value for dim in dims[1:]] == list(SHAPE)
    assert model.opset_import[0].version == 13 and model.ir_version <= 7
    assert _names_in(tmp_path) == ["a.onnx"]


def test_writing_leaves_the_model_as_it_is(tmp_path):
    net = tiny_net().train()
    prune.l1_unstructured(net[3], "weight", amount=0.5)
    surgery.record(net, "mask", layers={"3": [8, 8, 3, 3]})
    net(torch.rand(4, 3, 8, 8))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen = []

    def finalize(model):
        seen.append(model)
        with torch.no_grad():
            model[8].bias.fill_(7.0)
        return model

    deploy.write(net, tmp_path / "a.onnx", image_shape=(3, 8, 8), finalize=finalize)
    assert seen[0] is not net and net.training and hasattr(net[3], "weight_mask")
    assert surgery.surgery_log(net) == [{"verb": "mask", "layers": {"3": [8, 8, 3, 3]}}]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    model = onnx.load(str(tmp_path / "a.onnx"))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert any(np.array_equal(value, np.full(4, 7.0, np.float32)) for value in arrays.values())
    weights = [value for value in arrays.values() if value.shape == (8, 8, 3, 3)]
    assert [(value == 0).mean() for value in weights] == [0.5]


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 3)], ids=lambda bits: "w{}a{}".format(*bits))
def test_every_layer_of_a_quantized_file_runs_on_integers(tmp_path, bits):
    deploy.write(_shuffling(*bits), tmp_path / "a.onnx", image_shape=SHAPE)
    audit = deploy.audit(tmp_path / "a.onnx")
    # Four convolutions, a sum and a linear layer.
    assert (audit.integer_layers, audit.float_layers, audit.stayed_float) == (6, 0, ())


def test_fewer_bits_make_a_smaller_file(tmp_path):
    sizes = {}
    for bits in (8, 2):
        net = _shuffling(bits, 8)
        for pack in (True, False):
            path = tmp_path / f"{bits}{pack}.onnx"
            deploy.write(net, path, image_shape=SHAPE, pack=pack)
            sizes[bits, pack] = path.stat().st_size
        assert np.array_equal(
            _run(onnx.load(str(tmp_path / f"{bits}True.onnx")), _images()),
            _run(onnx.load(str(tmp_path / f"{bits}False.onnx")), _images()),
        )
    # Of this toy only the layer of 1152 weights is worth packing at 2 bits.
    assert sizes[2, True] < sizes[2, False] - 300
    assert sizes[8, True] == sizes[8, False]


def test_metadata_comes_back(tmp_path):
    told = deploy.image_metadata(image_shape=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3, classes=["Käse", "b"])
    deploy.write(
        tiny_net(), tmp_path / "a.onnx", image_shape=(3, 8, 8), metadata={**told, "recipe": "x: 1\ny"}
    )
    assert deploy.read_metadata(tmp_path / "a.onnx") == {**told, "recipe": "x: 1\ny"}
    deploy.write(tiny_net(), tmp_path / "b.onnx", image_shape=(3, 8, 8))
    assert deploy.read_metadata(tmp_path / "b.onnx") == {}
    with pytest.raises(ExportError, match=r"There is no file .*none\.onnx"):
        deploy.read_metadata(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ExportError, match=r"cannot load .*text\.onnx"):
        deploy.read_metadata(tmp_path / "text.onnx")


class Attention(nn.Module):
    """One attention layer over the pixels, on which torch would take its fused path."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, images):
        pixels = images.flatten(2).transpose(1, 2)
        return self.last(self.mix(pixels, pixels, pixels, need_weights=False)[0].mean(1))


def test_attention_gets_the_operators_it_needs_and_the_result_says_so(tmp_path):
    net = Attention().eval()
    written = deploy.write(net, tmp_path / "a.onnx", image_shape=(4, 5, 5))
    assert written.opset == 14
    assert "scaled_dot_product_attention" in written.notes[0] and '"mix"' in written.notes[0]
    assert torch.backends.mha.get_fastpath_enabled()
    parity = deploy.check_parity(net, tmp_path / "a.onnx", _batches(net, shape=(4, 5, 5)))
    assert parity.max_abs_diff < 1e-5


class _Does(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda x: torch.linalg.svd(x.flatten(1)[:, None])[1], 'no operator for linalg_svd in layer "1"'),
        (lambda x: x.nothing, 'failed in layer "1" with: .* no attribute'),
        (lambda x: (x.mean((2, 3)), x), "it returns 2 tensors"),
        (lambda x: x.mean((1, 2, 3)), r"logits of shape \(1, classes\) for 1 images, but it returns \(1,\)"),
        (lambda x: x.reshape(1, -1), r"one image but not on two: write x\.flatten\(1\)"),
    ],
)
def test_a_model_that_cannot_be_written_is_told_in_one_sentence(tmp_path, capfd, function, sentence):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), _Does(function))
    with pytest.raises(ExportError, match=sentence) as caught:
        deploy.write(net, tmp_path / "a.onnx", image_shape=(3, 4, 4))
    assert "\n" not in str(caught.value)
    assert _names_in(tmp_path) == []
    assert capfd.readouterr().out == ""


def test_what_a_model_prints_is_not_lost(tmp_path, capfd):
    net = nn.Sequential(_Does(lambda x: print("hello") or x), nn.Flatten(), nn.Linear(48, 2))
    deploy.write(net, tmp_path / "a.onnx", image_shape=(3, 4, 4))
    assert "hello" in capfd.readouterr().out


def test_a_folder_that_is_missing_is_told(tmp_path):
    with pytest.raises(ExportError, match=r"none/a\.onnx cannot be written: No such file"):
        deploy.write(tiny_net(), tmp_path / "none" / "a.onnx", image_shape=(3, 8, 8))


def test_the_file_of_another_model_is_refused(tmp_path):
    net, other = tiny_net().eval(), tiny_net().eval()
    with torch.no_grad():
        other[8].weight.neg_()
    deploy.write(other, tmp_path / "a.onnx", image_shape=(3, 8, 8))
    parity = deploy.check_parity(net, tmp_path / "a.onnx", _batches(net, number=96, shape=(3, 8, 8)))
    assert parity.disagreements > 2 and parity.due_to_runtime == 0.0
    assert parity.accuracy == pytest.approx(1 - parity.disagreements / 96) and parity.model_accuracy == 1.0
    with pytest.raises(ParityError, match=r"at most 2 may.*the file itself differs"):
        deploy.require(parity)
    wide = tiny_net(classes=7).eval()
    with pytest.raises(ParityError, match=r"logits of shape \(32, 7\), the file of shape \(32, 4\)"):
        deploy.check_parity(wide, tmp_path / "a.onnx", _batches(wide, shape=(3, 8, 8)))


def test_parity_needs_images_and_numbers(tmp_path):
    net = tiny_net().eval()
    deploy.write(net, tmp_path / "a.onnx", image_shape=(3, 8, 8))
    with pytest.raises(ExportError, match="no images to compare"):
        deploy.check_parity(net, tmp_path / "a.onnx", [])
    with pytest.raises(ExportError, match=r"cannot run .*a\.onnx on inputs of shape \(2, 3, 9, 9\)"):
        deploy.check_parity(net, tmp_path / "a.onnx", [(torch.zeros(2, 3, 9, 9), torch.zeros(2).long())])
    with torch.no_grad():
        net[8].bias.fill_(float("nan"))
    parity = deploy.check_parity(net, tmp_path / "a.onnx", [(torch.zeros(2, 3, 8, 8), torch.zeros(2).long())])
    with pytest.raises(ParityError, match="not numbers"):
        deploy.require(parity)


@pytest.mark.parametrize(
    ("images", "disagreements", "fine"),
    [
        (399, 2, True),
        (399, 3, False),
        (400, 2, True),
        (400, 3, False),
        (1000, 5, True),
        (1000, 6, False),
        (3, 2, True),
    ],
)
def test_what_counts_as_parity(images, disagreements, fine):
    agreement = 1 - disagreements / images
    parity = deploy.Parity(0.1, agreement, 0.9, 0.9, images, disagreements, 1.0)
    assert parity.holds == fine
    if not fine:
        with pytest.raises(ParityError, match="integer kernels compute something else"):
            deploy.require(parity)


# Together with quantization --------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_survives_export(tmp_path, bits):
    net = TinyResidual(width=16).eval()
    prune.l1_unstructured(net.conv, "weight", amount=0.6)
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    quantized = quantization.quantize(
        net, images[:1], weights=bits, activations=bits, calibration=[images]
    ).eval()
    final = quantization.finalize(surgery.copy_model(quantized))
    deploy.write(quantized, tmp_path / "a.onnx", image_shape=(3, 8, 8), finalize=quantization.finalize)
    parity = deploy.check_parity(final, tmp_path / "a.onnx", _batches(final, shape=(3, 8, 8)))
    deploy.require(parity)
    audit = deploy.audit(tmp_path / "a.onnx")
    assert audit.float_layers == 0 and audit.integer_layers == 4
    # Pruned weights are zeros among the integers as well.
    deploy.write(final, tmp_path / "b.onnx", image_shape=(3, 8, 8), pack=False)
    arrays = [numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "b.onnx")).graph.initializer]
    [weights] = [value for value in arrays if value.shape == (16, 16, 3, 3)]
    assert (weights == 0).mean() >= 0.599


def test_the_float_twin_of_a_quantized_model_is_a_float_file(tmp_path):
    images = torch.rand(16, 3, 8, 8)
    quantized = quantization.quantize(tiny_net().eval(), images[:1], calibration=[images]).eval()
    twin = quantization.without_quantizers(quantized)
    deploy.write(twin, tmp_path / "a.onnx", image_shape=(3, 8, 8))
    assert deploy.audit(tmp_path / "a.onnx").integer_layers == 0


# Latency ---------------------------------------------------------------


def test_latency_times_a_file_in_turns_with_another(tmp_path):
    for name, width in (("a", 4), ("b", 8)):
        deploy.write(tiny_net(width=width), tmp_path / f"{name}.onnx", image_shape=(3, 8, 8))
    times = deploy.latency(tmp_path / "a.onnx", repeats=5, against=tmp_path / "b.onnx")
    assert 0 < times.p50_ms <= times.p95_ms and 0 < times.against_p50_ms <= times.against_p95_ms
    assert times.ratio == pytest.approx(times.against_p50_ms / times.p50_ms, rel=1e-3)
    assert (times.threads, times.repeats) == (1, 5)
    alone = deploy.latency(tmp_path / "a.onnx", repeats=2)
    assert (alone.against_p50_ms, alone.ratio) == (None, None)


def test_a_file_that_cannot_be_timed_is_told(tmp_path):
    with pytest.raises(ExportError, match=r"could not be timed: There is no file .*none\.onnx"):
        deploy.latency(tmp_path / "none.onnx")

"""Quantization, against torch's own fake quantization; masks, replay, biases, learning, errors."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from toys import TinyResidual, tiny_net

from compress_aug import models, quantization
from compress_aug.errors import ModelError, QuantizeError
from compress_aug.measure import effective_weight, sparsity
from compress_aug.pruning import mask_smallest
from compress_aug.pruning import replay as replay_mask
from compress_aug.quantization import layers
from compress_aug.quantization.calibrate import Magnitudes
from compress_aug.quantization.finalize import integer_layers
from compress_aug.quantization.folding import fold_batch_norms
from compress_aug.quantization.graph import traced
from compress_aug.quantization.scale_groups import Flow, first_layers, last_layers, scale_groups
from compress_aug.surgery import copy_model, make_permanent, masked_layers, record, surgery_log


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(number: int = 8, *, size: int = 8, channels: int = 3) -> Tensor:
    return torch.randn(number, channels, size, size, generator=torch.Generator().manual_seed(1))


def with_statistics(model: nn.Module, batch: Tensor) -> nn.Module:
    """The model in eval mode, its batch norms no longer the identity."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    with torch.no_grad():
        for _ in range(3):
            model(batch)
    return model.eval()


def quantized(model: nn.Module, batch: Tensor | None = None, **options: Any) -> nn.Module:
    batch = images() if batch is None else batch
    return quantization.quantize(model, batch[:1], calibration=[batch], **options)


def quantizers(model: nn.Module) -> dict[str, nn.Module]:
    """Each quantizer by the name of the operation it follows."""
    found = {
        name: module for name, module in model.named_modules() if type(module).__name__ == "QuantIdentity"
    }
    return {name.rsplit(".", 1)[1]: module for name, module in found.items()}


def integers(model: nn.Module) -> dict[str, Tensor]:
    """The integer weights of every quantized layer, masks applied."""
    found = {}
    for name, layer in model.named_modules():
        if type(layer).__name__ in ("QuantConv2d", "QuantLinear"):
            scale = layers.weight_scales(layer, effective_weight(layer))
            shape = (-1,) + (1,) * (layer.weight.ndim - 1)
            found[name] = (effective_weight(layer) / scale.view(shape)).round()
    return found


def train_steps(model: nn.Module, batch: Tensor, steps: int = 3, lr: float = 0.01) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    targets = torch.arange(len(batch)) % 4
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(batch), targets).backward()
        optimizer.step()


class Shuffle(nn.Module):
    """Split, one half convolved, concatenated and shuffled: all of it moves but the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True))
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = self.stem(x).chunk(2, dim=1)
        merged = torch.cat([kept, self.branch(changed)], dim=1)
        n, c, h, w = merged.shape
        shuffled = merged.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(self.pool(shuffled).mean([2, 3]))


class Functional(nn.Module):
    """Everything that can be a function is one; the second half reads one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.first(x)), 2)
        x = functional.relu6(self.shared(self.shared(x))) + x
        x = functional.dropout(x, 0.5, training=self.training)
        return self.fc(torch.flatten(x, 1))


class PreActivation(nn.Module):
    """A batch norm in front of its convolution cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(functional.relu(self.norm(x)))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


SMALL_NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (tiny_net, 8),
    "residual": (TinyResidual, 8),
    "shuffle": (Shuffle, 8),
    "functional": (Functional, 8),
    "preactivation": (PreActivation, 8),
    "resnet8": (lambda: models.resnet8(4, width=4), 32),
}
LARGE_NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: models.resnet20(4, width=4), 32),
    "mobilenet_v2": (lambda: models.mobilenet_v2(4, width=0.25), 32),
    "shufflenet_v2": (lambda: models.shufflenet_v2(4, width=0.5), 32),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=4), 64),
    "torchvision mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=4), 64),
    "torchvision shufflenet_v2": (lambda: torchvision.models.shufflenet_v2_x1_0(num_classes=4), 64),
}
NETS = [
    *[pytest.param(*net, id=name) for name, net in SMALL_NETS.items()],
    *[pytest.param(*net, id=name, marks=pytest.mark.slow) for name, net in LARGE_NETS.items()],
]


# ------------------------------------------------------------------- against references


@pytest.mark.parametrize("bits", [8, 6])
def test_weights_equal_torchs_fake_quantization_per_channel(bits: int) -> None:
    layer = nn.Conv2d(3, 5, 3)
    highest = 2 ** (bits - 1) - 1
    scales = layer.weight.detach().abs().amax((1, 2, 3)) / highest
    expected = torch.fake_quantize_per_channel_affine(
        layer.weight, scales, torch.zeros(5, dtype=torch.int32), 0, -highest, highest
    )
    made = layers.quantized_layer(layer, bits)
    assert torch.allclose(made.quant_weight().value, expected, atol=1e-7)
    assert made.quant_weight().int().abs().max() == highest


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_narrow_weights_are_better_than_the_largest_weight_makes_them(bits: int) -> None:
    layer = nn.Conv2d(64, 4, 3)
    nn.init.normal_(layer.weight)
    highest = 2 ** (bits - 1) - 1
    step = layer.weight.detach().abs().amax((1, 2, 3), keepdim=True) / highest
    by_largest = (layer.weight / step).round() * step
    ours = layers.quantized_layer(layer, bits).quant_weight()
    assert ours.int().abs().max() == highest
    error, largest_error = ((made - layer.weight).square().mean() for made in (ours.value, by_largest))
    assert error < 0.9 * largest_error


@pytest.mark.parametrize(("bits", "is_unsigned"), [(8, True), (8, False), (4, True), (4, False), (2, False)])
def test_quantizer_equals_torchs_fake_quantization(bits: int, is_unsigned: bool) -> None:
    values = torch.linspace(-5, 5, 1001)
    low, high = (0, 2**bits - 1) if is_unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    made = layers.quantizer(bits, 3.0, is_unsigned)
    scale = 3.0 / (high if is_unsigned else -low)
    assert float(layers.activation_scale(made)) == pytest.approx(scale)
    expected = torch.fake_quantize_per_tensor_affine(
        values, float(layers.activation_scale(made)), 0, low, high
    )
    # Values half-way between two steps may go either way: x / s against x * (1 / s).
    assert ((made(values) - expected).abs() < 1e-6).float().mean() > 0.99


def test_chain_equals_fake_quantization_by_hand() -> None:
    batch = images()
    net = with_statistics(tiny_net(), batch)
    folded = (
        nn.utils.fusion.fuse_conv_bn_eval(net[0], net[1]),
        nn.utils.fusion.fuse_conv_bn_eval(net[3], net[4]),
    )
    made = quantized(copy_model(net), batch)
    scale = {name: float(layers.activation_scale(module)) for name, module in quantizers(made).items()}

    def rounded(layer: nn.Module) -> Tensor:
        step = layer.weight.abs().flatten(1).amax(1).view(-1, *[1] * (layer.weight.ndim - 1)) / 127
        return (layer.weight / step).round() * step

    def act(values: Tensor, name: str, low: int, high: int) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(values, scale[name], 0, low, high)

    x = act(batch, "input_1", -128, 127)
    for layer, relu in zip(folded, ("_2", "_5"), strict=True):
        x = act(functional.conv2d(x, rounded(layer), layer.bias, padding=1).relu(), relu, 0, 255)
    x = act(x.mean((2, 3)), "_6", 0, 255)
    expected = functional.linear(x, rounded(net[8]), net[8].bias)
    assert (made(batch) - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize(("make", "size"), NETS)
def test_float_twin_computes_what_the_model_did(make: Callable[[], nn.Module], size: int) -> None:
    batch = images(4, size=size)
    net = with_statistics(make(), batch)
    expected = net(batch).detach()
    twin = quantization.without_quantizers(quantized(net, batch, weights=4, activations=4))
    assert torch.allclose(twin(batch), expected, atol=1e-5 * float(expected.abs().max()) + 1e-6)
    assert not quantization.is_quantized(twin)
    kinds = {type(module) for module in twin.modules() if list(module.parameters(recurse=False))}
    assert kinds <= {nn.Conv2d, nn.Linear, nn.BatchNorm2d}


def test_best_end_matches_a_search_over_the_values_themselves() -> None:
    values = torch.randn(20000).relu()
    seen = Magnitudes()
    for part in values.split(3000):
        seen.add(part)

    def error(end: float) -> float:
        step = end / 15
        return float(((values / step).round().clamp(0, 15) * step - values).square().sum())

    best = min(error(float(values.max()) * share / 128) for share in range(8, 129))
    assert error(seen.best_end(4, is_unsigned=True)) < 1.05 * best


def test_histogram_grows_without_losing_values() -> None:
    seen = Magnitudes()
    seen.add(torch.tensor([0.1, 0.0, -0.2]))
    seen.add(torch.tensor([50.0]))
    assert float(seen.counts.sum()) == 3.0
    assert seen.top >= 50.0
    assert Magnitudes().best_end(8, is_unsigned=True) == 1.0


# ------------------------------------------------------------------- what is made of a net


@pytest.mark.parametrize(("make", "size"), NETS)
def test_runs_trains_and_comes_back_from_its_log(make: Callable[[], nn.Module], size: int) -> None:
    batch = images(4, size=size)
    made = quantized(with_statistics(make(), batch), batch)
    assert not made.training
    made.train()
    functional.cross_entropy(made(batch), torch.arange(4)).backward()
    without = [name for name, parameter in made.named_parameters() if parameter.grad is None]
    assert without == []
    train_steps(made, batch, steps=1, lr=1e-3)
    made.eval()

    fresh = quantization.replay(make(), surgery_log(made)[-1]).eval()
    fresh.load_state_dict(made.state_dict(), strict=True)
    assert torch.equal(fresh(batch), made(batch))
    # Nothing collects statistics: running it, in either mode, changes no state but that of batch norms.
    norms = surgery_log(made)[-1]["float_norms"]
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    fresh.train()
    with torch.no_grad():
        fresh(3 * batch)
    for name, value in fresh.state_dict().items():
        assert any(name.startswith(norm) for norm in norms) or torch.equal(value, before[name]), name


def test_same_model_and_calibration_give_the_same_bits_and_draw_no_random_numbers() -> None:
    state = torch.get_rng_state()
    first, second = (quantized(TinyResidual()).state_dict() for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_one_scale_for_values_that_only_move() -> None:
    made = quantized(with_statistics(Shuffle(), images()))
    # Both ReLUs feed the concatenation; the split, the shuffle and the pooling need no quantizer.
    assert sorted(quantizers(made)) == ["adaptive_avg_pool2d", "stem_2", "x"]
    calls = [str(node.target) for node in made.graph.nodes if "activation_quantizers" in str(node.target)]
    assert [call.rsplit(".", 1)[1] for call in calls] == ["x", "stem_2", "stem_2", "adaptive_avg_pool2d"]


def test_quantizers_of_a_residual_block() -> None:
    made = quantized(with_statistics(TinyResidual(), images()), activations=4)
    signs = {name: module.act_quant.is_signed for name, module in quantizers(made).items()}
    # Input and the branch before the sum are signed; ReLUs and their mean are not. The logits stay float.
    assert signs == {
        "images": True,
        "relu": False,
        "conv": True,
        "relu_1": False,
        "adaptive_avg_pool2d": False,
    }
    bits = {name: int(module.act_quant.bit_width()) for name, module in quantizers(made).items()}
    assert bits == {"images": 8, "relu": 4, "conv": 4, "relu_1": 4, "adaptive_avg_pool2d": 8}


def test_float_ends_keep_the_first_and_last_layer_and_what_only_they_read() -> None:
    made = quantized(TinyResidual(), weights=2, activations=3, first_and_last="float")
    assert quantization.weight_bits(made) == {"stem": 32, "conv": 2, "fc": 32}
    assert sorted(quantizers(made)) == ["conv", "relu", "relu_1"]
    fresh = quantization.replay(TinyResidual(), surgery_log(made)[-1])
    fresh.load_state_dict(made.state_dict(), strict=True)


def test_one_side_alone() -> None:
    weights_only = quantized(TinyResidual(), activations=None, weights=4)
    assert quantizers(weights_only) == {}
    assert quantization.weight_bits(weights_only) == {"stem": 8, "conv": 4, "fc": 8}
    activations_only = quantized(TinyResidual(), weights=None)
    assert len(quantizers(activations_only)) == 5
    assert quantization.mean_weight_bits(activations_only) == 32.0
    assert quantization.is_quantized(weights_only) and quantization.is_quantized(activations_only)


def test_mean_weight_bits_counts_every_weight_once() -> None:
    made = quantized(tiny_net(), weights=4)
    counts = {"0": 216, "3": 576, "8": 32}
    expected = sum(bits * counts[name] for name, bits in quantization.weight_bits(made).items()) / 824
    assert quantization.mean_weight_bits(made) == pytest.approx(expected)


def test_batch_norm_that_cannot_be_folded_stays() -> None:
    made = quantized(with_statistics(PreActivation(), images()))
    assert surgery_log(made)[-1]["float_norms"] == ["norm"]
    assert isinstance(made.get_submodule("norm"), nn.BatchNorm2d)


def test_layer_called_twice_reads_one_scale() -> None:
    made = quantized(Functional())
    [(_, _, source)] = [found for found in integer_layers(made) if found[0] == "shared"]
    reads = [node.all_input_nodes[0] for node in made.graph.nodes if node.target == "shared"]
    while any("activation_quantizers" not in str(node.target) for node in reads):
        reads = [n if "activation_quantizers" in str(n.target) else n.all_input_nodes[0] for n in reads]
    assert {made.get_submodule(str(node.target)) for node in reads} == {source}


def test_dropout_called_as_a_function_follows_the_mode() -> None:
    made = quantized(Functional().train())
    assert made.training
    assert not torch.equal(made(images()), made(images()))
    made.eval()
    assert torch.equal(made(images()), made(images()))


class WithOptions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor, shift: Tensor | None = None, factor: float = 2.0) -> Tensor:
        x = self.conv(x) if shift is None else self.conv(x + shift)
        return self.fc(x.mean((2, 3)) * factor)


def test_further_arguments_of_forward_keep_their_defaults() -> None:
    net = WithOptions()
    expected = net(images())
    made = quantized(net)
    assert torch.allclose(quantization.without_quantizers(made)(images()), expected, atol=1e-6)
    assert [node.name for node in made.graph.nodes if node.op == "placeholder"] == ["x"]


def test_hooks_on_containers_and_folded_norms_still_see_their_outputs() -> None:
    batch = images(2, size=32)
    net = with_statistics(models.resnet8(4, width=4), batch)
    names = ("layer1", "layer2.0", "layer3.0.bn1")
    expected = tapped(net, names, batch)
    twin_taps = tapped(quantization.without_quantizers(quantized(net, batch)), names, batch)
    for name in names:
        assert torch.allclose(twin_taps[name], expected[name], atol=1e-4)


def tapped(model: nn.Module, names: tuple[str, ...], batch: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            # A copy, because the ReLU behind a batch norm writes into its output.
            seen[name] = output.detach().clone()

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    model(batch)
    for handle in handles:
        handle.remove()
    return seen


def test_hooks_of_the_float_model_do_not_move_into_the_graph() -> None:
    net = TinyResidual()
    seen = []
    net.relu.register_forward_hook(lambda module, inputs, output: seen.append(output))
    nn.Module.register_forward_hook(net, lambda module, inputs, output: seen.append(output))
    made = quantized(net)
    assert all(type(value) is Tensor for value in seen)
    seen.clear()
    made(images())
    assert seen == []


def test_ends_and_groups_on_the_graph_alone() -> None:
    graph_model, _ = traced(Shuffle().eval())
    fold_batch_norms(graph_model)
    flow = Flow(graph_model, images(1))
    assert first_layers(flow) == {"stem.0"} and last_layers(flow) == {"fc"}
    groups = scale_groups(flow, frozenset())
    found = [([site.name for site in group.sites], group.is_unsigned) for group in groups]
    assert found == [(["x"], False), (["stem_2", "branch_2"], True), (["mean"], False)]
    assert [group.is_outermost for group in groups] == [True, False, True]


# ------------------------------------------------------------------- masks


def masked_net(batch: Tensor) -> nn.Module:
    return mask_smallest(with_statistics(TinyResidual(), batch), 0.6)


def test_masked_weights_stay_zero_through_training_and_as_integers() -> None:
    batch = images()
    net = masked_net(batch)
    masks = {name: layer.weight_mask.clone() for name, layer in masked_layers(net).items()}
    before = sparsity(net)
    made = quantized(net, batch)
    assert sparsity(made) == before
    train_steps(made, batch)
    assert sparsity(made) == before
    made.eval()(batch)
    for name, layer in masked_layers(made).items():
        assert torch.equal(layer.weight_mask, masks[name])
        assert not layer.quant_weight().int()[masks[name] == 0].any()
    assert set(masked_layers(made)) == set(masks)


def test_masked_then_quantized_comes_back_from_its_log() -> None:
    batch = images()
    made = quantized(masked_net(batch), batch, weights=4, activations=4)
    train_steps(made, batch)
    fresh: nn.Module = TinyResidual()
    for entry in surgery_log(made):
        fresh = (replay_mask if entry["verb"] == "mask" else quantization.replay)(fresh, entry)
    fresh.load_state_dict(made.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(batch), made.eval()(batch))


def test_quantized_then_masked_works_and_comes_back() -> None:
    batch = images()
    made = mask_smallest(quantized(TinyResidual(), batch), 0.5)
    train_steps(made, batch)
    assert sparsity(made) == pytest.approx(0.5, abs=0.01)
    fresh: nn.Module = TinyResidual()
    for entry in surgery_log(made):
        fresh = (replay_mask if entry["verb"] == "mask" else quantization.replay)(fresh, entry)
    fresh.load_state_dict(made.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(batch), made.eval()(batch))


def test_deep_copy_of_a_masked_quantized_model_shares_nothing() -> None:
    batch = images()
    made = quantized(masked_net(batch), batch)
    train_steps(made, batch, steps=1)
    copied = copy_model(made)
    expected = made.eval()(batch).detach()
    assert torch.equal(copied.eval()(batch), expected)
    assert surgery_log(copied) == surgery_log(made)
    train_steps(copied, batch)
    record(copied, "mark")
    assert torch.equal(made.eval()(batch), expected)
    assert not torch.equal(copied.eval()(batch), expected)
    assert len(surgery_log(copied)) == len(surgery_log(made)) + 1


def test_permanent_masks_change_nothing_and_the_file_holds_the_zeros(tmp_path: Any) -> None:
    batch = images()
    made = quantization.finalize(quantized(masked_net(batch), batch).eval())
    final = make_permanent(copy_model(made))
    assert masked_layers(final) == {} and masked_layers(made) != {}
    assert torch.equal(final(batch), made(batch))
    assert sparsity(final) == sparsity(made)

    from brevitas.export import export_onnx_qcdq

    with warnings.catch_warnings():
        # torch announces that its older exporter is the older one.
        warnings.simplefilter("ignore")
        export_onnx_qcdq(
            final,
            args=batch[:1],
            export_path=str(tmp_path / "model.onnx"),
            dynamo=False,
            opset_version=13,
            keep_initializers_as_inputs=False,
        )
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    constants = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    constants += [
        numpy_helper.to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant"
    ]
    found = {array.shape: array for array in constants if array.dtype == np.int8 and array.ndim > 1}
    for name, expected in integers(made).items():
        assert np.array_equal(found[tuple(expected.shape)], expected.numpy()), name
        mask = masked_layers(made)[name].weight_mask
        assert not found[tuple(expected.shape)][mask.numpy() == 0].any()


def test_wholly_masked_layer_and_channel_train_without_nan() -> None:
    batch = images()
    net = with_statistics(TinyResidual(), batch)
    prune.custom_from_mask(net.conv, "weight", torch.zeros_like(net.conv.weight))
    mask = torch.ones_like(net.stem.weight)
    mask[2] = 0
    prune.custom_from_mask(net.stem, "weight", mask)
    for bits in (8, 2):
        made = quantized(copy_model(net), batch, weights=bits, activations=bits)
        train_steps(made, batch)
        assert all(torch.isfinite(parameter).all() for parameter in made.parameters())
        # The bias of a channel without weights still fits 32 bits.
        quantization.finalize(made)


# ------------------------------------------------------------------- finalize


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_finalize_puts_every_bias_on_the_grid_and_a_second_call_changes_nothing(bits: int) -> None:
    batch = images()
    made = quantized(masked_net(batch), batch, weights=bits, activations=bits)
    train_steps(made, batch)
    old = {name: layer.bias.detach().clone() for name, layer, _ in integer_layers(made)}
    assert quantization.finalize(made) is made
    state = {name: value.clone() for name, value in made.state_dict().items()}
    assert sorted(old) == ["conv", "fc", "stem"]
    for name, layer, source in integer_layers(made):
        grid = layers.activation_scale(source) * layers.weight_scales(layer, effective_weight(layer))
        steps = layer.bias.detach().double() / grid.double()
        assert (steps - steps.round()).abs().max() < 1e-3
        assert ((layer.bias.detach() - old[name]).abs() <= 0.51 * grid).all()
    quantization.finalize(made)
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())
    entries = [entry for entry in surgery_log(made) if entry["verb"] == "finalize"]
    assert entries == [{"verb": "finalize", "layers": ["stem", "conv", "fc"]}]
    assert quantization.replay(made, entries[0]) is made


class Tied(nn.Module):
    """Two layers with one weight and one bias, which lie on different grids."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other.weight, self.other.bias = self.one.weight, self.one.bias
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.one(functional.relu(self.stem(x))))
        return self.fc(functional.relu(self.norm(self.other(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "options", [{"batch_norm": "keep"}, {"scheme": "dorefa", "weights": 7, "activations": 7, "rescale": True}]
)
def test_finalize_gives_layers_that_share_parameters_their_own(options: dict[str, Any]) -> None:
    batch, base = images(), Tied()
    made = quantized(with_statistics(copy_model(base), batch), batch, **options)
    train_steps(made, batch)
    assert made.get_submodule("one").weight is made.get_submodule("other").weight
    expected = made.get_submodule("one").quant_weight().value.detach()
    found = quantization.finalize(made)(batch).detach()
    one: Any = made.get_submodule("one")
    torch.testing.assert_close(one.quant_weight().value.detach(), expected)
    assert one.weight is not made.get_submodule("other").weight
    again = copy_model(base)
    for entry in surgery_log(made):
        again = quantization.replay(again, entry)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.eval()(batch), found)
    assert torch.equal(quantization.finalize(made)(batch), found)


def test_finalize_leaves_float_models_and_float_sides_alone() -> None:
    net = tiny_net()
    assert quantization.finalize(net) is net and surgery_log(net) == []
    made = quantized(TinyResidual(), activations=None)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    quantization.finalize(made)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert [entry["verb"] for entry in surgery_log(made)] == ["quantize"]


def test_bias_that_fits_no_integer_is_refused_before_training() -> None:
    net = TinyResidual()
    net.norm.weight.data.fill_(1e-9)
    net.norm.bias.data.fill_(100.0)
    with pytest.raises(QuantizeError, match=r'bias of layer "stem" does not fit 32 bits'):
        quantized(net.eval())


# ------------------------------------------------------------------- reading bits


def test_reading_a_float_model_does_not_import_brevitas() -> None:
    code = """
import sys
from torch import nn
from compress_aug import quantization
net = nn.Sequential(nn.Linear(2, 2))
assert quantization.weight_bits(net) == {"0": 32} and quantization.mean_weight_bits(net) == 32.0
assert not quantization.is_quantized(quantization.without_quantizers(quantization.finalize(net)))
assert not any(name.startswith("brevitas") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_twin_of_a_float_model_is_a_copy_with_its_log() -> None:
    net = mask_smallest(tiny_net(), 0.3)
    twin = quantization.without_quantizers(net)
    assert twin is not net and surgery_log(twin) == surgery_log(net)
    made = quantized(net)
    assert surgery_log(quantization.without_quantizers(made)) == []
    assert sparsity(quantization.without_quantizers(made)) == sparsity(made)


# ------------------------------------------------------------------- learning


class DigitsNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.down = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        x = functional.relu(x + self.norm(self.conv(x)))
        return self.fc(x.mean((2, 3)))


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    raw = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)
    order = torch.randperm(len(raw), generator=torch.Generator().manual_seed(0))
    return ((raw - raw.mean()) / raw.std())[order], torch.tensor(data.target)[order]


def fit(model: nn.Module, epochs: int, lr: float) -> None:
    inputs, targets = digits()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    batches = len(inputs[:1000].split(64))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for epoch in range(epochs):
        order = torch.randperm(1000, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[index]), targets[index]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    inputs, targets = digits()
    return float((model.eval()(inputs[1000:]).argmax(1) == targets[1000:]).float().mean())


def test_eight_bits_keep_the_accuracy_and_training_wins_back_two_bits() -> None:
    inputs, _ = digits()
    net = DigitsNet()
    fit(net, epochs=8, lr=0.1)
    trained = accuracy(net)
    assert trained > 0.95

    def made(bits: int) -> nn.Module:
        return quantization.quantize(
            copy_model(net),
            inputs[:1],
            weights=bits,
            activations=bits,
            calibration=inputs[:256].split(64),
        )

    assert accuracy(made(8)) > trained - 0.01
    four = made(4)
    assert accuracy(four) > trained - 0.06
    fit(four, epochs=2, lr=0.01)
    assert accuracy(four) > trained - 0.02
    two = made(2)
    before = accuracy(two)
    fit(two, epochs=2, lr=0.01)
    assert accuracy(two) > before + 0.2


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": 9}, r"weights must be 2 to 8 bits or None for float, found 9"),
        ({"activations": 1}, r"activations must be 2 to 8 bits or None for float, found 1"),
        ({"weights": True}, r"weights must be 2 to 8 bits or None for float, found True"),
        ({"first_and_last": 1}, r"first_and_last must be 2 to 8 bits or 'float' for float, found 1"),
        ({"weights": None, "activations": None}, r"both None"),
        ({"calibration": []}, r"calibration holds no batch"),
        (
            {"calibration": [torch.zeros(2, 1, 8, 8)]},
            r"batch 1 must be float \(N, 3, H, W\), found",
        ),
        ({"calibration": [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]}, r"found torch.uint8 \[2, 3, 8, 8\]"),
        ({"calibration": [torch.full((2, 3, 8, 8), torch.nan)]}, r"not finite"),
    ],
)
def test_wrong_choices_are_refused_and_the_model_stays_as_it_was(
    options: dict[str, Any], sentence: str
) -> None:
    batch = images()
    net = masked_net(batch)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected = net(batch)
    with pytest.raises(QuantizeError, match=sentence):
        quantization.quantize(net, batch[:1], **{"calibration": [batch], **options})
    assert net.state_dict().keys() == before.keys()
    assert torch.equal(net(batch), expected)
    assert [entry["verb"] for entry in surgery_log(net)] == ["mask"]


@pytest.mark.parametrize("example", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), None])
def test_wrong_examples_are_refused(example: Any) -> None:
    with pytest.raises(QuantizeError, match=r"example must be one float image \(1, C, H, W\)"):
        quantization.quantize(tiny_net(), example, calibration=[images()])


def test_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(QuantizeError, match=r"The example \[1, 1, 8, 8\] does not pass through Sequential"):
        quantization.quantize(tiny_net(), torch.zeros(1, 1, 8, 8), calibration=[images()])


def test_quantizing_twice_is_refused() -> None:
    with pytest.raises(QuantizeError, match="quantized already"):
        quantized(quantized(tiny_net()))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (
            parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
            r'weight of layer "1" is computed by something other',
        ),
        (Pair(), r"must return one tensor to be quantized, found tuple"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_models_that_cannot_be_quantized_are_refused_by_name(module: nn.Module, sentence: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), module)
    if not isinstance(module, Pair):
        net.extend([nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(256, 2)])
    with pytest.raises(QuantizeError, match=sentence):
        quantized(net)
    assert torch.is_tensor(net[0].weight) and "_tensor_constant0" not in net.__dict__


def test_masked_bias_is_refused() -> None:
    net = Functional()
    prune.l1_unstructured(net.first, "bias", 0.5)
    with pytest.raises(QuantizeError, match=r'bias of layer "first" is masked'):
        quantized(net)


def test_single_layer_is_refused_with_the_way_out() -> None:
    with pytest.raises(QuantizeError, match=r"nn\.Sequential"):
        quantized(nn.Conv2d(3, 4, 1))


def test_wrong_base_model_is_refused() -> None:
    entry = surgery_log(quantized(TinyResidual()))[-1]
    with pytest.raises(ModelError, match=r'Layer "conv" has a weight of shape \[6, 6, 3, 3\]'):
        quantization.replay(TinyResidual(width=6), entry)
    with pytest.raises(ModelError, match="no such layer"):
        quantization.replay(tiny_net(), entry)

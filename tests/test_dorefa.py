"""DoReFa: levels and gradients against its formulas, where it quantizes, what it refuses, frozen layers, files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toys import TinyConcat, TinyResidual, tiny_net

from compress_aug import checkpoint, deploy, models, quantization
from compress_aug.errors import PruneError, QuantizeError
from compress_aug.measure import effective_weight
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import layers
from compress_aug.quantization.dorefa import DorefaWeight, UnitClip, unit
from compress_aug.surgery import copy_model, make_permanent, surgery_log


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(number: int = 8, *, size: int = 8) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def with_statistics(model: nn.Module, batch: Tensor) -> nn.Module:
    """The model in eval mode, its batch norms no longer the identity, some of their weights negative."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.7, 0.5)
            nn.init.normal_(module.bias, 0.2, 0.3)
    with torch.no_grad():
        for _ in range(3):
            model(batch)
    return model.eval()


def dorefa(model: nn.Module, batch: Tensor | None = None, *, bits: int = 2, **options: Any) -> nn.Module:
    batch = images() if batch is None else batch
    given = {"weights": bits, "activations": bits, "calibration": [batch], **options}
    return quantization.quantize(model, batch[:1], scheme="dorefa", **given)


def train_steps(model: nn.Module, batch: Tensor, steps: int = 3, lr: float = 0.01) -> nn.Module:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(batch), torch.arange(len(batch)) % 4).backward()
        optimizer.step()
    return model.eval()


def quantizers(model: nn.Module) -> dict[str, tuple[str, int, bool]]:
    """The operation that each quantizer follows -> its kind, its bits, whether it is signed."""
    return {
        name.rsplit(".", 1)[1]: (
            "dorefa" if type(module).__name__ == "QuantNonLinearActLayer" else "integer",
            int(module.act_quant.bit_width()),
            bool(module.act_quant.is_signed),
        )
        for name, module in model.named_modules()
        if hasattr(module, "act_quant")
    }


class AlexLike(nn.Module):
    """Convolutions and hidden linear layers in a chain, without batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(32, 16),
            nn.ReLU(inplace=True),
            nn.Linear(16, 12),
            nn.ReLU(),
            nn.Linear(12, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Bottleneck(nn.Module):
    """A linear bottleneck: what the expanding layer reads may be negative, and is a summand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.expand = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.back = nn.Sequential(nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.stem(x))
        x = x + self.back(self.expand(x))
        return self.fc(self.head(x).mean((2, 3)))


# ------------------------------------------------------------------- levels


@pytest.mark.parametrize("bits", range(2, 8))
def test_weights_equal_the_formula_and_reach_every_level_but_zero(bits: int) -> None:
    weight = torch.randn(400, 25)
    n = 2**bits - 1
    squashed = weight.tanh()
    expected = 2 * torch.round(n * (squashed / (2 * squashed.abs().max()) + 0.5)) / n - 1
    found, scale, zero_point, stored = DorefaWeight(bits)(weight)
    assert torch.allclose(found, expected, atol=1e-6)
    levels = torch.arange(-n, n + 1, 2)
    integers = (found / scale).round()
    assert torch.equal(integers.unique(), levels.float()) and len(levels) == 2**bits
    assert torch.equal(found, integers * scale)
    assert float(scale) == pytest.approx(1 / n) and float(zero_point) == 0 and int(stored) == bits + 1


@pytest.mark.parametrize("bits", [2, 4])
def test_layer_of_brevitas_gives_these_levels_whatever_the_size_of_the_weights(bits: int) -> None:
    net = with_statistics(TinyResidual(), images())
    expected = DorefaWeight(bits)(net.conv.weight.detach())[0]
    conv = dorefa(net, bits=bits).get_submodule("conv")
    quantized = conv.quant_weight()
    assert torch.equal(quantized.value, expected)
    odd = quantized.int()
    assert bool((odd % 2 != 0).all()) and int(odd.abs().max()) == 2**bits - 1


@pytest.mark.parametrize("bits", [2, 3, 7])
def test_activations_are_rounded_within_zero_and_one(bits: int) -> None:
    values = torch.linspace(-0.5, 1.5, 2001)
    n = 2**bits - 1
    made = layers.dorefa_quantizer(bits)
    assert torch.allclose(made(values), (n * values.clamp(0, 1)).round() / n, atol=1e-6)
    assert float(layers.activation_scale(made)) == pytest.approx(1 / n)
    assert list(made.parameters()) == []


def test_weights_of_zero_make_no_nan() -> None:
    weight = torch.zeros(3, 3, requires_grad=True)
    found = DorefaWeight(2)(weight)[0]
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(weight.grad).all()


# ------------------------------------------------------------------- gradients


@pytest.mark.parametrize("rescale", [False, True])
def test_gradient_of_weights_equals_finite_differences_of_the_unrounded_map(rescale: bool) -> None:
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(4, 6, dtype=torch.float64)
    quantizer = DorefaWeight(3, rescale)
    (quantizer(weight)[0] * upstream).sum().backward()
    # The factor that gives the mean size back is a constant to the gradient.
    with torch.no_grad():
        factor = float(quantizer(weight)[1]) * 7

    def unrounded(values: Tensor) -> float:
        return float(((2 * unit(values) - 1) * factor * upstream).sum())

    step = 1e-6
    for index in range(weight.numel()):
        shift = torch.zeros_like(weight).view(-1)
        shift[index] = step
        shift = shift.view(weight.shape)
        with torch.no_grad():
            slope = (unrounded(weight + shift) - unrounded(weight - shift)) / (2 * step)
        assert float(weight.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-5, abs=1e-8)
    # The largest weight has a part of its own in the gradient of all others.
    largest = int(weight.detach().abs().argmax())
    others = (2 * unit(weight.detach()) - 1) * upstream
    others.view(-1)[largest] = 0
    squashed = weight.detach().tanh().view(-1)[largest]
    expected = -factor * others.sum() / squashed * (1 - squashed**2)
    assert float(weight.grad.view(-1)[largest]) == pytest.approx(float(expected), rel=1e-9)


def test_gradient_of_activations_equals_finite_differences_of_the_clip() -> None:
    values = torch.tensor([-0.2, -0.01, 0.01, 0.4, 0.7, 0.99, 1.01, 1.1, 2.0], requires_grad=True)
    layers.dorefa_quantizer(2)(values).sum().backward()
    step = 1e-3
    clip = UnitClip()
    slopes = (clip(values.detach() + step) - clip(values.detach() - step)) / (2 * step)
    assert torch.allclose(values.grad, slopes, atol=1e-3)


# ------------------------------------------------------------------- where it quantizes


def test_placement_in_a_residual_net_is_that_of_the_paper() -> None:
    batch = images(size=32)
    made = dorefa(with_statistics(models.resnet8(4, width=4), batch), batch, bits=3, signed="float")
    bits = quantization.weight_bits(made)
    assert bits.pop("conv1") == bits.pop("fc") == 32
    assert set(bits.values()) == {3} and "layer2.0.downsample.0" in bits
    # Inputs of blocks and what lies between their layers; not the image, sums, the last block's output, its mean.
    assert set(quantizers(made).values()) == {("dorefa", 3, False)}
    assert sorted(quantizers(made)) == [
        "layer1_0_relu",
        "layer1_0_relu_1",
        "layer2_0_relu",
        "layer2_0_relu_1",
        "layer3_0_relu",
        "relu",
    ]


def test_summands_of_what_is_quantized_get_integer_grids() -> None:
    batch = images(size=32)
    made = dorefa(with_statistics(models.resnet8(4, width=4), batch), batch, bits=3)
    integer = {name for name, kind in quantizers(made).items() if kind[0] == "integer"}
    # The last block's sum is not quantized, so its summands are not either.
    assert integer == {"layer1_0_bn2", "layer2_0_bn2", "layer2_0_downsample_1"}
    assert {quantizers(made)[name] for name in integer} == {("integer", 8, True)}


def test_pooled_block_is_quantized_where_the_last_layer_is(tmp_path: Path) -> None:
    batch = images(size=32)
    net = with_statistics(models.resnet8(4, width=4), batch)
    made = dorefa(copy_model(net), batch, bits=3, first_and_last=7, rescale=True)
    found = quantizers(made)
    # What may be negative on both sides of the last sum, and the sum itself, which is never negative.
    assert found["layer3_0_bn2"] == found["layer3_0_downsample_1"] == ("integer", 8, True)
    assert found["layer3_0_relu_1"] == ("integer", 8, False)
    assert [kind for kind in found.values() if kind[1] == 7] == [("dorefa", 7, False)], found
    final = quantization.finalize(copy_model(made)).eval()
    deploy.write(final, tmp_path / "model.onnx", image_shape=(3, 32, 32))
    audit = deploy.audit(tmp_path / "model.onnx")
    assert audit.float_layers == 0, audit.stayed_float
    literal = dorefa(copy_model(net), batch, bits=3, first_and_last=7, rescale=True, signed="float")
    assert "layer3_0_relu_1" not in quantizers(literal)
    # Logs from before have no word of it: their checkpoints come back as they were.
    entry = dict(surgery_log(made)[0])
    del entry["pooled"]
    assert "layer3_0_relu_1" not in quantizers(quantization.replay(copy_model(net), entry))


def test_activations_of_a_chain_follow_every_relu_but_the_last() -> None:
    made = dorefa(AlexLike(), bits=4, rescale=True)
    assert quantization.weight_bits(made) == {
        "features.0": 32,
        "features.3": 4,
        "classifier.1": 4,
        "classifier.3": 4,
        "classifier.5": 32,
    }
    assert sorted(quantizers(made)) == ["classifier_2", "features_1", "features_4"]


def test_signed_values_get_an_integer_grid_or_stay_float_and_are_named() -> None:
    net = with_statistics(Bottleneck(), images())
    told: list[str] = []
    made = dorefa(copy_model(net), bits=4, note=told.append)
    found = quantizers(made)
    assert found["project_1"] == found["back_1"] == found["add"] == ("integer", 8, True)
    assert found["expand_2"] == found["stem_2"] == ("dorefa", 4, False)
    assert told == []
    literal = dorefa(copy_model(net), bits=4, signed="float", note=told.append)
    assert sorted(quantizers(literal)) == ["expand_2", "stem_2"]
    assert len(told) == 1 and "expand.0, head.0" in told[0]


def test_float_ends_are_untouched_and_a_float_state_dict_loads() -> None:
    net = with_statistics(TinyResidual(), images())
    state = {name: value.clone() for name, value in net.state_dict().items()}
    made = dorefa(net)
    assert type(made.get_submodule("stem")) is nn.Conv2d and type(made.get_submodule("fc")) is nn.Linear
    for name in ("stem.weight", "conv.weight", "fc.weight", "fc.bias"):
        assert torch.equal(made.state_dict()[name], state[name])
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert unexpected == [] and all(name.startswith("activation_quantizers") for name in missing)


def test_overrides_choose_bits_and_float_layers() -> None:
    made = dorefa(
        TinyConcat(),
        bits=2,
        overrides={"join": {"weights": 4, "activations": 3}, "depthwise": {"weights": "float"}},
    )
    bits = quantization.weight_bits(made)
    assert (bits["join.0"], bits["pointwise.0"], bits["depthwise.0"]) == (4, 2, 32)
    assert quantizers(made)["stem_2"] == ("dorefa", 3, False)


# ------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weights": 8}, r"weights: DoReFa takes 2 to 7 bits, found 8: its k bits .* k \+ 1 bits"),
        ({"activations": 8}, "activations: DoReFa takes 2 to 7 bits, found 8"),
        ({"weights": 1}, "weights: DoReFa takes 2 to 7 bits, found 1: at one bit it is another method"),
        ({"overrides": {"conv": {"weights": 8}}}, 'overrides: weights of "conv": DoReFa takes 2 to 7 bits'),
        ({"batch_norm": "fold"}, 'batch_norm must be "keep" with scheme "dorefa"'),
        ({"weight_range": "max"}, "levels of DoReFa are the same"),
        ({"signed": 1}, "signed must be 2 to 8 bits"),
        ({"calibration": []}, "no batch"),
    ],
)
def test_wrong_choices_are_refused(options: dict[str, Any], sentence: str) -> None:
    net = with_statistics(TinyResidual(), images())
    expected = net(images())
    with pytest.raises(QuantizeError, match=sentence):
        dorefa(net, **options)
    assert torch.equal(net(images()), expected)


def test_masks_are_refused_before_and_after() -> None:
    net = mask_smallest(TinyResidual(), 0.5)
    with pytest.raises(QuantizeError, match=r"pruned \(masks on stem, conv, fc\).*no level at zero"):
        dorefa(net)
    with pytest.raises(QuantizeError, match="no level at zero"):
        dorefa(make_permanent(net))
    for made in (dorefa(TinyResidual()), quantization.finalize(dorefa(TinyResidual()))):
        with pytest.raises(PruneError, match=r'"conv".*no level at zero'):
            mask_smallest(made, 0.5)


def test_layer_without_a_batch_norm_is_refused_by_name() -> None:
    with pytest.raises(QuantizeError, match=r"No batch norm follows classifier.1, classifier.3, features.3"):
        dorefa(AlexLike())


# ------------------------------------------------------------------- training and the device


def test_rescale_gives_each_layer_its_mean_size_back() -> None:
    net = AlexLike()
    means = {
        name: float(net.get_submodule(name).weight.detach().abs().mean())
        for name in ("features.3", "classifier.1")
    }
    made = dorefa(net, rescale=True)
    for name, mean in means.items():
        assert float(made.get_submodule(name).quant_weight().value.detach().abs().mean()) == pytest.approx(
            mean, rel=1e-4
        )


NETS: list[Any] = [
    pytest.param(lambda: models.resnet8(4, width=4), 32, {}, id="resnet"),
    pytest.param(lambda: models.resnet8(4, width=4), 32, {"signed": "float"}, id="resnet literal"),
    pytest.param(AlexLike, 8, {"rescale": True}, id="alexnet"),
    pytest.param(Bottleneck, 8, {}, id="bottleneck"),
]


@pytest.mark.parametrize(("base", "size", "options"), NETS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_trains_freezes_comes_back_and_its_file_agrees(
    base: Callable[[], nn.Module], size: int, options: dict[str, Any], bits: int, tmp_path: Path
) -> None:
    batch = images(size=size)
    made = dorefa(with_statistics(base(), batch), batch, bits=bits, **options)
    before = {name: value.clone() for name, value in made.named_parameters()}
    train_steps(made, batch)
    assert all(not torch.equal(value, before[name]) for name, value in made.named_parameters())
    odd = {
        name: module.quant_weight().int()
        for name, module in made.named_modules()
        if type(module).__name__ in ("QuantConv2d", "QuantLinear")
    }
    checkpoint.save(made, tmp_path / "trained.safetensors")
    fresh = checkpoint.rebuild(base(), tmp_path / "trained.safetensors").eval()
    assert torch.equal(fresh(batch), made(batch))

    final = quantization.finalize(copy_model(made))
    assert quantization.weight_bits(final) == quantization.weight_bits(made)
    assert quantization.mean_weight_bits(final) == quantization.mean_weight_bits(made)
    for name, integers in odd.items():
        layer = final.get_submodule(name)
        assert type(layer.weight_quant.tensor_quant).__name__ == "RescalingIntQuant"
        assert torch.equal(layer.quant_weight().int().abs(), integers.abs()), name
        assert torch.equal(layer.quant_weight().value, layer.weight)
        assert len(layers.weight_scales(layer, effective_weight(layer))) == len(layer.weight)
    state, log = {name: value.clone() for name, value in final.state_dict().items()}, surgery_log(final)
    quantization.finalize(final)
    assert all(torch.equal(value, state[name]) for name, value in final.state_dict().items())
    assert surgery_log(final) == log
    checkpoint.save(final, tmp_path / "final.safetensors")
    assert torch.equal(checkpoint.rebuild(base(), tmp_path / "final.safetensors").eval()(batch), final(batch))

    deploy.write(final, tmp_path / "a.onnx", image_shape=(3, size, size))
    parity = deploy.check_parity(final, tmp_path / "a.onnx", [(batch, torch.zeros(len(batch)).long())])
    assert parity.disagreements == 0 and parity.max_abs_diff < 1e-5


def test_sums_run_on_integers_on_the_device(tmp_path: Path) -> None:
    final = quantization.finalize(dorefa(with_statistics(Bottleneck(), images()), bits=4)).eval()
    deploy.write(final, tmp_path / "a.onnx", image_shape=(3, 8, 8))
    stayed = [name for name, _, _ in deploy.audit(tmp_path / "a.onnx").stayed_float]
    assert stayed == ["stem.0", "head.0", "fc"]


def test_deep_copy_shares_nothing() -> None:
    made = dorefa(with_statistics(tiny_net(), images()))
    expected = made.eval()(images())
    train_steps(copy_model(made), images(), lr=0.5)
    assert torch.equal(made(images()), expected)

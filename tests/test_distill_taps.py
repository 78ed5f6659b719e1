"""Feature taps: where the rule finds them, that they read what they should, and that they leave no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from toys import TinyResidual, tiny_net

from compress_aug.channels import cut_channels
from compress_aug.distill import TapNames, Taps
from compress_aug.distill.features import Features
from compress_aug.errors import ModelError, RecipeError
from compress_aug.models.resnet import resnet8
from compress_aug.pruning import mask_smallest
from compress_aug.quantization import quantize
from compress_aug.quantization.fused import quantization_executor
from compress_aug.surgery import copy_model, surgery_log

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ONE = IMAGES[:1]


class Functional(nn.Module):
    """As tutorials write nets: activations are calls, of which no module knows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(24, 4)

    def forward(self, images):
        first = self.pool(functional.relu(self.conv1(images)))
        second = self.pool(functional.relu(self.conv2(first)))
        return self.fc(second.flatten(1))


class Squeezed(nn.Module):
    """A gate of 1x1 maps, whose activation is no feature map."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Sigmoid())
        self.fc = nn.Linear(4, 4)

    def forward(self, images):
        features = self.relu(self.conv(images))
        return self.fc((features * self.gate(features)).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "names", "widths"),
    [
        (lambda: resnet8(4), ["layer1", "layer2", "layer3"], [16, 32, 64]),
        (tiny_net, ["5"], [8]),
        (TinyResidual, ["relu:2"], [8]),
        (Functional, ["pool:1:input", "pool:2:input"], [4, 6]),
        (Squeezed, ["relu"], [4]),
    ],
)
def test_the_rule(make, names, widths):
    with Taps(make(), ONE) as taps:
        assert taps.names == names and taps.widths == widths


def test_maps_are_what_the_layers_compute():
    model = resnet8(4).eval()
    with Taps(model, ONE) as taps:
        model(IMAGES)
        maps = taps.take()
    first = model.layer1(model.relu(model.bn1(model.conv1(IMAGES))))
    assert torch.equal(maps[0], first) and torch.equal(maps[1], model.layer2(first))
    assert len(maps) == 3 and maps[2].shape == (4, 64, 4, 4)


def test_paths_calls_and_inputs():
    model = TinyResidual().eval()
    with Taps(model, ONE, ["relu:1", "relu", "conv:input", "norm"]) as taps:
        assert taps.names == ["relu:1", "relu:2", "conv:input", "norm"]
        model(IMAGES)
        first, last, read, norm = taps.take()
    stem = model.relu(model.norm(model.stem(IMAGES)))
    assert torch.equal(first, stem) and torch.equal(read, stem)
    assert torch.equal(last, model.relu(stem + model.conv_norm(model.conv(stem))))
    assert torch.equal(norm, model.norm(model.stem(IMAGES)))


def test_what_is_overwritten_later_is_read_as_it_was():
    """An in-place ReLU behind a norm would otherwise change what the norm is seen to return."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
    with Taps(model, ONE, ["1"]) as taps:
        model(IMAGES)
        (seen,) = taps.take()
    assert torch.equal(seen, model[1](model[0](IMAGES))) and (seen < 0).any()


def test_a_gradient_goes_back_through_the_tap():
    model = resnet8(4)
    with Taps(model, ONE, with_gradients_only=True) as taps:
        with torch.no_grad():
            model(IMAGES)
        with pytest.raises(ModelError, match="Nothing came by at the tap layer1, layer2, layer3"):
            taps.take()
        model(IMAGES)
        taps.take()[1].sum().backward()
    assert model.conv1.weight.grad is not None and model.layer3[0].conv1.weight.grad is None


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("quantized", [False, True])
def test_no_trace_is_left(quantized):
    model = tiny_net()
    if quantized:
        model = quantize(model, ONE, weights=4, activations=4, calibration=[IMAGES])
    mask_smallest(model, 0.3)
    model(IMAGES)
    before, log, expected = copy.deepcopy(model.state_dict()), surgery_log(model), model.eval()(IMAGES)
    modes = [module.training for module in model.modules()]
    hung = hooks(model)
    with Taps(model, ONE) as taps:
        assert torch.equal(model(IMAGES), expected)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert model.state_dict().keys() == before.keys()
        # A copy hears nothing: what it computes does not turn up among the maps.
        copied = copy_model(model)
        taps.take()
        copied(IMAGES)
        with pytest.raises(ModelError, match="Nothing came by"):
            taps.take()
    assert hooks(model) == hung and surgery_log(model) == log and surgery_log(copied) == log
    assert torch.equal(model(IMAGES), expected)


@pytest.mark.parametrize("wanted", ["auto", ["layer1", "layer2"]])
@pytest.mark.parametrize("executor", ["torch", "stock"])
@pytest.mark.parametrize("scheme", ["integer", "dorefa"])
def test_a_quantized_student_is_read_before_the_quantizer(executor, scheme, wanted):
    model = quantize(
        resnet8(4).eval(),
        ONE,
        scheme=scheme,
        weights=2,
        activations=2,
        calibration=[IMAGES],
        batch_norm="keep",
    )
    read, returned = [], []
    with quantization_executor(executor):
        with Taps(model, ONE, wanted) as taps:
            model(IMAGES)
            seen = taps.take()
        quantizer = model.activation_quantizers.layer1_0_relu_1
        quantizer.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
        model.layer1.register_forward_hook(lambda module, inputs, output: returned.append(output))
        model(IMAGES)
    assert torch.equal(seen[0], read[0]) and (seen[0] >= 0).all()
    assert returned[0].unique().numel() <= 4 < seen[0].unique().numel()


def test_a_functional_net_is_read_when_quantized_too():
    model = quantize(Functional(), ONE, weights=4, activations=4, calibration=[IMAGES])
    with Taps(model, ONE) as taps:
        assert len(taps.names) == 2
        model(IMAGES)
        assert [tuple(seen.shape[1:]) for seen in taps.take()] == [(4, 14, 14), (6, 5, 5)]


@pytest.mark.parametrize(
    ("taps", "said"),
    [
        (["layer9"], 'no module is called "layer9" in ResNet; did you mean "layer'),
        (["nothing at all"], "its parts are conv1, bn1, relu, layer1"),
        (["layer1:x"], '"layer1:x" is no tap'),
        (["layer1:7"], 'the tap "layer1:7" is not run'),
        (["fc"], "there is no feature map (images, channels, height, width)"),
    ],
)
def test_what_is_no_tap_is_told(taps, said):
    with pytest.raises(RecipeError) as error:
        Taps(resnet8(4), ONE, taps)
    assert said in str(error.value)


def test_a_net_without_activations_has_no_taps_by_rule():
    with pytest.raises(RecipeError, match="no feature map was found"):
        Taps(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)), ONE)


class Tokens(nn.Module):
    """Patches as tokens: maps are (images, tokens, channels)."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.mix, self.fc = (
            nn.Conv2d(3, width, 4, 4),
            nn.Linear(width, width),
            nn.Linear(width, 4),
        )

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT
        return self.fc(self.mix(tokens).mean(1))


def test_tokens_are_maps_too():
    with Taps(Tokens(6), ONE, ["mix:input", "mix"]) as taps:
        assert taps.widths == [6, 6]
    teacher, student = Tokens(6), Tokens(4)
    features = Features(student, teacher, ONE, ["mix"])
    student(IMAGES)
    teacher(IMAGES)
    ((ours, theirs),) = features.take()
    assert ours.shape == theirs.shape == (4, 16, 6)


# ---------------------------------------------------------------- both nets


def test_adapters_stand_where_widths_differ():
    teacher, student = resnet8(4, width=8).eval(), resnet8(4, width=8)
    student = cut_channels(student, ONE, until={"ratio": 0.5}, round_to=1)
    said = []
    features = Features(student, teacher, ONE, note=said.append)
    student(IMAGES)
    teacher(IMAGES)
    maps = features.take()
    assert all(ours.shape == theirs.shape for ours, theirs in maps)
    shapes = [tuple(adapter.shape) for adapter in features.parameters()]
    assert shapes == list(zip(features.teacher.widths, features.student.widths, strict=True))
    assert len(said) == 2 and "4 → 8" in said[1]
    # As many directions as there are channels keep their lengths.
    weight = next(iter(features.parameters())).detach()
    assert torch.allclose(weight.T @ weight, torch.eye(weight.shape[1]), atol=1e-5)
    features.close()
    assert hooks(teacher) == 0 == hooks(student)


def test_other_numbers_of_taps_are_told_with_both_lists():
    with pytest.raises(RecipeError) as error:
        Features(tiny_net(), resnet8(4), ONE)
    assert "the student has 1 taps (5), the teacher 3 (layer1, layer2, layer3)" in str(error.value)
    with pytest.raises(RecipeError, match="found 1 tap"):
        Features(tiny_net(), tiny_net(), ONE, least=2)
    with pytest.raises(RecipeError, match="taps of the student: no module is called"):
        Features(tiny_net(), resnet8(4), ONE, TapNames(["layer1", "layer2"], ["2", "layer2"]))


def test_nothing_is_left_hanging_when_taps_do_not_fit():
    teacher, student = resnet8(4), tiny_net()
    with pytest.raises(RecipeError):
        Features(student, teacher, ONE)
    assert hooks(teacher) == 0 == hooks(student)

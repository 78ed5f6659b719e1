"""The reference nets against known sizes and torchvision's own; then loading; then what mistakes are told."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
import torchvision
from torch import Tensor, fx, nn
from toys import TinyResidual, tiny_net

from compress_aug.errors import MissingPart, ModelError
from compress_aug.measure import macs, parameters
from compress_aug.models import (
    ResNet,
    check_fits,
    load_model,
    mobilenet_v2,
    model_names,
    resnet8,
    resnet20,
    shufflenet_v2,
)
from compress_aug.surgery import copy_model

SHAPE = (3, 32, 32)

# With 10 and with 100 classes; multiply-accumulates of one 32x32 image with 10 classes.
SIZES = {
    "resnet8": (78_042, 83_892, 12_501_632),
    "resnet14": (175_258, 181_108, 26_657_408),
    "resnet20": (272_474, 278_324, 40_813_184),
    "resnet32": (466_906, 472_756, 69_124_736),
    "resnet56": (855_770, 861_620, 125_747_840),
    "resnet110": (1_730_714, 1_736_564, 253_149_824),
    "mobilenet_v2": (2_236_682, 2_351_972, 87_976_448),
    "shufflenet_v2": (1_263_854, 1_356_104, 45_002_112),
}


def build(spec: Any, classes: int = 10, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    torch.manual_seed(0)
    return load_model(spec, classes=classes, image_shape=shape)


def refused(spec: Any, **arguments: Any) -> str:
    with pytest.raises(ModelError) as caught:
        build(spec, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- sizes and references


def test_sizes_are_the_known_ones() -> None:
    # Those of arXiv 2004.08861 are in test_models_paper2.py.
    assert model_names()[len(SIZES) :] == ["alexnet", "resnet18", "wrn_D_K", "preresnet_D", "pyramidnet_D_K"]
    assert list(SIZES) == model_names()[: len(SIZES)]
    for name, (with_10, with_100, _) in SIZES.items():
        assert parameters(build(name)) == with_10
        assert parameters(build(name, 100)) == with_100


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "mobilenet_v2", "shufflenet_v2"])
def test_multiply_accumulates_are_the_known_ones(name: str) -> None:
    assert macs(build(name), SHAPE) == SIZES[name][2]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (mobilenet_v2, torchvision.models.mobilenet_v2),
        (shufflenet_v2, torchvision.models.shufflenet_v2_x1_0),
    ],
)
def test_strides_are_all_that_differs_from_torchvision(
    ours: Callable[..., nn.Module], theirs: Callable[..., nn.Module]
) -> None:
    model, reference = ours(10).eval(), theirs(num_classes=10).eval()
    model.load_state_dict(reference.state_dict())
    reference_modules = dict(reference.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.stride == (1, 1):
            reference_modules[name].stride = (1, 1)  # type: ignore[assignment]
    if hasattr(reference, "maxpool"):
        reference.maxpool = nn.Identity()
    images = torch.randn(2, *SHAPE)
    assert torch.equal(model(images), reference(images))


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "shufflenet_v2"])
def test_last_map_is_large_enough_for_extra_layers(name: str) -> None:
    model = build(name).eval()
    maps: list[torch.Size] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: maps.append(output.shape))
    model(torch.zeros(1, *SHAPE))
    assert min(maps[-1][2:]) >= 4


def test_resnet20_is_that_of_the_paper() -> None:
    model = resnet20(10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == 19
    assert [model.layer1[0].conv1.out_channels, model.layer3[0].conv1.out_channels] == [16, 64]
    # The paper counts 0.27 million, with shortcuts that have no weights.
    shortcuts = sum(parameters(layer[0].downsample) for layer in (model.layer2, model.layer3))
    assert parameters(model) - shortcuts == 269_722
    assert model.layer1[0].downsample is None


# --- what the rest of the package needs of every net


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "shufflenet_v2"])
def test_traces_and_copies_give_the_same(name: str) -> None:
    model = build(name).eval()
    images = torch.randn(2, *SHAPE)
    expected = model(images)
    assert expected.shape == (2, 10)
    assert torch.equal(fx.symbolic_trace(model)(images), expected)
    assert torch.equal(copy_model(model)(images), expected)


# Not shufflenet_v2: torch-pruning 1.6.1 cannot follow a channel shuffle, in torchvision's own net neither.
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2"])
def test_channels_can_be_cut(name: str) -> None:
    model = build(name).eval()
    image = torch.randn(1, *SHAPE)
    head = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear))
    pruner = torch_pruning.pruner.BasePruner(
        model,
        image,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[head],
        round_to=4,
    )
    pruner.step()
    assert parameters(model) < 0.5 * SIZES[name][0]
    assert model(image).shape == (1, 10)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "shufflenet_v2"])
def test_gradients_reach_every_parameter(name: str) -> None:
    model = build(name).train()
    model(torch.randn(2, *SHAPE)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet8", "shufflenet_v2"])
def test_the_seed_decides_the_start(name: str) -> None:
    first, second = build(name).state_dict(), build(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


# --- loading


def test_arguments_reach_the_net() -> None:
    model = build({"name": "resnet20", "width": 8}, shape=(1, 28, 28))
    assert isinstance(model, ResNet)
    assert model.conv1.in_channels == 1
    assert model.fc.in_features == 32
    check_fits(model, (1, 28, 28), 10)
    assert parameters(build({"name": "mobilenet_v2", "width": 0.5})) < parameters(build("mobilenet_v2")) / 3
    assert parameters(build({"name": "shufflenet_v2", "width": 0.5})) == 352_042
    check_fits(build("shufflenet_v2", shape=(1, 28, 28)), (1, 28, 28), 10)


def test_a_module_is_taken_as_it_is() -> None:
    net = tiny_net()
    assert load_model(net, classes=4, image_shape=(3, 8, 8)) is net


def test_torchvision_models() -> None:
    reference = torchvision.models.resnet18(num_classes=7)
    assert parameters(build("torchvision:resnet18", 7)) == parameters(reference)
    small = build({"name": "torchvision:mobilenet_v2", "width_mult": 0.25}, 7)
    check_fits(small, SHAPE, 7)
    assert 'did you mean "resnet18"?' in refused("torchvision:resnet81")
    assert 'torchvision has no classifier "x", among its' in refused("torchvision:x")
    assert "leave `weights` out" in refused({"name": "torchvision:resnet18", "weights": "DEFAULT"})
    assert "cannot be built with these arguments" in refused({"name": "torchvision:resnet18", "widht": 2})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_nets_with_extra_outputs_have_one(name: str) -> None:
    model = build(f"torchvision:{name}", 7).train()
    assert isinstance(model(torch.zeros(2, 3, 96, 96)), Tensor)


def test_timm_models() -> None:
    pytest.importorskip("timm")
    model = build("timm:resnet10t", 7, (1, 64, 64))
    check_fits(model, (1, 64, 64), 7)
    assert 'did you mean "resnet18"?' in refused("timm:resnet81")
    assert 'timm has no model "hf-hub:timm/resnet18' in refused("timm:hf-hub:timm/resnet18")
    assert "leave `pretrained` out" in refused({"name": "timm:resnet18", "pretrained": True})


def test_absent_timm_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPart, match=r"pip install \"compress-aug\[timm\]\""):
        build("timm:resnet18")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the current folder."""
    name = "own_nets_of_test_models"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes, in_channels=3, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(width, num_classes))\n"
        "def fixed(): return nn.Flatten()\n"
        "def number(classes): return classes\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(3, classes)\n"
        "    def forward(self, x): return self.fc(x.mean((2, 3)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_models_of_the_user(module: str) -> None:
    check_fits(build(f"{module}:tiny", 5, (1, 8, 8)), (1, 8, 8), 5)
    model = build({"call": f"{module}:tiny", "width": 6, "num_classes": 2}, 5)
    assert isinstance(model, nn.Sequential)
    assert model[3].weight.shape == (2, 6)
    check_fits(build({"name": f"{module}:Net"}, 5), SHAPE, 5)
    assert isinstance(build(f"{module}:fixed"), nn.Flatten)


def test_mistakes_in_a_model_are_told(module: str) -> None:
    assert refused("resnet_20") == (
        'model: there is no model "resnet_20"; did you mean "resnet20"? '
        "(or torchvision:NAME, timm:NAME, package.module:function)"
    )
    assert refused({"name": "resnet20", "widht": 8}) == (
        'model: resnet20 has no argument "widht"; did you mean "width"?'
    )
    assert "width of resnet20 is 'big': expected a number above 0" in refused(
        {"name": "resnet20", "width": "big"}
    )
    assert "expected one of 0.5, 1.0, 1.5, 2.0" in refused({"name": "shufflenet_v2", "width": 0.7})
    assert "expected one of name, call; found nam" in refused({"nam": "resnet20"})
    assert 'call is "resnet20": expected "package.module:function"' in refused({"call": "resnet20"})
    assert "returned a int: expected a torch Module" in refused(f"{module}:number")
    assert 'did you mean "tiny"?' in refused(f"{module}:tinny")
    assert 'did you mean "width"?' in refused({"call": f"{module}:tiny", "wdth": 3})


def test_a_depth_that_is_not_6n_plus_2_is_refused() -> None:
    with pytest.raises(ValueError, match="depth is 18: expected 6n"):
        ResNet(18, 10)


# --- does it fit


def test_a_model_that_fits_is_left_as_it_was() -> None:
    model = TinyResidual().train()
    model.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_fits(model, (3, 8, 8), 4)
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Says(nn.Module):
    """A model that gives what it is told to."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images)


def test_a_model_that_does_not_fit_is_told() -> None:
    def sentence(model: nn.Module, shape: tuple[int, int, int] = SHAPE, classes: int = 10) -> str:
        with pytest.raises(ModelError) as caught:
            check_fits(model, shape, classes)
        return str(caught.value)

    assert sentence(resnet8(10), (1, 28, 28)).startswith(
        "An image of shape (1, 28, 28) (channels, height, width) cannot go through the model: RuntimeError: "
    )
    assert sentence(resnet8(10), classes=100) == (
        "The model gives 10 numbers for one image: expected 100, one a class."
    )
    assert "gives shape (3,) for one image: expected (1, 10)" in sentence(Says(lambda x: x.mean((0, 2, 3))))
    assert "gives shape (1, 3, 32, 32)" in sentence(Says(lambda x: x))
    assert "returns a tuple: expected one tensor" in sentence(Says(lambda x: (x, x)))

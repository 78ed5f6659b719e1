"""Extra layers: the same outputs when they come, the same names when they go, and the place they get."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from compress_aug import models
from compress_aug.deploy import write
from compress_aug.errors import AttachError, ModelError
from compress_aug.inheritance import (
    attach_layers,
    attached_at,
    drop_layers,
    find_attachment,
    replay_attach,
    replay_drop,
)
from compress_aug.measure import parameters
from compress_aug.pruning import mask_smallest
from compress_aug.pruning import replay as replay_mask
from compress_aug.surgery import copy_model, surgery_log


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(12 * 4, 5),
    )


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 16), nn.ReLU(), nn.Linear(16, 5))


class Functional(nn.Module):
    """Reuses its pooling and its activation, and pools at the end without any module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        return self.fc(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """Ends in a 1x1 convolution that widens, but inside a residual block: no place for layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.narrow = nn.Conv2d(16, 4, 1)
        self.wide = nn.Conv2d(4, 16, 1)
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.ReLU()
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.norm(self.wide(F.relu(self.narrow(x))))
        out += x
        return self.fc(F.adaptive_avg_pool2d(self.act(out), 1).flatten(1))


class Tokens(nn.Module):
    """A vision transformer in small: patches, a class token, one block, the class token's features."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.first = nn.Parameter(torch.zeros(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.norm(self.block(tokens))[:, 0])


class ChannelsLast(nn.Module):
    """Works on (N, H, W, C) maps."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.mlp = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.mlp(self.patches(x).permute(0, 2, 3, 1))).mean((1, 2)))


class Volume(nn.Module):
    """Its features are (N, C, D, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x.unsqueeze(2)).mean((2, 3, 4)))


def vision(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(num_classes=5)


def transformer() -> nn.Module:
    model = torchvision.models.vit_b_16(num_classes=5, image_size=32)
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero, where nothing before it shows
    return model


# Each with: image size, the place, the kind of block, the channels, what 2 blocks weigh.
NETS = {
    "plain": (plain, 16, "5", "convolution", 12, 2 * (2 * 9 * 12 * 12 + 4 * 12)),
    "perceptron": (perceptron, 16, "2", "features", 16, 2 * (32 + 2 * (16 * 16 + 16))),
    "functional": (Functional, 16, "bn2", "convolution", 8, 2 * (2 * 9 * 8 * 8 + 4 * 8)),
    "bottleneck": (Bottleneck, 16, "act", "convolution", 16, 2 * (2 * 9 * 16 * 16 + 4 * 16)),
    "tokens": (Tokens, 16, "norm", "tokens", 8, 2 * (16 + 8 * 32 + 32 + 32 * 8 + 8)),
    "channels last": (ChannelsLast, 16, "norm", "tokens", 8, 2 * (16 + 8 * 32 + 32 + 32 * 8 + 8)),
    "resnet20": (lambda: models.resnet20(5), 32, "layer3", "convolution", 64, 2 * 73_984),
    "mobilenet_v2": (lambda: models.mobilenet_v2(5), 32, "features.17", "inverted", 320, 2 * 1_254_400),
    "shufflenet_v2": (lambda: models.shufflenet_v2(5), 32, "stage4", "separable", 464, 2 * 440_800),
    "torchvision resnet18": (vision("resnet18"), 64, "layer4", "convolution", 512, 2 * 4_720_640),
    "torchvision mobilenet_v2": (
        vision("mobilenet_v2"),
        64,
        "features.17",
        "inverted",
        320,
        2 * 1_254_400,
    ),
    "torchvision shufflenet_v2": (
        vision("shufflenet_v2_x1_0"),
        64,
        "stage4",
        "separable",
        464,
        2 * 440_800,
    ),
    "torchvision efficientnet_b0": (
        vision("efficientnet_b0"),
        64,
        "features.7",
        "inverted",
        320,
        2 * 1_254_400,
    ),
    "torchvision vit_b_16": (transformer, 32, "encoder", "tokens", 768, 2 * 4_723_968),
}

SMALL = ["plain", "perceptron", "functional", "bottleneck", "tokens", "channels last"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def images(size: int) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def settled(model: nn.Module, size: int) -> nn.Module:
    """With running statistics that are not the initial ones, in eval mode."""
    with torch.no_grad():
        model.train()(images(size))
    return model.eval()


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """What training does to the extra layers: they add something now."""
    for name, parameter in model.named_parameters():
        if ".extra." in name:
            parameter.add_(torch.randn_like(parameter))


# Attach and drop, on every net.


@pytest.mark.parametrize("net", NETS)
def test_place_and_blocks(net: str) -> None:
    make, size, at, form, channels, weight = NETS[net]
    model = make()
    before = parameters(model)
    attach_layers(model, torch.zeros(1, 3, size, size), blocks=2)
    entry = surgery_log(model)[0]
    assert (attached_at(model), entry["form"], entry["channels"]) == (at, form, channels)
    assert parameters(model) - before == weight


@pytest.mark.parametrize("net", NETS)
def test_same_outputs_at_the_start_and_same_names_at_the_end(net: str) -> None:
    make, size, *_ = NETS[net]
    model, x = settled(make(), size), images(size)
    before, described, output = copy_model(model).state_dict(), repr(model), model(x)
    attach_layers(model, torch.zeros(1, 3, size, size), blocks=2)
    torch.testing.assert_close(model(x), output, rtol=0, atol=1e-6)
    disturb(model)
    assert not torch.allclose(model(x), output, atol=1e-3)
    drop_layers(model)
    assert list(model.state_dict()) == list(before) and repr(model) == described
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(model(x), output)
    assert attached_at(model) is None


def test_dropped_layers_leave_no_node_in_the_file(tmp_path: Path) -> None:
    model = models.resnet20(5).eval()
    write(model, tmp_path / "base.onnx", image_shape=(3, 32, 32))
    attach_layers(model, torch.zeros(1, 3, 32, 32), blocks=2)
    write(model, tmp_path / "extended.onnx", image_shape=(3, 32, 32))
    write(drop_layers(model), tmp_path / "dropped.onnx", image_shape=(3, 32, 32))
    nodes = {
        name: len(onnx.load(tmp_path / f"{name}.onnx").graph.node) for name in ("base", "extended", "dropped")
    }
    assert nodes["dropped"] == nodes["base"] < nodes["extended"]


def test_resnet20_gets_the_papers_twenty_layers() -> None:
    model = models.resnet20(100)
    assert parameters(model) == 278_324
    attach_layers(model, torch.zeros(1, 3, 32, 32))
    assert parameters(model) == 278_324 + 739_840
    extra = model.get_submodule("layer3.extra")
    assert sum(isinstance(module, nn.Conv2d) for module in extra.modules()) == 20


def test_find_attachment_says_why() -> None:
    path, reason, shape = find_attachment(models.mobilenet_v2(10), torch.zeros(1, 3, 32, 32))
    assert (path, shape) == ("features.17", (2, 320, 4, 4))
    assert reason == (
        'the last feature map before the classifier "classifier.1", '
        "before a 1x1 convolution widens 320 to 1280 channels"
    )


def test_finding_changes_nothing() -> None:
    model = models.resnet8(5).train()
    before = copy_model(model)
    find_attachment(model, torch.zeros(1, 3, 32, 32))
    assert model.training and surgery_log(model) == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_layers_train_and_the_rest_learns_through_them() -> None:
    model = attach_layers(plain(), torch.zeros(1, 3, 16, 16), blocks=2).train()
    before = copy_model(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images(16)), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    still = [
        name
        for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if torch.equal(new, old)
    ]
    # At the first step a block's last normalisation moves (it starts at zero), then all that is before it.
    assert still == []


def test_activation_only_where_nothing_is_negative() -> None:
    assert surgery_log(attach_layers(plain(), images(16)))[0]["positive"] is True
    assert surgery_log(attach_layers(Functional(), images(16)))[0]["positive"] is False
    x = torch.randn(2, 8, 4, 4)
    extended = attach_layers(Functional(), images(16), after="bn2").get_submodule("bn2.extra").eval()
    assert torch.equal(extended(x), x)


def test_named_place() -> None:
    model = attach_layers(plain(), images(16), blocks=1, after="1")
    assert attached_at(model) == "1"
    assert surgery_log(model)[0]["reason"] == "chosen by name"
    assert model(images(16)).shape == (3, 5)


def test_modes_dtype_and_frozen_parts_stay() -> None:
    model = plain().double().train()
    model[1].eval()
    attach_layers(model, images(16), after="1")
    extended = model.get_submodule("1")
    assert extended.training and not extended.base.training and extended.extra.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


# The log.


@pytest.mark.parametrize("net", [*SMALL, "resnet20"])
def test_replay_takes_the_weights_and_computes_the_same(net: str) -> None:
    make, size, *_ = NETS[net]
    model, x = settled(make(), size), images(size)
    attach_layers(model, torch.zeros(1, 3, size, size), blocks=2)
    disturb(model)
    fresh = replay_attach(make(), surgery_log(model)[0])
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(x), model(x))
    assert surgery_log(fresh) == []


def test_replay_of_attach_mask_and_drop_ends_at_the_base() -> None:
    model = settled(plain(), 16)
    attach_layers(model, images(16), blocks=1)
    mask_smallest(model, 0.4)
    drop_layers(model)
    verbs = {"attach": replay_attach, "mask": replay_mask, "drop": replay_drop}
    fresh = plain()
    for entry in surgery_log(model):
        fresh = verbs[entry["verb"]](fresh, entry)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(images(16)), model(images(16)))
    assert [entry["verb"] for entry in surgery_log(model)] == ["attach", "mask", "drop"]


def test_log_entry() -> None:
    model = attach_layers(plain(), images(16), blocks=3)
    drop_layers(model)
    assert surgery_log(model) == [
        {
            "verb": "attach",
            "at": "5",
            "blocks": 3,
            "form": "convolution",
            "channels": 12,
            "positive": True,
            "reason": 'the last feature map before the classifier "9"',
            "layers": {},
        },
        {"verb": "drop", "at": "5"},
    ]


def test_replay_refuses_another_model() -> None:
    entry = surgery_log(attach_layers(models.resnet8(5), torch.zeros(1, 3, 32, 32)))[0]
    with pytest.raises(ModelError, match=r'"layer3.0.conv1" has a weight of shape'):
        replay_attach(models.resnet8(5, width=8), entry)
    with pytest.raises(AttachError, match='No extra layers are attached behind "layer3"'):
        replay_drop(models.resnet8(5), {"verb": "drop", "at": "layer3"})


# What is refused, and what it says.


def test_order_of_attach_and_drop() -> None:
    model = plain()
    with pytest.raises(AttachError, match="no extra layers to drop: attach_layers comes first"):
        drop_layers(model)
    attach_layers(model, images(16))
    with pytest.raises(AttachError, match='attached behind "5" already: drop_layers comes first'):
        attach_layers(model, images(16))
    attach_layers(drop_layers(model), images(16))


@pytest.mark.parametrize("blocks", [0, -1, 1.5, True])
def test_refuses_other_numbers_of_blocks(blocks: object) -> None:
    with pytest.raises(AttachError, match="whole number from 1 up, found"):
        attach_layers(plain(), images(16), blocks=blocks)  # type: ignore[arg-type]


def test_refuses_shapes_without_a_block() -> None:
    with pytest.raises(AttachError, match=r'"conv" puts out a tensor of shape \(2, 4, 1, 16, 16\)'):
        attach_layers(Volume(), images(16))


def test_refuses_a_map_of_one_pixel() -> None:
    with pytest.raises(AttachError, match=r"shrinks to \(2, \d+, 1, 1\).*larger images"):
        attach_layers(torchvision.models.mobilenet_v2(num_classes=5), images(32))


def test_refuses_names_that_are_no_place() -> None:
    with pytest.raises(AttachError, match=r'no module "con1".*did you mean "conv1"'):
        attach_layers(Functional(), images(16), after="con1")
    with pytest.raises(AttachError, match='"relu" puts out 2 tensors'):
        attach_layers(Functional(), images(16), after="relu")


def test_refuses_models_without_a_place() -> None:
    with pytest.raises(AttachError, match='no layer before the classifier "1"'):
        attach_layers(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), images(16))
    with pytest.raises(
        AttachError, match=r"whose output is \(N, K\); this model's is shape \(2, 4, 16, 16\)"
    ):
        attach_layers(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), images(16))
    with pytest.raises(AttachError, match=r"does not run on inputs of shape \(2, 3, 8, 8\)"):
        attach_layers(plain(), images(8))


def test_refuses_a_model_that_looks_into_the_module() -> None:
    class Nosy(Functional):
        def forward(self, x: Tensor) -> Tensor:
            scale = self.bn2.weight.mean()
            return super().forward(x) * scale

    model = Nosy()
    with pytest.raises(AttachError, match='does not run with layers behind "bn2"'):
        attach_layers(model, images(16))
    assert attached_at(model) is None and surgery_log(model) == []

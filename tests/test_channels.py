"""Cut channels: the model without them computes what it did with them at zero, and is as small as asked."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from compress_aug import measure, models
from compress_aug.channels import cut_channels, replay
from compress_aug.errors import ModelError, PruneError
from compress_aug.pruning import mask_smallest
from compress_aug.pruning import replay as replay_mask
from compress_aug.surgery import copy_model, layer_shapes, masked_layers, surgery_log


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(4),
        nn.Conv2d(32, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 5),
    )


class Branches(nn.Module):
    """Two branches side by side, a depthwise and a grouped convolution, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left = nn.Conv2d(16, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.right = nn.Conv2d(16, 32, 1)
        self.joined = nn.Conv2d(48, 32, 1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.gate = nn.Linear(32, 32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([self.depthwise(F.relu(self.left(x))), F.relu(self.right(x))], 1)
        x = F.relu(self.grouped(F.relu(self.joined(x))))
        x = x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.fc(x.mean((2, 3)))


class Reversed(nn.Module):
    """Reverses the order of its channels, which nobody who follows only sizes can see."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.second(F.relu(self.first(x)).flip(1))).mean((2, 3)))


class GroupNormed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 5),
        )


def vision(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(num_classes=5)


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (plain, 16),
    "branches": (Branches, 16),
    "group normalised": (GroupNormed, 16),
    "resnet20": (lambda: models.resnet20(5), 32),
    "mobilenet_v2": (lambda: models.mobilenet_v2(5, width=0.25), 32),
    "torchvision resnet18": (vision("resnet18"), 64),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def black(size: int) -> Tensor:
    return torch.zeros(1, 3, size, size)


def images(size: int) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def settled(model: nn.Module, size: int) -> nn.Module:
    with torch.no_grad():
        model.train()(images(size))
    return model.eval()


def entry_of(model: nn.Module) -> dict[str, object]:
    return surgery_log(model)[-1]


# What is left computes what it did.


def test_equals_the_model_with_these_channels_at_zero() -> None:
    model = settled(plain(), 16)
    whole = copy_model(model)
    cut_channels(model, black(16), until={"ratio": 0.5})
    removed = entry_of(model)["removed"]
    with torch.no_grad():
        whole[1].weight[removed["0"]] = 0
        whole[1].bias[removed["0"]] = 0
        whole[4].weight[removed["4"]] = 0
        whole[4].bias[removed["4"]] = 0
    assert (model[0].out_channels, model[4].out_channels, model[7].out_features) == (16, 8, 5)
    torch.testing.assert_close(model(images(16)), whole(images(16)))


def test_l1_removes_the_smallest_channels() -> None:
    model = plain()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        for channel in (3, 5, 8, 13, 21, 22, 23, 31):
            model[0].weight[channel] = 0.1
    cut_channels(model, black(16), until={"ratio": 0.25})
    assert entry_of(model)["removed"]["0"] == [3, 5, 8, 13, 21, 22, 23, 31]


def test_bn_scale_removes_what_its_normalisation_turns_down() -> None:
    model = plain()
    with torch.no_grad():
        model[1].weight[1::2] = 0.01
    cut_channels(model, black(16), until={"ratio": 0.5}, importance="bn_scale")
    entry = entry_of(model)
    assert entry["removed"] == {"0": list(range(1, 32, 2))}
    assert entry["left_alone"]["4"] == "it has no batch normalisation to rank its channels by"


def test_random_is_the_same_on_every_call() -> None:
    first, second = plain(), plain()
    for model in (first, second):
        cut_channels(model, black(16), until={"ratio": 0.5}, importance="random")
    assert entry_of(first)["removed"] == entry_of(second)["removed"]
    third = cut_channels(plain(), black(16), until={"ratio": 0.5}, importance="l2")
    assert entry_of(third)["removed"] != entry_of(first)["removed"]


# As small as asked, on every net; and again from the log.


@pytest.mark.parametrize(
    "net", [pytest.param(net, marks=[pytest.mark.slow] if "resnet18" in net else []) for net in NETS]
)
def test_reaches_macs_and_replays(net: str) -> None:
    make, size = NETS[net]
    model = settled(make(), size)
    shape = (3, size, size)
    whole = measure.macs(model, shape)
    cut_channels(model, black(size), until={"macs": 0.5})
    entry = entry_of(model)
    assert 0.25 < entry["reached"] <= 0.5
    assert measure.macs(model, shape) == pytest.approx(entry["reached"] * whole)
    assert model(images(size)).shape == (3, 5)
    fresh = replay(make(), entry)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(images(size)), model(images(size)))
    assert surgery_log(fresh) == [] and not model.training


@pytest.mark.parametrize("net", NETS)
def test_keeps_multiples_and_the_classifier(net: str) -> None:
    make, size = NETS[net]
    model = make()
    before = layer_shapes(model, list(measure.prunable_layers(model)))
    cut_channels(model, black(size), until={"ratio": 0.6}, round_to=4)
    for name, channels in entry_of(model)["kept"].items():
        assert channels % 4 == 0 and 0 < channels < before[name][0]
    assert list(entry_of(model)["left_alone"].values()) == ["its outputs are those of the model"]


def test_parameters_of_the_original() -> None:
    model = models.resnet8(5)
    original = {"parameters": measure.parameters(model), "macs": 1, "latency_ms": {"p50": 1.0}}
    cut_channels(model, black(32), until={"parameters": 0.6}, original=original)
    cut_channels(model, black(32), until={"parameters": 0.3}, original=original)
    assert 0.2 < measure.parameters(model) / original["parameters"] <= 0.3
    fresh = models.resnet8(5)
    for entry in surgery_log(model):
        replay(fresh, entry)
    fresh.load_state_dict(model.state_dict(), strict=True)
    # What is reached already costs nothing.
    cut_channels(model, black(32), until={"parameters": 0.5}, original=original)
    assert entry_of(model)["removed"] == {}


def test_ratio_is_a_total() -> None:
    model = plain()
    cut_channels(model, black(16), until={"ratio": 0.25})
    assert (model[0].out_channels, entry_of(model)["reached"]) == (24, 16 / 56)
    cut_channels(model, black(16), until={"ratio": 0.5})
    assert model[0].out_channels == 16
    assert entry_of(model)["ratio"] == pytest.approx(0.5)
    with pytest.raises(PruneError, match=r"A share of 0\.5 of the channels is cut already, more than 0\.25"):
        cut_channels(model, black(16), until={"ratio": 0.25})


def test_cost_is_measured_by_the_caller() -> None:
    seen = []

    def width(model: nn.Module) -> float:
        seen.append(model[0].out_channels)
        return float(seen[-1])

    model = cut_channels(plain(), black(16), until={"cost": 16.0}, cost=width)
    assert model[0].out_channels == 16 and entry_of(model)["reached"] == 16.0
    assert len(seen) < 14


# Masks, modes, parameters.


def test_masks_come_back_from_the_zeros() -> None:
    model = settled(plain(), 16)
    mask_smallest(model, 0.5)
    with torch.no_grad():
        model(images(16))
    cut_channels(model, black(16), until={"ratio": 0.5})
    assert set(masked_layers(model)) == {"0", "4", "7"}
    for layer in masked_layers(model).values():
        assert torch.equal(layer.weight_mask == 0, layer.weight_orig == 0)
    assert 0 < measure.sparsity(model) < 0.5
    fresh = plain()
    for entry, again in zip(surgery_log(model), (replay_mask, replay), strict=True):
        fresh = again(fresh, entry)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(images(16)), model(images(16)))


def test_modes_and_frozen_parameters_stay() -> None:
    model = plain().train()
    model[1].eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    cut_channels(model, black(16), until={"ratio": 0.5})
    assert model.training and model[0].training and not model[1].training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_trains_afterwards() -> None:
    model = cut_channels(models.resnet8(5).train(), black(32), until={"macs": 0.5})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(images(32)), torch.tensor([0, 1, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# What cannot be cut is named; what is wrong is refused.


def test_names_what_cannot_be_cut() -> None:
    model = settled(Reversed(), 16)
    cut_channels(model, black(16), until={"ratio": 0.5})
    entry = entry_of(model)
    assert list(entry["removed"]) == ["second"]
    assert entry["left_alone"]["first"].endswith("computes something else than with these channels at zero")


def test_refuses_what_torch_pruning_cannot_follow() -> None:
    model = models.shufflenet_v2(5, width=0.5)
    before = list(model.state_dict())
    with pytest.raises(PruneError, match="cannot follow the channels through this model"):
        cut_channels(model, black(32), until={"macs": 0.5})
    assert list(model.state_dict()) == before


def test_refuses_goals_out_of_reach() -> None:
    model = plain()
    before = copy_model(model)
    with pytest.raises(PruneError, match=r"brings macs down to 0\.\d+ at the least, not to 0\.01"):
        cut_channels(model, black(16), until={"macs": 0.01})
    with pytest.raises(PruneError, match="No layer can lose channels \\(round_to is 32\\)"):
        cut_channels(model, black(16), until={"macs": 0.5}, round_to=32)
    assert surgery_log(model) == []
    assert all(
        torch.equal(new, old) for new, old in zip(model.parameters(), before.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("until", "sentence"),
    [
        ({}, "exactly one of ratio, parameters, macs, cost"),
        ({"ratio": 0.5, "macs": 0.5}, "exactly one of"),
        ({"flops": 0.5}, 'until "flops": known are'),
        ({"mac": 0.5}, 'did you mean "macs"'),
        ({"macs": 1.0}, "above 0 and below 1; found 1.0"),
        ({"ratio": 0}, "above 0 and below 1; found 0"),
        ({"cost": 3.0}, "one of them is missing"),
    ],
)
def test_refuses_malformed_goals(until: dict[str, float], sentence: str) -> None:
    with pytest.raises(PruneError, match=sentence):
        cut_channels(plain(), black(16), until=until)


def test_refuses_other_choices() -> None:
    with pytest.raises(PruneError, match='is called "l3": known are: l1, l2'):
        cut_channels(plain(), black(16), until={"macs": 0.5}, importance="l3")  # type: ignore[arg-type]
    with pytest.raises(PruneError, match="round_to must be a whole number"):
        cut_channels(plain(), black(16), until={"macs": 0.5}, round_to=0)
    with pytest.raises(PruneError, match='original must hold "macs"'):
        cut_channels(plain(), black(16), until={"macs": 0.5}, original={"parameters": 10})


def test_replay_refuses_another_model() -> None:
    model = cut_channels(plain(), black(16), until={"ratio": 0.5})
    with pytest.raises(ModelError, match='Layer "0" has a weight of shape'):
        replay(model, entry_of(model))

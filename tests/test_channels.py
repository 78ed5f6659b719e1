"""Cut channels: the model without them computes what it did with them at zero, and is as small as asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
import torchvision
from torch import Tensor, nn

from compress_aug import checkpoint, deploy, measure, models
from compress_aug.channels import cut_channels, replay
from compress_aug.channels.regions import regions
from compress_aug.channels.search import Trial, counted, measured
from compress_aug.deploy.runtime import Session
from compress_aug.errors import ModelError, PruneError
from compress_aug.pruning import mask_smallest
from compress_aug.pruning import replay as replay_mask
from compress_aug.quantization import quantize
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


class Handwritten(nn.Module):
    """Joins two maps and reshapes channels and places into one axis, all by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.right = nn.Conv2d(16, 24, 3, padding=1)
        self.hidden = nn.Linear(40 * 16, 32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = torch.cat((F.relu(self.left(x)), F.leaky_relu(self.right(x))), dim=1)
        x = F.max_pool2d(x, 4)
        return self.fc(F.relu(self.hidden(x.view(x.size(0), -1))))


class Shuffled(nn.Module):
    """A channel shuffle behind a residual block with a gate, a flattened head, and branches that are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norm = nn.BatchNorm2d(32)
        self.outer = nn.Conv2d(32, 16, 1)
        self.squeeze = nn.Conv2d(16, 8, 1)
        self.excite = nn.Conv2d(8, 16, 1)
        self.left = nn.Conv2d(16, 8, 1)
        self.right = nn.Conv2d(16, 16, 1)
        self.shuffled = nn.Conv2d(24, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.last = nn.Conv2d(16, 32, 1)
        self.fc = nn.Linear(32 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.outer(F.relu(self.norm(self.depthwise(F.relu6(self.inner(x))))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = self.shuffled(torch.cat([self.left(x), F.relu(self.right(x))], 1))
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.relu(self.last(F.relu(self.grouped(x))))
        x = F.avg_pool2d(x, 4)
        return self.fc(x.view(x.size(0), -1))


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
    "handwritten": (Handwritten, 16),
    "shuffled": (Shuffled, 16),
    "group normalised": (GroupNormed, 16),
    "resnet20": (lambda: models.resnet20(5), 32),
    "mobilenet_v2": (lambda: models.mobilenet_v2(5, width=0.25), 32),
    "shufflenet_v2": (lambda: models.shufflenet_v2(5, width=0.5), 32),
    "torchvision resnet18": (vision("resnet18"), 64),
}


LARGE = ("mobilenet_v2", "torchvision resnet18")


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


def silence(model: nn.Module, norms: dict[str, list[int]]) -> nn.Module:
    with torch.no_grad():
        for name, channels in norms.items():
            model.get_submodule(name).weight[channels] = 0
            model.get_submodule(name).bias[channels] = 0
    return model


def test_parts_of_a_shufflenet_equal_it_with_these_channels_at_zero() -> None:
    model = settled(models.shufflenet_v2(5, width=0.5), 32)
    whole = copy_model(model)
    cut_channels(model, black(32), until={"ratio": 0.5}, round_to=4)
    entry = entry_of(model)
    units = [f"stage{stage}.{unit}" for stage, count in ((2, 4), (3, 8), (4, 4)) for unit in range(count)]
    assert set(entry["removed"]) == {"conv1.0", "conv5.0", *(f"{unit}.branch2.0" for unit in units)}
    norms = {f"{unit}.branch2.{k}": entry["removed"][f"{unit}.branch2.0"] for unit in units for k in (1, 4)}
    ends = {f"conv{k}.1": entry["removed"][f"conv{k}.0"] for k in (1, 5)}
    # What the stem made also runs through the depthwise convolution of the first unit's shorter branch.
    silence(whole, {**norms, **ends, "stage2.0.branch1.1": entry["removed"]["conv1.0"]})
    torch.testing.assert_close(model(images(32)), whole(images(32)))
    kept = entry["left_alone"]
    assert kept["fc"] == "its outputs are those of the model"
    assert kept["stage3.2.branch2.5"] == "its channels go through view, which is not followed"
    assert len(kept) == 1 + 16 + 3
    assert all(channels % 4 == 0 for channels in entry["kept"].values())


def test_regions_follow_sums_gates_and_joints() -> None:
    model = Shuffled().eval()
    found, without = regions(model, torch.randn(2, 3, 16, 16))
    layers = {name: {str(node.target) for node in region.part.graph.nodes} for name, region in found.items()}
    # The stem's channels hang on those of the block it is added to, on its gate's, and on who reads them.
    tied = {"stem", "inner", "outer", "squeeze", "excite", "left", "right"}
    assert layers["stem"] & {name for name, _ in model.named_children()} == tied
    assert {name for name in layers if tied <= layers[name]} == {"stem", "outer", "excite"}
    assert layers["inner"] >= {"inner", "depthwise", "norm", "outer"} and "stem" not in layers["inner"]
    assert without == {
        "shuffled": "its channels go through view, which is not followed",
        "fc": "its outputs are those of the model",
    }
    for region in found.values():
        region.part(*region.inputs)


def test_regions_say_where_they_end() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied = nn.Conv2d(3, 3, 1)
            self.scale = nn.Parameter(torch.ones(8, 1, 1))
            self.scaled = nn.Conv2d(3, 8, 1)
            self.split = nn.Conv2d(8, 8, 1)
            self.twice = nn.Conv2d(4, 4, 1)
            self.unread = nn.Conv2d(4, 4, 1)
            self.grouped = nn.Conv2d(4, 8, 1, groups=2)
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.scaled(x + self.tied(x)) * self.scale
            first, _ = self.split(x).chunk(2, 1)
            x = self.twice(self.twice(first))
            self.unread(x)
            return self.fc(self.grouped(x).mean((2, 3)))

    found, without = regions(Odd().eval(), torch.randn(2, 3, 8, 8))
    assert found == {}
    assert without == {
        "tied": "its channels are tied to x, which no layer makes",
        "scaled": "its channels go through mul, which is not followed",
        "split": "its channels go through chunk, which is not followed",
        "twice": 'its channels go through "twice" (Conv2d), which runs more than once',
        "unread": "no layer reads its channels",
        "fc": "its outputs are those of the model",
    }


# How channels are ranked by what the loss gains.


def labelled(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(images(16) + step, torch.tensor([0, 1, 2])) for step in range(count)]


def test_taylor_ranks_as_torch_pruning_does() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    reference, batches = copy_model(model), labelled(1)
    F.cross_entropy(reference(batches[0][0]), batches[0][1]).backward()
    graph = tp.DependencyGraph().build_dependency(reference, batches[0][0])
    group = graph.get_pruning_group(reference[0], tp.prune_conv_out_channels, list(range(16)))
    expected = tp.importance.TaylorImportance()(group).argsort()[:8].sort().values.tolist()
    cut_channels(model, black(16), until={"ratio": 0.5}, importance="taylor", batches=batches)
    assert entry_of(model)["removed"]["0"] == expected
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_takes_any_backward_and_keeps_what_the_loss_needs() -> None:
    def idle() -> nn.Sequential:
        model = settled(plain(), 16)
        with torch.no_grad():
            # Large weights that nobody reads.
            model[0].weight[:8] = 5.0
            model[4].weight[:, :8] = 0.0
        return model

    def ranked(batches: object) -> list[int]:
        model = cut_channels(idle(), black(16), until={"ratio": 0.25}, importance="taylor", batches=batches)
        return entry_of(model)["removed"]["0"]

    def backward(model: nn.Module) -> None:
        F.cross_entropy(model(images(16)), torch.tensor([0, 1, 2])).backward()

    assert ranked(labelled(2)) == ranked(iter(labelled(2))) == list(range(8))
    assert ranked(backward) == ranked(labelled(1))
    by_size = cut_channels(idle(), black(16), until={"ratio": 0.25})
    assert not set(entry_of(by_size)["removed"]["0"]) & set(range(8))


def test_taylor_on_frozen_masked_parts() -> None:
    model = settled(models.shufflenet_v2(5, width=0.5), 32)
    mask_smallest(model, 0.3)
    model.requires_grad_(False)
    batches = [(images(32), torch.tensor([0, 1, 2]))]
    masked = set(masked_layers(model))
    cut_channels(model, black(32), until={"ratio": 0.3}, importance="taylor", batches=batches)
    assert entry_of(model)["removed"] and set(masked_layers(model)) == masked
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_taylor_refuses_to_rank_by_nothing() -> None:
    def cut(**given: object) -> None:
        cut_channels(plain(), black(16), until={"ratio": 0.5}, **given)

    with pytest.raises(PruneError, match="belong together"):
        cut(importance="taylor")
    with pytest.raises(PruneError, match="belong together"):
        cut(importance="l1", batches=labelled(1))
    with pytest.raises(PruneError, match="batches held none, or the loss is flat"):
        cut(importance="taylor", batches=[])
    with pytest.raises(PruneError, match=r'the gradient of "0\.weight" is not finite'):
        cut(importance="taylor", batches=[(images(16) * torch.inf, torch.tensor([0, 1, 2]))])


# As small as asked, on every net; and again from the log.


@pytest.mark.parametrize(
    "net", [pytest.param(net, marks=[pytest.mark.slow] if net in LARGE else []) for net in NETS]
)
def test_reaches_macs_in_every_form(net: str, tmp_path: Path) -> None:
    make, size = NETS[net]
    model = settled(make(), size)
    shape = (3, size, size)
    whole = measure.macs(model, shape)
    cut_channels(model, black(size), until={"macs": 0.6}, round_to=4)
    entry = entry_of(model)
    assert 0.25 < entry["reached"] <= 0.6
    assert measure.macs(model, shape) == pytest.approx(entry["reached"] * whole)
    assert bool(entry["followed_in_parts"]) == (net == "shufflenet_v2")
    logits = model(images(size))
    assert logits.shape == (3, 5) and not model.training
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    checkpoint.save(model, tmp_path / "model.safetensors")
    fresh = checkpoint.rebuild(make(), tmp_path / "model.safetensors").eval()
    assert torch.equal(fresh(images(size)), logits) and surgery_log(fresh) == [entry]
    deploy.write(model, tmp_path / "model.onnx", image_shape=shape)
    file = torch.from_numpy(Session(tmp_path / "model.onnx").run(images(size).numpy()))
    torch.testing.assert_close(file, logits.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("net", [net for net in NETS if net != "shufflenet_v2"])
def test_keeps_multiples_and_the_classifier(net: str) -> None:
    make, size = NETS[net]
    model = make()
    before = layer_shapes(model, list(measure.prunable_layers(model)))
    cut_channels(model, black(size), until={"ratio": 0.6}, round_to=4)
    for name, channels in entry_of(model)["kept"].items():
        assert channels % 4 == 0 and 0 < channels < before[name][0]
    reasons = set(entry_of(model)["left_alone"].values())
    if net != "shuffled":
        assert reasons == {"its outputs are those of the model"}


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

    model = cut_channels(plain(), black(16), until={"latency_ms": 16.0}, cost=width)
    entry = entry_of(model)
    assert model[0].out_channels == 16 and entry["reached"] == 16.0
    # A cut is measured once, however many ratios round to it.
    assert [value for _, value in entry["trials"]] == seen and len(seen) < 8
    with pytest.raises(PruneError, match=r"brings latency_ms down to 8 at the least, not to 7\.5"):
        cut_channels(plain(), black(16), until={"latency_ms": 7.5}, cost=width)
    assert entry_of(cut_channels(plain(), black(16), until={"cost": 32.0}, cost=width))["removed"] == {}


def test_a_measured_search_infers_nothing_from_neighbours() -> None:
    # Slower at three eighths than at two, fast at four, and nowhere else but in one range above.
    def latency(ratio: float) -> float:
        return 9.0 if ratio == 0.375 else 5.0 if ratio == 0.5 or 0.8 < ratio < 0.9 else 7.0

    found = measured(latency, ("latency_ms", 6.0))
    assert (found.ratio, found.value) == (0.5, 5.0)
    assert found.trials[2:5] == [Trial(0.25, 7), Trial(0.375, 9), Trial(0.5, 5)]
    falling = measured(lambda ratio: 1 - ratio, ("size_mb", 0.7))
    assert 0.3 <= falling.ratio <= 0.3 + 1 / 64 and falling.value == 1 - falling.ratio
    with pytest.raises(PruneError, match="brings latency_ms down to 5 at the least, not to 4"):
        measured(latency, ("latency_ms", 4.0))
    exact = counted(lambda ratio: 1 - ratio, ("macs", 0.7))
    assert 0.3 <= exact.ratio <= 0.3 + 1 / 256 and len(exact.trials) < 12


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


@pytest.mark.parametrize(
    ("net", "importance"),
    [("branches", "taylor"), ("handwritten", "l2"), ("shuffled", "taylor"), ("shufflenet_v2", "l2")],
)
def test_two_calls_cut_the_same(net: str, importance: Any) -> None:
    make, size = NETS[net]
    entries, batches = [], [(images(size), torch.tensor([0, 1, 2]))] if importance == "taylor" else None
    model = settled(make(), size)
    for again in (copy_model(model), model):
        cut_channels(again, black(size), until={"ratio": 0.5}, importance=importance, batches=batches)
        entries.append(entry_of(again))
    assert entries[0] == entries[1] and entries[0]["removed"]


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


def test_refuses_what_nothing_can_follow() -> None:
    class Unfollowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = models.shufflenet_v2(5, width=0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x if x.sum() > 0 else -x)

    model = Unfollowed()
    before = list(model.state_dict())
    both = r"torch-pruning cannot follow .* model, and torch\.fx cannot trace the model.*prune single weights"
    with pytest.raises(PruneError, match=both):
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
        ({}, "exactly one of ratio, parameters, macs, cost, latency_ms, size_mb"),
        ({"ratio": 0.5, "macs": 0.5}, "exactly one of"),
        ({"flops": 0.5}, 'until "flops": known are'),
        ({"mac": 0.5}, 'did you mean "macs"'),
        ({"macs": 1.0}, "above 0 and below 1; found 1.0"),
        ({"ratio": 0}, "above 0 and below 1; found 0"),
        ({"cost": 3.0}, "without a cost"),
        ({"latency_ms": 3.0}, "without a cost"),
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


# Nets that others write.


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 32, 2, stride=2)
        self.last = nn.Conv2d(32, 32, 3)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.last(F.relu(self.up(F.relu(self.down(x)))))).mean((2, 3)))


def chain(middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        middle,
        nn.Conv2d(32, 32, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def line(kind: type[nn.Module], pool: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(kind(3, 32, 3), nn.ReLU(), kind(32, 32, 3), pool(1), nn.Flatten(), nn.Linear(32, 5))


@pytest.mark.parametrize("goal", ["ratio", "parameters", "macs"])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Transposed(), (1, 3, 8, 8)),
        # One slope for all channels.
        (chain(nn.PReLU()), (1, 3, 8, 8)),
        (line(nn.Conv1d, nn.AdaptiveAvgPool1d), (1, 3, 8)),
        (line(nn.Conv3d, nn.AdaptiveAvgPool3d), (1, 3, 6, 6, 6)),
        (chain(nn.ReLU()).double(), (1, 3, 8, 8)),
    ],
    ids=["transposed", "prelu", "1d", "3d", "double"],
)
def test_odd_nets_are_cut(model: nn.Module, shape: tuple[int, ...], goal: str) -> None:
    model = cut_channels(copy_model(model), torch.zeros(shape), until={goal: 0.6})
    log = surgery_log(model)[-1]
    # Only the classifier stays: nothing was given up because the trial itself could not follow.
    assert len(log["left_alone"]) == 1
    assert log["reached"] == pytest.approx(0.6, abs=0.15)
    model(torch.zeros(shape, dtype=next(model.parameters()).dtype))


def test_a_computed_weight_is_named_and_what_it_does_not_touch_is_cut() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), *chain(nn.ReLU()))
    model[2] = nn.Conv2d(32, 32, 3)
    nn.utils.parametrizations.weight_norm(model[0])
    cut_channels(model, torch.zeros(1, 3, 12, 12), until={"ratio": 0.5})
    log = surgery_log(model)[-1]
    assert log["left_alone"]["0"] == 'it needs "0", whose weight is computed (weight normalisation, say)'
    assert sorted(log["removed"]) == ["2", "4"]


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = chain(nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), x


@pytest.mark.parametrize(
    ("model", "shape", "sentence"),
    [
        (Several(), (1, 3, 8, 8), "returns a tuple, and channels can be cut where it returns one tensor"),
        (
            chain(nn.ReLU()),
            (1, 1, 8, 8),
            r"does not run on an input of shape \(N, 1, 8, 8\) .*give an example",
        ),
        (nn.Sequential(nn.LazyConv2d(4, 3)), (1, 3, 8, 8), '"0.weight" has no values yet: run one batch'),
    ],
    ids=["tuple", "shape", "lazy"],
)
def test_models_that_cannot_be_cut_are_told_why(
    model: nn.Module, shape: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(PruneError, match=sentence):
        cut_channels(model, torch.zeros(shape), until={"ratio": 0.5})


def test_a_norm_over_places_as_well_is_left_alone() -> None:
    model = cut_channels(chain(nn.LayerNorm([32, 6, 6])), torch.zeros(1, 3, 8, 8), until={"ratio": 0.5})
    assert list(surgery_log(model)[-1]["removed"]) == ["2"]


def test_a_quantized_model_is_refused_by_name() -> None:
    model = quantize(chain(nn.ReLU()), torch.zeros(1, 3, 8, 8), calibration=[torch.randn(4, 3, 8, 8)])
    with pytest.raises(PruneError, match="The model is quantized: channels are cut before that"):
        cut_channels(model, torch.zeros(1, 3, 8, 8), until={"ratio": 0.5})


@pytest.mark.parametrize(
    ("goal", "round_to", "advice"),
    [
        (
            0.05,
            8,
            r"round_to 8 keeps at least 8 channels of each layer: with round_to 1 it comes down to 0\.0",
        ),
        (0.001, 8, "not to 0.001. Ask for a little more than that, or start from a smaller model"),
        (0.001, 1, "not to 0.001. Ask for a little more than that, or start from a smaller model"),
    ],
)
def test_what_is_out_of_reach_is_told_with_what_to_do(goal: float, round_to: int, advice: str) -> None:
    with pytest.raises(PruneError, match=advice):
        cut_channels(chain(nn.ReLU()), torch.zeros(1, 3, 8, 8), until={"parameters": goal}, round_to=round_to)


def test_a_cost_out_of_reach_names_round_to() -> None:
    with pytest.raises(PruneError, match="a smaller round_to cuts further"):
        cut_channels(chain(nn.ReLU()), torch.zeros(1, 3, 8, 8), until={"cost": 1}, cost=measure.parameters)


def test_rounding_that_lets_nothing_go_is_told() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    with pytest.raises(PruneError, match=r'round_to is 8\)\. With a smaller round_to these can: "0"'):
        cut_channels(model, torch.zeros(1, 3, 8, 8), until={"ratio": 0.5})

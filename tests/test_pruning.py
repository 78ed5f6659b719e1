"""Masks, against torch.nn.utils.prune and by hand: which weights, how many, and that they stay zero; redraw."""

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import brevitas.nn as qnn
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from toys import TinyResidual, tiny_data, tiny_net

from compress_aug import checkpoint
from compress_aug.errors import ModelError, PruneError, RunFolderError, SurgeryError
from compress_aug.inheritance import attach_layers, drop_layers
from compress_aug.measure import effective_weight, prunable_layers, sparsity
from compress_aug.models import resnet8
from compress_aug.pruning import (
    chosen_layers,
    gradual,
    mask_like,
    mask_pattern,
    mask_random,
    mask_smallest,
    masks_of,
    read_masks,
    redraw,
    replay,
)
from compress_aug.surgery import copy_model, make_permanent, masked_layers, surgery_log
from compress_aug.training import Settings, Training, fit


def toy() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


def quantized_toy() -> nn.Sequential:
    return nn.Sequential(
        qnn.QuantConv2d(3, 8, 3, bias=False, weight_bit_width=4),
        nn.BatchNorm2d(8),
        qnn.QuantReLU(bit_width=4),
        nn.Flatten(),
        qnn.QuantLinear(8 * 36, 5, bias=True, weight_bit_width=4),
    )


class Attention(nn.Module):
    """An attention layer reads the weight of its `out_proj` without ever calling that layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head(mixed.mean(1))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def masks(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight_mask.clone() for name, layer in masked_layers(model).items()}


def zeros(model: nn.Module) -> int:
    return sum(int((effective_weight(layer) == 0).sum()) for layer in prunable_layers(model).values())


def total(model: nn.Module) -> int:
    return sum(effective_weight(layer).numel() for layer in prunable_layers(model).values())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, images: Tensor) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


# Against the reference.


@pytest.mark.parametrize("share", [0.2, 0.4, 0.93])
def test_global_masks_are_those_of_torch(share: float) -> None:
    ours, theirs = toy(), toy()
    theirs.load_state_dict(ours.state_dict())
    parameters = [(layer, "weight") for layer in prunable_layers(theirs).values()]
    prune.global_unstructured(parameters, prune.L1Unstructured, amount=share)
    mask_smallest(ours, share)
    assert all(torch.equal(masks(ours)[name], mask) for name, mask in masks(theirs).items())
    assert masks(ours).keys() == masks(theirs).keys() == {"0", "3", "5"}


def test_layer_masks_are_those_of_torch() -> None:
    ours, theirs = toy(), toy()
    theirs.load_state_dict(ours.state_dict())
    for layer in prunable_layers(theirs).values():
        prune.l1_unstructured(layer, "weight", amount=0.3)
    mask_smallest(ours, 0.3, scope="layer")
    assert all(torch.equal(masks(ours)[name], mask) for name, mask in masks(theirs).items())


def test_rising_totals_end_where_one_call_does() -> None:
    # Where torch's own amounts 0.2, 0.4, 0.6 in a row would end at 0.81.
    step_by_step, at_once = toy(), toy()
    at_once.load_state_dict(step_by_step.state_dict())
    for share in (0.2, 0.4, 0.6):
        mask_smallest(step_by_step, share)
    mask_smallest(at_once, 0.6)
    assert all(torch.equal(masks(at_once)[name], mask) for name, mask in masks(step_by_step).items())


# How many, and which.


@pytest.mark.parametrize("share", [0.0, 0.001, 0.25, 1 / 3, 0.5, 0.999])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_zeros_are_exact(share: float, scope: str) -> None:
    model = mask_smallest(toy(), share, scope)
    if scope == "global":
        assert zeros(model) == round(share * total(model))
    for layer in prunable_layers(model).values() if scope == "layer" else ():
        weight = effective_weight(layer)
        assert int((weight == 0).sum()) == round(share * weight.numel())


def test_equal_weights_go_in_order() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
    for layer in model:
        nn.init.constant_(layer.weight, 0.5)
    mask_smallest(model, 10 / 16)
    assert masks(model)["0"].flatten().tolist() == [0] * 8
    assert masks(model)["1"].flatten().tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_types(dtype: torch.dtype) -> None:
    model = mask_smallest(toy().to(dtype), 0.5)
    assert masks(model)["0"].dtype == dtype
    masked = sum(int((mask == 0).sum()) for mask in masks(model).values())
    assert masked == round(0.5 * total(model))


def test_masks_only_grow() -> None:
    model = mask_smallest(toy(), 0.3)
    before = masks(model)
    with torch.no_grad():
        for layer in prunable_layers(model).values():
            # Behind the mask the largest weights of all: they must stay masked nevertheless.
            layer.weight_orig += 10 * (1 - layer.weight_mask)
    mask_smallest(model, 0.5)
    after = masks(model)
    assert all(not (after[name] * (1 - mask)).any() for name, mask in before.items())
    assert zeros(model) == round(0.5 * total(model))


def test_what_is_behind_a_mask_is_zero() -> None:
    for layer in masked_layers(mask_smallest(toy(), 0.4)).values():
        assert torch.equal(layer.weight_orig.detach(), effective_weight(layer))
        assert torch.equal(layer.weight, effective_weight(layer))


def test_permanent_zeros_count_and_come_back_as_masks() -> None:
    model = mask_smallest(toy(), 0.4)
    before = masks(model)
    make_permanent(model)
    with pytest.raises(PruneError, match="already has sparsity"):
        mask_smallest(model, 0.3)
    mask_smallest(model, 0.4)
    assert all(torch.equal(masks(model)[name], mask) for name, mask in before.items())


# Through training, copies and a second call.


def test_zeros_hold_through_momentum_and_weight_decay() -> None:
    model, images = toy(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    train(model, optimizer, 3, images)
    mask_smallest(model, 0.5)
    before = [effective_weight(layer).clone() for layer in masked_layers(model).values()]
    # The optimizer from before goes on: its parameters are the same objects.
    train(model, optimizer, 10, images)
    assert zeros(model) == round(0.5 * total(model))
    for layer, weight in zip(masked_layers(model).values(), before, strict=True):
        assert not effective_weight(layer)[weight == 0].any()
        assert not torch.equal(effective_weight(layer), weight)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_a_new_optimizer_leaves_the_hidden_values_at_zero(make: Callable[..., torch.optim.Optimizer]) -> None:
    model = mask_smallest(toy(), 0.5)
    settings = {"momentum": 0.9} if make is torch.optim.SGD else {}
    train(model, make(model.parameters(), lr=0.1, weight_decay=0.1, **settings), 10, torch.randn(4, 3, 8, 8))
    for layer in masked_layers(model).values():
        assert not layer.weight_orig[layer.weight_mask == 0].any()


def test_second_call_adds_no_hook() -> None:
    model = toy()
    for share in (0.1, 0.2, 0.3):
        mask_smallest(model, share)
    for layer in masked_layers(model).values():
        assert len(layer._forward_pre_hooks) == 1
        assert not isinstance(next(iter(layer._forward_pre_hooks.values())), prune.PruningContainer)


def test_grows_the_masks_of_torch() -> None:
    model = toy()
    prune.l1_unstructured(model[0], "weight", amount=0.2)
    prune.l1_unstructured(model[0], "weight", amount=0.2)
    mask_smallest(model, 0.5)
    assert zeros(model) == round(0.5 * total(model))
    model(torch.randn(2, 3, 8, 8))
    assert zeros(make_permanent(model)) == round(0.5 * total(model))


def test_copy_after_a_forward_pass() -> None:
    model, images = mask_smallest(toy(), 0.4), torch.randn(2, 3, 8, 8)
    output = model(images)
    twin = copy_model(model)
    assert torch.equal(twin(images), output)
    assert surgery_log(twin) == surgery_log(model)
    mask_smallest(twin, 0.6)
    assert zeros(model) == round(0.4 * total(model))


def test_plain_deepcopy_works_before_a_forward_pass() -> None:
    model = mask_smallest(toy(), 0.4)
    assert zeros(copy.deepcopy(model)) == zeros(model)


def test_attention_computes_with_the_masked_weight() -> None:
    model, tokens = Attention(), torch.randn(2, 5, 8)
    for share in (0.3, 0.5):
        mask_smallest(model, share)
    # torch's own for its packed weight, and one for out_proj.
    assert len(model.attention._forward_pre_hooks) == 2
    train(model, torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1), 3, tokens)
    model.eval()
    with torch.no_grad():
        output = model(tokens)
        twin = replay(Attention(), surgery_log(model)[-1])
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin.eval()(tokens), output)
        assert torch.equal(make_permanent(model)(tokens), output)
    assert isinstance(model.attention.in_proj_weight, nn.Parameter)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 6}])
def test_attentions_own_weights_are_masked_as_torch_does(sizes: dict[str, int]) -> None:
    ours = nn.MultiheadAttention(8, 2, **sizes)
    theirs = copy.deepcopy(ours)
    names = ["q_proj", "k_proj", "v_proj"] if sizes else ["in_proj"]
    parameters = [(theirs, f"{name}_weight") for name in names] + [(theirs.out_proj, "weight")]
    prune.global_unstructured(parameters, prune.L1Unstructured, amount=0.4)
    mask_smallest(ours, 0.4)
    assert list(masks(ours)) == [*names, "out_proj"]
    for holder, name in parameters:
        mine = ours if holder is theirs else ours.out_proj
        assert torch.equal(getattr(mine, f"{name}_mask"), getattr(holder, f"{name}_mask"))
    query, key, value = torch.randn(3, 1, 8), *(torch.randn(3, 1, sizes.get(k, 8)) for k in ("kdim", "vdim"))
    assert torch.equal(ours(query, key, value)[0], theirs(query, key, value)[0])


def test_masks_of_attention_go_into_a_file_and_onto_another_model(tmp_path: Path) -> None:
    model = mask_smallest(Attention(), 0.5, layers=["attention"])
    checkpoint.save(model, tmp_path / "model.safetensors", image_shape=[8], classes=3)
    read = read_masks(tmp_path / "model.safetensors")
    assert read.keys() == {"attention.in_proj", "attention.out_proj"}
    assert all(torch.equal(mask, masks(model)[name] != 0) for name, mask in read.items())
    again = checkpoint.rebuild(Attention(), tmp_path / "model.safetensors")
    assert zeros(again) == zeros(mask_like(Attention(), read)) == zeros(model) == 128
    tokens = torch.randn(2, 5, 8)
    assert torch.equal(again.eval()(tokens), model.eval()(tokens))


# The log.


@pytest.mark.parametrize("make", [toy, quantized_toy])
def test_replay_takes_the_weights_and_computes_the_same(make: Callable[[], nn.Sequential]) -> None:
    model, images = make(), torch.randn(4, 3, 8, 8)
    model(images)
    mask_smallest(mask_smallest(model, 0.2, "layer"), 0.4)
    fresh = make()
    for entry in surgery_log(model):
        fresh = replay(fresh, entry)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(images), model.eval()(images))
    assert surgery_log(fresh) == []
    mask_smallest(fresh, 0.5)
    assert zeros(fresh) == round(0.5 * total(model))


def test_log_entry() -> None:
    assert surgery_log(mask_smallest(toy(), 0.4))[0] == {
        "verb": "mask",
        "method": "l1",
        "sparsity": 0.4,
        "scope": "global",
        "layers": {"0": [8, 3, 3, 3], "3": [8, 1, 3, 3], "5": [5, 128]},
    }


def test_replay_refuses_another_model() -> None:
    entry = surgery_log(mask_smallest(toy(), 0.4))[0]
    with pytest.raises(ModelError, match=r'"3".*no such layer'):
        replay(nn.Sequential(nn.Conv2d(3, 8, 3)), entry)


def test_quantized_layers_keep_their_zeros() -> None:
    model, images = quantized_toy(), torch.randn(4, 3, 8, 8)
    mask_smallest(model, 0.4)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1), 5, images)
    assert sparsity(model) == pytest.approx(0.4, abs=1 / total(model))
    for layer in masked_layers(model).values():
        assert not layer.quant_weight().value[layer.weight_mask == 0].any()


# Chosen layers.


def test_layers_are_chosen_by_name_glob_and_type() -> None:
    net = resnet8(10)
    every = list(prunable_layers(net))
    assert list(chosen_layers(net)) == every
    assert list(chosen_layers(net, ["fc", "layer1.*"])) == ["layer1.0.conv1", "layer1.0.conv2", "fc"]
    assert list(chosen_layers(net, ["layer1"])) == ["layer1.0.conv1", "layer1.0.conv2"]
    assert list(chosen_layers(net, ["*.conv2"])) == [f"layer{n}.0.conv2" for n in (1, 2, 3)]
    assert list(chosen_layers(net, ["Linear"])) == ["fc"]
    assert list(chosen_layers(net, exclude=["Conv2d"])) == ["fc"]
    assert list(chosen_layers(net, ["layer?.0.conv1"], ["layer2"])) == ["layer1.0.conv1", "layer3.0.conv1"]
    assert list(chosen_layers(quantized_toy(), ["Conv2d"])) == ["0"], "quantized layers are of their type too"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"layers": ["layr1.*"]},
            'layers: "layr1.*" matches no convolution or linear layer; did you mean "layer1"?',
        ),
        ({"layers": ["fc", "Conv2D"]}, 'did you mean "Conv2d"?'),
        (
            {"exclude": ["bn1"]},
            'exclude: "bn1" matches no convolution or linear layer; known are: Conv2d, Linear, conv1, ',
        ),
        ({"layers": ["zzz"]}, "known are: Conv2d, Linear, conv1, layer1.0.conv1, "),
        ({"layers": ["fc"], "exclude": ["Linear"]}, "exclude matches all of fc."),
        ({"layers": "fc"}, 'layers is a list of names, globs and types: write ["fc"].'),
    ],
)
def test_what_matches_nothing_is_told(arguments: dict[str, object], said: str) -> None:
    for mask in (lambda net, **keys: mask_smallest(net, 0.5, **keys), mask_pattern):
        net = resnet8(10)
        with pytest.raises(PruneError) as caught:
            mask(net, **arguments)  # type: ignore[arg-type]
        assert said in str(caught.value)
        assert not masked_layers(net)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("mask", [mask_smallest, mask_random])
def test_the_total_is_that_of_the_chosen_layers(mask: Callable[..., nn.Module], scope: str) -> None:
    model = toy()
    before = model[0].weight.detach().clone()
    mask(model, 0.3, scope, layers=["[35]"])
    chosen = nn.Sequential(model[3], nn.Flatten(), model[5])
    assert set(masks(model)) == {"3", "5"} and torch.equal(model[0].weight, before)
    expected = round(0.3 * total(chosen)) if scope == "global" else round(0.3 * 72) + round(0.3 * 640)
    assert zeros(chosen) == expected
    # Others come later, and what is masked stays the least that is zero.
    mask(model, 0.9, layers=["0"])
    assert zeros(chosen) == expected and zeros(model[0]) == round(0.9 * 216)
    with pytest.raises(PruneError, match=r"The chosen part of the model already has sparsity 0\.3"):
        mask(model, 0.2, layers=["3", "5"])
    with pytest.raises(PruneError, match=r"The model already has sparsity 0\.4"):
        mask(model, 0.4)


# Random ones.


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_random_masks_are_exact_seeded_and_grow(scope: str) -> None:
    one, same, other, at_once = (
        mask_random(toy(), share, scope, seed=seed)
        for share, seed in ((0.3, 1), (0.3, 1), (0.3, 2), (0.7, 1))
    )
    assert all(torch.equal(masks(same)[name], mask) for name, mask in masks(one).items())
    assert any(not torch.equal(masks(other)[name], mask) for name, mask in masks(one).items())
    shares = [(mask == 0).double().mean().item() for mask in masks(one).values()]
    if scope == "layer":
        counts = [int((mask == 0).sum()) for mask in masks(one).values()]
        assert counts == [round(0.3 * mask.numel()) for mask in masks(one).values()]
    else:
        assert zeros(one) == round(0.3 * total(one)) and max(shares) > min(shares)
    before = masks(one)
    mask_random(one, 0.5, scope, seed=9)
    assert all(not (masks(one)[name] * (1 - mask)).any() for name, mask in before.items())
    # Rising totals with one seed end where one call does, as with the smallest.
    mask_random(same, 0.7, scope, seed=1)
    assert all(torch.equal(masks(at_once)[name], mask) for name, mask in masks(same).items())


def test_random_masks_take_zeros_first() -> None:
    model = mask_random(toy(), 0.4, seed=1)
    before = masks(model)
    mask_random(make_permanent(model), 0.4, seed=2)
    assert all(torch.equal(masks(model)[name], mask) for name, mask in before.items())


def test_random_draws_do_not_look_at_magnitudes_and_leave_torch_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    layer = nn.Linear(100, 100)
    torch.manual_seed(5)
    mask_random(layer, 0.5, seed=3)
    assert torch.equal(torch.rand(3), expected)
    small = layer.weight_orig.abs() < 0.05
    twin = mask_random(copy_model(layer), 0.5, seed=3)
    assert torch.equal(twin.weight_mask, layer.weight_mask)
    # As many of the small ones are gone as chance would have it: 0.5 within five standard deviations.
    fresh = mask_random(nn.Linear(100, 100), 0.5, seed=4)
    kept = fresh.weight_mask[small].mean().item()
    assert abs(kept - 0.5) < 5 * 0.5 / math.sqrt(int(small.sum()))


# N:M.


def test_two_of_four_by_hand() -> None:
    layer = nn.Linear(8, 2, bias=False)
    rows = [[1.0, -4, 3, 2, 0.5, 0.5, 0.5, 0.5], [-1, 0, 0, 0, 9, 8, 7, 6]]
    layer.weight.data = torch.tensor(rows)
    mask_pattern(layer, "2:4")
    # Of equal ones the earlier go first.
    assert layer.weight_mask.int().tolist() == [[0, 1, 1, 0, 0, 0, 1, 1], [1, 0, 0, 1, 1, 1, 0, 0]]
    assert layer.weight.tolist() == [[0, -4, 3, 0, 0, 0, 0.5, 0.5], [-1, 0, 0, 0, 9, 8, 0, 0]]


@pytest.mark.parametrize(("stay", "size"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_groups_run_along_the_input_channels(stay: int, size: int) -> None:
    conv = nn.Conv2d(16, 6, 3, groups=2)
    weight = conv.weight.detach().clone()
    mask_pattern(conv, f"{stay}:{size}")
    for out, row, column in itertools.product(range(6), range(3), range(3)):
        for start in range(0, 8, size):
            group = weight[out, start : start + size, row, column].abs()
            largest = sorted(group.sort(descending=True).indices[:stay].tolist())
            kept = conv.weight_mask[out, start : start + size, row, column].nonzero().flatten().tolist()
            assert kept == largest
    assert zeros(conv) == conv.weight.numel() * (size - stay) // size


def test_an_empty_list_of_layers_is_told_as_such() -> None:
    with pytest.raises(PruneError, match="layers is an empty list: name at least one layer"):
        mask_smallest(nn.Linear(2, 2), 0.5, layers=[])


def test_what_does_not_fit_a_pattern_stays_dense_and_is_named() -> None:
    model = mask_pattern(toy(), "2:4")
    assert set(masks(model)) == {"5"} and zeros(model) == 320
    entry = surgery_log(model)[-1]
    assert entry == {
        "verb": "mask", "method": "pattern", "pattern": "2:4", "dense": ["0", "3"], "layers": {"5": [5, 128]},
    }  # fmt: skip
    with pytest.raises(PruneError, match='No layer fits the pattern "2:4": the input channels of 0, 3 are'):
        mask_pattern(toy(), "2:4", exclude=["Linear"])
    for wrong in ("4:2", "0:4", "2:2", "2/4", "2"):
        with pytest.raises(PruneError, match=f'0 < N < M, such as "2:4"; found "{wrong}"'):
            mask_pattern(toy(), wrong)


def test_a_pattern_only_grows_masks() -> None:
    model = mask_smallest(tiny_net(), 0.7)
    before = masks(model)
    mask_pattern(model, "2:4")
    after = masks(model)
    assert all(not (after[name] * (1 - mask)).any() for name, mask in before.items())
    groups = after["3"].movedim(1, -1).reshape(-1, 4).sum(1)
    old = before["3"].movedim(1, -1).reshape(-1, 4).sum(1)
    assert torch.equal(groups, old.clamp_max(2)), "no group loses more than it must"
    assert torch.equal(after["0"], before["0"]), "three colours do not fit"


# Another model's.


def test_masks_of_another_model_for_weights_of_its_own(tmp_path: Path) -> None:
    pruned = mask_smallest(tiny_net(), 0.6)
    path = tmp_path / "model.safetensors"
    checkpoint.save(pruned, path)
    for given in (pruned, masks_of(pruned), read_masks(path)):
        own = redraw(tiny_net(), seed=7)
        before = own[3].weight.detach().clone()
        mask_like(own, given)
        assert all(torch.equal(masks(own)[name], mask) for name, mask in masks(pruned).items())
        assert masks(own).keys() == masks(pruned).keys()
        assert torch.equal(own[3].weight, before * masks(pruned)["3"])
        assert zeros(own) == zeros(pruned)
    (tmp_path / "broken.safetensors").write_bytes(b"not at all")
    with pytest.raises(RunFolderError, match="is not a checkpoint"):
        read_masks(tmp_path / "broken.safetensors")


def test_masks_that_do_not_fit_are_refused() -> None:
    pruned = mask_smallest(tiny_net(), 0.6)
    with pytest.raises(PruneError, match="has no masks"):
        mask_like(tiny_net(), tiny_net())
    with pytest.raises(
        PruneError, match=r'layer "0" has the shape \[8, 3, 3, 3\], its weight \[16, 3, 3, 3\]'
    ):
        mask_like(tiny_net(width=16), pruned)
    with pytest.raises(PruneError, match=r'mask for "convv".*did you mean "conv"'):
        mask_like(TinyResidual(), {"convv": torch.ones(2)})
    sparser = mask_smallest(tiny_net(), 0.8)
    with pytest.raises(PruneError, match="would give back weights"):
        mask_like(sparser, pruned)
    assert sparsity(mask_like(pruned, sparser)) == sparsity(sparser)


# Redrawn weights.


def test_redraw_is_building_anew() -> None:
    net = tiny_net()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.add_(3)
    state = torch.get_rng_state()
    parameters = list(net.parameters())
    redraw(net, seed=0)  # the seed that tiny_net builds with
    assert torch.equal(torch.get_rng_state(), state)
    assert all(one is other for one, other in zip(net.parameters(), parameters, strict=True))
    for name, value in tiny_net().state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert not torch.equal(redraw(net, seed=1)[0].weight, tiny_net()[0].weight)
    assert surgery_log(net)[-1] == {"verb": "redraw", "seed": 1}


def test_redraw_keeps_masks_and_applies_them() -> None:
    net = mask_smallest(tiny_net(), 0.6)
    train(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), 3, torch.randn(4, 3, 8, 8))
    before, fresh = masks(net), tiny_net()
    redraw(net, seed=0)
    assert all(torch.equal(masks(net)[name], mask) for name, mask in before.items())
    for name, layer in masked_layers(net).items():
        expected = fresh.get_submodule(name).weight * before[name]
        assert torch.equal(layer.weight_orig, expected) and torch.equal(layer.weight, expected)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(net.eval()(images), mask_like(fresh, before).eval()(images))
    # And it trains: what is masked stays, the rest moves.
    train(net, torch.optim.SGD(net.parameters(), lr=0.1), 3, images)
    assert zeros(net) == zeros(fresh)


def test_redraw_reaches_attention() -> None:
    model = mask_smallest(Attention(), 0.5)
    old = model.attention.in_proj_weight.detach().clone()
    torch.manual_seed(3)
    fresh = Attention()
    redraw(model, seed=3)
    expected = fresh.attention.in_proj_weight * masks(model)["attention.in_proj"]
    assert torch.equal(model.attention.in_proj_weight, expected)
    assert not torch.equal(model.attention.in_proj_weight, old)
    assert torch.equal(model.head.weight, fresh.head.weight * masks(model)["head"])


def test_redraw_refuses_what_it_cannot_draw() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    net = nn.Sequential(nn.Linear(2, 2), Own())
    before = net[0].weight.detach().clone()
    with pytest.raises(SurgeryError, match=r"have no reset_parameters: 1\. Write one"):
        redraw(net)
    with pytest.raises(SurgeryError, match="have no reset_parameters: the model itself"):
        redraw(Own())
    with pytest.raises(SurgeryError, match=r"have no reset_parameters: 0\.weight_quant"):
        redraw(nn.Sequential(qnn.QuantLinear(2, 2, bias=True, weight_quant=_learned_scale())))
    attached = attach_layers(tiny_net(), torch.zeros(1, 3, 8, 8), blocks=1)
    with pytest.raises(SurgeryError, match="Extra layers are attached"):
        redraw(attached)
    redraw(drop_layers(attached))
    assert torch.equal(net[0].weight, before)


def _learned_scale() -> object:
    from brevitas.quant import Int8WeightPerTensorFloat

    return Int8WeightPerTensorFloat.let(scaling_impl_type="parameter_from_stats")


# Checkpoints: each method, saved, and rebuilt on a fresh model.

METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "l1": lambda net: mask_smallest(net, 0.5, layers=["0", "Linear"]),
    "random": lambda net: mask_random(net, 0.5, "layer", seed=4),
    "pattern": lambda net: mask_pattern(net, "2:4"),
    "like": lambda net: mask_like(net, mask_smallest(copy_model(net), 0.3)),
    "redraw": lambda net: redraw(mask_random(net, 0.4), seed=3),
}


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("make", [tiny_net, TinyResidual])
def test_rebuilt_from_its_checkpoint(method: str, make: Callable[..., nn.Module], tmp_path: Path) -> None:
    if make is TinyResidual and method == "l1":
        model = mask_smallest(make(), 0.5, layers=["stem", "Linear"])
    else:
        model = METHODS[method](make())
    images = torch.randn(4, 3, 8, 8)
    train(model, torch.optim.AdamW(model.parameters(), lr=0.01), 3, images)
    checkpoint.save(model, tmp_path / "model.safetensors")
    base = make()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_()
    rebuilt = checkpoint.rebuild(base, tmp_path / "model.safetensors")
    assert model.state_dict().keys() == rebuilt.state_dict().keys()
    assert all(torch.equal(rebuilt.state_dict()[name], value) for name, value in model.state_dict().items())
    assert surgery_log(rebuilt) == surgery_log(model)
    assert torch.equal(model.eval()(images), rebuilt.eval()(images))
    # It trains on as it would have.
    for net in (model, rebuilt):
        train(net.train(), torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), 2, images)
    assert torch.equal(model.eval()(images), rebuilt.eval()(images))


# Gradually.


def agp(start: float, end: float, at: float) -> float:
    """Eq. 1 of arXiv 1710.01878, `at` in [0, 1] of the time in which it prunes."""
    return end + (start - end) * (1 - at) ** 3


def test_gradual_follows_the_formula_and_momentum_revives_nothing() -> None:
    model, images = tiny_net(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    prune_at = gradual(0.1, 0.8, every=0.1, until=0.7)
    weights, before = total(model), None
    for step in range(40):
        prune_at(model, step / 40)
        done = min((step // 4) / 7, 1.0)
        assert zeros(model) == round(agp(0.1, 0.8, done) * weights)
        now = masks(model)
        assert before is None or all(not (now[name] * (1 - mask)).any() for name, mask in before.items())
        before = now
        train(model, optimizer, 1, images)
        assert all(
            not effective_weight(layer)[layer.weight_mask == 0].any()
            for layer in masked_layers(model).values()
        )
    assert zeros(model) == round(0.8 * weights)
    assert len(surgery_log(model)) == 1 and surgery_log(model)[0]["end"] == 0.8


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_gradual_in_a_training_that_is_stopped_goes_on_exactly(optimizer: str) -> None:
    settings = Settings(epochs=3, batch_size=16, lr=0.01, optimizer=optimizer, precision="float32")  # type: ignore[arg-type]

    def begun() -> Training:
        net = tiny_net()
        prune_at = gradual(0.0, 0.6, every=0.2, until=0.8, layers=["Conv2d"])
        prune_at(net, 0.0)
        return Training(net, tiny_data(), settings=settings, on_step=prune_at, fabric=_cpu())

    whole = begun()
    fit(whole)
    chosen = nn.ModuleList(chosen_layers(whole.model, ["Conv2d"]).values())
    assert zeros(chosen) == round(0.6 * total(chosen))
    assert not hasattr(whole.model[8], "weight_mask")
    # Between two prunings too, when momentum has moved what lies behind a new mask.
    for stop in (3, 4, 7, 11):
        first, steps = begun(), itertools.count(1)
        while first.epoch(lambda training, steps=steps, stop=stop: next(steps) >= stop):
            pass
        again = begun()
        again.load_state_dict(first.state_dict())
        fit(again)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value), (stop, name)
        assert surgery_log(again.model) == surgery_log(whole.model)


def _cpu() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def test_gradual_refuses() -> None:
    with pytest.raises(PruneError, match=r"can only grow: the end, 0\.2, is lower than the start, 0\.4"):
        gradual(0.4, 0.2)
    with pytest.raises(PruneError, match='"cubik": did you mean "cubic"'):
        gradual(0.0, 0.2, "cubik")
    with pytest.raises(
        PruneError, match="every is a share of the training, above 0 and at most 1; found 100"
    ):
        gradual(0.0, 0.2, every=100)
    with pytest.raises(PruneError, match="from 0 to below 1; found 1"):
        gradual(0.0, 1)
    with pytest.raises(PruneError, match=r"already has sparsity 0\.5, more than the 0\.2 asked for"):
        gradual(0.2, 0.6)(mask_smallest(tiny_net(), 0.5), 0.0)


# What is refused, and what it says.


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan"), True, "0.4"])
def test_refuses_other_shares(share: object) -> None:
    with pytest.raises(PruneError, match="from 0 to below 1; found"):
        mask_smallest(toy(), share)  # type: ignore[arg-type]


def test_refuses_an_unknown_scope() -> None:
    with pytest.raises(PruneError, match='"globl": did you mean "global"'):
        mask_smallest(toy(), 0.4, "globl")  # type: ignore[arg-type]


def test_refuses_to_give_weights_back() -> None:
    model = mask_smallest(toy(), 0.6)
    with pytest.raises(PruneError, match=r"The model already has sparsity 0\.6.*0\.4 asked for"):
        mask_smallest(model, 0.4)
    # A layer may be sparser than the model: its own share cannot shrink either.
    with pytest.raises(PruneError, match=r'Layer "5" already has sparsity'):
        mask_smallest(model, 0.6, "layer")
    assert len(surgery_log(model)) == 1 and zeros(model) == round(0.6 * total(model))


def test_refuses_models_without_weights_of_their_own() -> None:
    with pytest.raises(PruneError, match="no convolution or linear layer"):
        mask_smallest(nn.Sequential(nn.ReLU()), 0.4)
    with pytest.raises(PruneError, match='"0" has no weight yet'):
        mask_smallest(nn.Sequential(nn.LazyConv2d(4, 3)), 0.4)
    with pytest.raises(PruneError, match='"0" computes its weight'):
        mask_smallest(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))), 0.4)


def test_refuses_shared_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(PruneError, match='"0" and "1" share one weight'):
        mask_smallest(model, 0.5)
    assert not masked_layers(model)


def test_a_layer_used_twice_is_one_layer() -> None:
    layer = nn.Linear(4, 4)
    assert zeros(mask_smallest(nn.Sequential(layer, nn.ReLU(), layer), 0.5)) == 8


def test_refuses_weights_that_are_not_numbers() -> None:
    model = toy()
    nn.init.constant_(model[5].weight, float("nan"))
    with pytest.raises(PruneError, match="not numbers"):
        mask_smallest(model, 0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_masks_on_a_gpu() -> None:
    model = toy()
    twin = copy_model(model).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        mask_smallest(twin, 0.4)
    finally:
        torch.use_deterministic_algorithms(False)
    mask_smallest(model, 0.4)
    assert all(mask.is_cuda for mask in masks(twin).values())
    assert all(torch.equal(masks(twin)[name].cpu(), mask) for name, mask in masks(model).items())

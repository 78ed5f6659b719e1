"""Masks, against torch.nn.utils.prune: which weights, how many, and that they stay zero."""

import copy
from collections.abc import Callable

import brevitas.nn as qnn
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from compress_aug.errors import ModelError, PruneError
from compress_aug.measure import effective_weight, prunable_layers, sparsity
from compress_aug.pruning import mask_smallest, replay
from compress_aug.surgery import copy_model, make_permanent, masked_layers, surgery_log


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
    assert len(model.attention._forward_pre_hooks) == 1
    train(model, torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1), 3, tokens)
    model.eval()
    with torch.no_grad():
        output = model(tokens)
        twin = replay(Attention(), surgery_log(model)[-1])
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin.eval()(tokens), output)
        assert torch.equal(make_permanent(model)(tokens), output)


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

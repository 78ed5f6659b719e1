"""What a model weighs and how right it is: parameters, zeros, multiply-accumulates, accuracy."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress_aug.batch import Batch
from compress_aug.surgery import (
    attention_projections,
    copy_model,
    device_of,
    freeze,
    without_fast_attention,
)


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers, by name, whose weights pruning may zero: every convolution and linear layer.

    The projections that `nn.MultiheadAttention` computes itself are among them, under the names that they have once
    it is quantized, as views of its weights (`surgery.attention_projections`).

    >>> list(prunable_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))
    ['0']
    """
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        found |= {name: module} if isinstance(module, kinds) else attention_projections(module, name)
    return found


def effective_weight(layer: nn.Module) -> Tensor:
    """The weight that the layer computes with: masked, if it carries a mask."""
    original = getattr(layer, "weight_orig", None)
    weight = layer.weight if original is None else original * layer.weight_mask
    assert isinstance(weight, Tensor)
    return weight.detach()


def zeros(layer: nn.Module) -> int:
    """How many of a layer's weights are zero, of which those that only rounding to few bits makes zero are none.

    >>> zeros(nn.Linear(2, 2))
    0
    """
    count = int((effective_weight(layer) == 0).sum())
    # Left by `finalize` where it stores rounded weights.
    before = getattr(layer, "zeros_before_rounding", None)
    if not isinstance(before, int):
        return count
    mask = getattr(layer, "weight_mask", None)
    return before if mask is None else max(before, int((mask == 0).sum()))


def sparsity(model: nn.Module) -> float:
    """The share of prunable weights that are zero, in [0, 1], the same before and after `quantize` and `finalize`.

    What rounding to few bits sends to zero does not count: it moves with every training step, and nothing holds it.
    """
    layers = prunable_layers(model).values()
    total = sum(effective_weight(layer).numel() for layer in layers)
    return sum(map(zeros, layers)) / total if total else 0.0


def parameters(model: nn.Module) -> int:
    """How many numbers training may change (scales of quantizers included; a mask is not one)."""
    return sum(parameter.numel() for parameter in model.parameters())


def nonzero_parameters(model: nn.Module) -> int:
    """Parameters less the prunable weights that are zero."""
    return parameters(model) - sum(map(zeros, prunable_layers(model).values()))


def macs(model: nn.Module, image_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass of one input of shape (C, H, W), or another; zeros counted as well.

    >>> macs(nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8))
    6912
    """
    # On a copy: a quantized layer may update its statistics even in a pass that trains nothing.
    # Frozen, because the counter hooks into gradients that no_grad then does not make.
    probe = freeze(copy_model(model))
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), None)
    image = torch.zeros(1, *image_shape, device=device_of(model), dtype=dtype)
    # Attention in one operation is none that the counter knows.
    with torch.no_grad(), without_fast_attention(), FlopCounterMode(display=False) as counter:
        probe(image)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def correct(
    model: nn.Module, batches: Iterable[Batch], normalise: Callable[[Tensor], Tensor]
) -> tuple[int, int]:
    """How many images of the batches the model names right, and how many there are.

    normalise: uint8 images (N, C, H, W) -> float inputs of the model.

    Runs in eval mode and in float32 (what the exported file computes), and leaves the mode as it was.
    """
    was_training = model.training
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=device_of(model))
    total = 0
    try:
        for batch in batches:
            logits = model(normalise(batch.images))
            right += (logits.argmax(1) == batch.targets).sum()
            total += len(batch)
    finally:
        model.train(was_training)
    return int(right), total


def accuracy(model: nn.Module, batches: Iterable[Batch], normalise: Callable[[Tensor], Tensor]) -> float:
    """The share of images that the model names right, in [0, 1]; 0 for no images."""
    right, total = correct(model, batches, normalise)
    return right / total if total else 0.0

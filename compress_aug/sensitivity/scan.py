"""The scan itself, for any change of a layer that can be made and undone: one pass for each layer and amount."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_aug import measure
from compress_aug.batch import Batch
from compress_aug.errors import DataError
from compress_aug.pruning import chosen_layers
from compress_aug.sensitivity.result import LayerScan, Sensitivity
from compress_aug.surgery import copy_model, freeze

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Change:
    """Something that is done to one layer by an amount, and undone.

    kind:  its name, "prune"
    apply: (layer, amount) -> a context within which the layer is changed; behind it the layer is as before
    has:   (layer, amount) -> whether the layer is so already, and nothing would change
    watch: (layers by name) -> a context around the first pass, that over the unchanged model: what is needed of the
           values that flow through the layers can be looked at there
    """

    kind: str
    apply: Callable[[nn.Module, float], AbstractContextManager[None]]
    has: Callable[[nn.Module, float], bool]
    watch: Callable[[Mapping[str, nn.Module]], AbstractContextManager[None]] = lambda layers: nullcontext()


def scan(
    model: nn.Module,
    batches: Iterable[Batch],
    normalise: Callable[[Tensor], Tensor],
    change: Change,
    amounts: Sequence[float],
    *,
    layers: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Accuracy and loss with each convolution and linear layer changed alone, by each amount.

    batches:   raw images on the model's device; read once
    normalise: uint8 images (N, C, H, W) -> float inputs of the model
    amounts:   the mildest first
    layers:    names, globs or types of layers, see `compress_aug.pruning.chosen_layers`; None for all
    progress:  told (passes done, all passes)

    Works on a copy, in eval mode and in float32: the model stays as it is, bit for bit. The same arguments give the
    same result, and a layer's numbers do not depend on which others are scanned.

    Raises DataError without images, and PruneError for a pattern that no layer matches.
    """
    held = list(batches)
    if not held:
        raise DataError("There are no images to measure the accuracy on: give at least one batch.")
    copy = freeze(copy_model(model))
    chosen = chosen_layers(copy, layers)
    passes = [(name, amount) for name, layer in chosen.items() for amount in _new(change, layer, amounts)]
    tell = progress or (lambda done, total: None)
    tell(0, 1 + len(passes))
    with change.watch(chosen):
        base = _judged(copy, held, normalise)
    found: dict[tuple[str, float], _Judged] = {}
    for name, amount in passes:
        tell(1 + len(found), 1 + len(passes))
        with change.apply(chosen[name], amount):
            found[name, amount] = _judged(copy, held, normalise)
    tell(1 + len(passes), 1 + len(passes))
    macs = layer_macs(copy, normalise(held[0].images[:1]))
    rows = tuple(
        LayerScan(
            name=name,
            parameters=measure.effective_weight(layer).numel(),
            macs=macs.get(name),
            sparsity=float((measure.effective_weight(layer) == 0).double().mean()),
            accuracies=tuple(found.get((name, amount), base).accuracy for amount in amounts),
            already=len(amounts) - len(_new(change, layer, amounts)),
            cross_entropies=tuple(found.get((name, amount), base).cross_entropy for amount in amounts),
        )
        for name, layer in chosen.items()
    )
    return Sensitivity(
        change.kind,
        tuple(amounts),
        base.accuracy,
        sum(len(batch) for batch in held),
        sum(macs.values()),
        rows,
        base.cross_entropy,
    )


@contextmanager
def other_weight(layer: nn.Module, weight: Tensor) -> Iterator[None]:
    """Within it, the layer computes with this weight; behind it, with its own again, bit for bit.

    weight: of the layer's own shape; under a mask its hidden values stay hidden
    """
    # Behind a mask lies the tensor that the layer computes its weight from in each pass.
    held = layer.weight_orig if hasattr(layer, "weight_orig") else layer.weight
    assert isinstance(held, Tensor)
    before = held.detach().clone()
    with torch.no_grad():
        held.copy_(weight)
    try:
        yield
    finally:
        with torch.no_grad():
            held.copy_(before)


@dataclass(frozen=True)
class _Judged:
    accuracy: float
    cross_entropy: float


@torch.no_grad()
def _judged(model: nn.Module, batches: list[Batch], normalise: Callable[[Tensor], Tensor]) -> _Judged:
    """Accuracy in [0, 1] and mean cross-entropy in nats of a model in eval mode, in one pass."""
    right = loss = total = 0.0
    for batch in batches:
        logits = model(normalise(batch.images))
        right += float((logits.argmax(1) == batch.targets).sum())
        loss += float(functional.cross_entropy(logits, batch.targets, reduction="sum"))
        total += len(batch)
    return _Judged(right / total, loss / total)


@torch.no_grad()
def layer_macs(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Multiply-accumulates of each convolution and linear layer that is called, zeros counted as well.

    inputs: float (1, C, H, W)

    >>> layer_macs(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), torch.zeros(1, 3, 8, 8))
    {'0': 6912}
    """
    counts: dict[str, int] = {}

    def counted(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, given: Any, output: Any) -> None:
            # Each number of the output is the product of one filter with one window.
            counts[name] = counts.get(name, 0) + output.numel() * measure.effective_weight(layer)[0].numel()

        return hook

    layers = measure.prunable_layers(model)
    hooks = [layer.register_forward_hook(counted(name)) for name, layer in layers.items()]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def _new(change: Change, layer: nn.Module, amounts: Sequence[float]) -> list[float]:
    return [amount for amount in amounts if not change.has(layer, amount)]

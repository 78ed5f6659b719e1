"""Putting masks on layers, on the hook of torch.nn.utils.prune, and putting them on again from a log."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from compress_aug.errors import PruneError
from compress_aug.surgery import LogEntry, check_shapes, holder_of

# torch leaves this function without annotations.
_put_mask_of_ones: Callable[[nn.Module, str], nn.Module] = prune.identity


def put_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Give each layer its mask (bool, True where a weight stays), and set what lies behind it to zero."""
    for name, mask in masks.items():
        _put_mask(*holder_of(model, name), mask)
    _refresh_attention(model)


def _put_mask(holder: nn.Module | None, weight: str, mask: Tensor) -> None:
    original, held = _masked(holder, weight)
    held.copy_(mask)
    original.masked_fill_(~mask, 0.0)
    setattr(holder, weight, original * held)


def _masked(holder: nn.Module | None, weight: str) -> tuple[Tensor, Tensor]:
    """What lies behind a weight's mask, and the mask: one of ones if there was none."""
    assert holder is not None
    if not hasattr(holder, f"{weight}_mask"):
        _put_mask_of_ones(holder, weight)
    original, held = getattr(holder, f"{weight}_orig"), getattr(holder, f"{weight}_mask")
    assert isinstance(original, Tensor) and isinstance(held, Tensor)
    return original, held


def magnitudes(layer: nn.Module, weight: Tensor) -> Tensor:
    """What weights are ranked by, in the shape of `weight`: masked ones lie below zero, so that they go first."""
    # float32 holds every float16 and bfloat16 exactly; float64 stays.
    magnitude = weight.abs().to(torch.promote_types(weight.dtype, torch.float32))
    return behind_mask(layer, magnitude)


def behind_mask(layer: nn.Module, ranks: Tensor) -> Tensor:
    """The ranks, with those of masked weights at -1."""
    mask = getattr(layer, "weight_mask", None)
    return ranks if mask is None else ranks.masked_fill(mask == 0, -1.0)


def check_numbers(weights: Mapping[str, Tensor], whose: str) -> None:
    """Raise PruneError if a weight is not a number: it would rank above all others."""
    if any(bool(weight.isnan().any()) for weight in weights.values()):
        raise PruneError(
            f"{whose} holds weights that are not numbers (NaN): start from a model that trained well."
        )


@torch.no_grad()
def replay(model: nn.Module, entry: LogEntry) -> nn.Module:
    """Put a mask of ones on every layer of a "mask" entry: the real masks come with the weights.

    Changes the model, which must be the base model of the log, and returns it. Writes nothing to its log.
    Raises ModelError if the model is not the one that the entry was written for.

    >>> from compress_aug.pruning import mask_smallest
    >>> from compress_aug.surgery import surgery_log
    >>> pruned = mask_smallest(nn.Linear(4, 4), 0.5)
    >>> fresh = replay(nn.Linear(4, 4), surgery_log(pruned)[0])
    >>> fresh.load_state_dict(pruned.state_dict())
    <All keys matched successfully>
    """
    check_shapes(model, entry["layers"], "mask")
    for name in entry["layers"]:
        _masked(*holder_of(model, name))
    _refresh_attention(model)
    return model


def _refresh_attention(model: nn.Module) -> None:
    """Make attention layers see the masked weight: they read the weight of `out_proj` but never call it."""
    for parent in model.modules():
        if not isinstance(parent, nn.MultiheadAttention):
            continue
        masked = any(hasattr(layer, "weight_mask") for layer in parent.children())
        if masked and _apply_masks not in parent._forward_pre_hooks.values():
            parent.register_forward_pre_hook(_apply_masks)


def _apply_masks(parent: nn.Module, inputs: object) -> None:
    for layer in parent.children():
        if hasattr(layer, "weight_mask"):
            layer.weight = layer.weight_orig * layer.weight_mask  # type: ignore[operator]

"""Zero the smallest weights and hold them at zero: unstructured pruning through torch.nn.utils.prune."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune

from compress_aug.errors import PruneError, nearest
from compress_aug.measure import effective_weight, prunable_layers
from compress_aug.surgery import LogEntry, check_shapes, layer_shapes, masked_layers, record

Scope = Literal["global", "layer"]

# torch leaves this function without annotations.
_put_mask_of_ones: Callable[[nn.Module, str], nn.Module] = prune.identity


@torch.no_grad()
def mask_smallest(model: nn.Module, sparsity: float, scope: Scope = "global") -> nn.Module:
    """Zero the smallest weights (by absolute value) of every convolution and linear layer.

    sparsity: share of those weights that is masked afterwards, in [0, 1): the total, not what is added now.
              Exact to one weight: round(sparsity * weights) of them.
    scope:    "global" ranks all layers together, "layer" takes the same share from each layer.

    Changes the model and returns it. The masks hold through training: a layer keeps its value in
    `weight_orig` and computes with `weight_orig * weight_mask`. Masks only grow: what is masked stays masked,
    and the rest is ranked anew. Of equal weights, those of earlier layers and entries go first. Biases and
    normalisation layers are left alone. What lies behind a mask is set to zero, so that weight decay and the
    statistics of quantizers see the weight that counts.

    Optimizers: `weight_orig` is the same Parameter object that `weight` was, so an optimizer built before
    goes on working. Its old momentum, however, still moves the values behind a new mask. That never reaches
    the layer's output; clear the optimizer's state (or build a new one) to keep those values at zero too.

    After `surgery.make_permanent` nothing holds the zeros any more. Calling again with the same sparsity puts
    the same masks back, because weights that are zero rank first.

    Raises PruneError for a sparsity outside [0, 1) or smaller than the present one, for an unknown scope, for
    weights that are not numbers, for a model without such layers, and for a weight that two layers share.

    >>> from compress_aug.measure import sparsity
    >>> sparsity(mask_smallest(nn.Linear(10, 10), 0.4))
    0.4

    Source: arXiv 2305.13232 prunes with PyTorch's L1-norm unstructured pruning and does not say whether
    layers are ranked together, nor which tensors take part: both are our decisions.
    """
    _check_sparsity(sparsity)
    if scope not in get_args(Scope):
        raise PruneError(f'No way to rank weights is called "{scope}": {nearest(scope, get_args(Scope))}')
    layers = prunable_layers(model)
    _check_layers(model, layers)
    if scope == "global":
        masks = _masks(layers, sparsity, "The model")
    else:
        masks = {}
        for name, layer in layers.items():
            masks |= _masks({name: layer}, sparsity, f'Layer "{name}"')
    for name, mask in masks.items():
        _put_mask(layers[name], mask)
    _refresh_attention(model)
    record(model, "mask", sparsity=sparsity, scope=scope, layers=layer_shapes(model, list(layers)))
    return model


@torch.no_grad()
def replay(model: nn.Module, entry: LogEntry) -> nn.Module:
    """Put a mask of ones on every layer of a "mask" entry: the real masks come with the weights.

    Changes the model, which must be the base model of the log, and returns it. Writes nothing to its log.
    Raises ModelError if the model is not the one that the entry was written for.

    >>> from compress_aug.surgery import surgery_log
    >>> pruned = mask_smallest(nn.Linear(4, 4), 0.5)
    >>> fresh = replay(nn.Linear(4, 4), surgery_log(pruned)[0])
    >>> fresh.load_state_dict(pruned.state_dict())
    <All keys matched successfully>
    """
    check_shapes(model, entry["layers"], "mask")
    modules = dict(model.named_modules())
    for name in entry["layers"]:
        if not hasattr(modules[name], "weight_mask"):
            _put_mask_of_ones(modules[name], "weight")
    _refresh_attention(model)
    return model


def _check_sparsity(sparsity: float) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise PruneError(
            f"sparsity is the share of weights that is zero, from 0 to below 1; found {sparsity!r}."
        )


def _check_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Refuse, before anything is changed, what cannot carry a mask of its own."""
    if not layers:
        raise PruneError("The model has no convolution or linear layer, so there is no weight to prune.")
    for name, layer in layers.items():
        held = _held_weight(layer)
        if held is None:
            raise PruneError(
                f'Layer "{name}" computes its weight (weight normalisation, for example) instead of '
                "holding it as a parameter: remove that before pruning."
            )
        if is_lazy(held):
            raise PruneError(
                f'Layer "{name}" has no weight yet: run one batch through the model before pruning.'
            )
    _check_shared(model, layers)


def _check_shared(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """A weight that two layers use would need one mask; torch gives each layer its own."""
    for name, layer in layers.items():
        own = _held_weight(layer)
        # A quantized layer holds its own weight once more inside its quantizer: that is no sharing.
        inside = set(layer.modules())
        for other_name, other in model.named_modules():
            if other not in inside and any(own is parameter for parameter in other._parameters.values()):
                raise PruneError(
                    f'Layers "{name}" and "{other_name}" share one weight, which cannot carry two masks: '
                    "give each its own copy of the weight before pruning."
                )


def _held_weight(layer: nn.Module) -> nn.Parameter | None:
    """The parameter that training changes: behind the mask, where there is one."""
    return layer._parameters.get("weight_orig" if hasattr(layer, "weight_mask") else "weight")


def _masks(layers: dict[str, nn.Module], sparsity: float, whose: str) -> dict[str, Tensor]:
    """The mask (bool, True where a weight stays) of each layer, ranked together; changes nothing."""
    weights = {name: effective_weight(layer) for name, layer in layers.items()}
    device = next(iter(weights.values())).device
    ranks = torch.cat([_ranks(layers[name], weight).to(device) for name, weight in weights.items()])
    if ranks.isnan().any():
        raise PruneError(
            f"{whose} holds weights that are not numbers (NaN): start from a model that trained well."
        )
    count = round(sparsity * len(ranks))
    _check_not_fewer(ranks, count, sparsity, whose)
    keep = _all_but_smallest(ranks, count)
    pieces = torch.split(keep, [weight.numel() for weight in weights.values()])
    return {
        name: piece.reshape(weight.shape).to(weight.device)
        for (name, weight), piece in zip(weights.items(), pieces, strict=True)
    }


def _ranks(layer: nn.Module, weight: Tensor) -> Tensor:
    """Magnitudes as one row. Masked weights rank below zero: they go first, whatever else is zero."""
    # float32 holds every float16 and bfloat16 exactly; float64 stays.
    magnitude = weight.abs().flatten().to(torch.promote_types(weight.dtype, torch.float32))
    mask = getattr(layer, "weight_mask", None)
    return magnitude if mask is None else magnitude.masked_fill(mask.flatten() == 0, -1.0)


def _check_not_fewer(ranks: Tensor, count: int, sparsity: float, whose: str) -> None:
    # Where masks exist they are the measure: a weight that training happens to set to zero is not pruned.
    masked = int((ranks < 0).sum())
    present = masked if masked else int((ranks == 0).sum())
    if present > count:
        share = math.ceil(present / len(ranks) * 1e4) / 1e4
        raise PruneError(
            f"{whose} already has sparsity {share:g}, more than the {sparsity:g} asked for: sparsity is the "
            f"total after pruning, so ask for {share:g} or more, or start from an earlier model."
        )


def _all_but_smallest(ranks: Tensor, count: int) -> Tensor:
    """True for all entries of `ranks` (1-D) but the `count` smallest; of equal ones the earlier go first."""
    if count == 0:
        return torch.ones_like(ranks, dtype=torch.bool)
    # The value of the count-th smallest is the same on every device; the indices that topk picks are not.
    # On a GPU kthvalue refuses to run under `torch.use_deterministic_algorithms`, and sorting is fast there.
    threshold = ranks.sort().values[count - 1] if ranks.is_cuda else ranks.kthvalue(count).values
    keep = ranks > threshold
    ties = (ranks == threshold).nonzero().flatten()
    keep[ties[count - int((ranks < threshold).sum()) :]] = True
    return keep


def _put_mask(layer: nn.Module, mask: Tensor) -> None:
    """Give the layer this mask, on the hook that it has or else on a new one, and zero what is behind it."""
    if not hasattr(layer, "weight_mask"):
        _put_mask_of_ones(layer, "weight")
    original, held = layer.weight_orig, layer.weight_mask
    assert isinstance(original, Tensor) and isinstance(held, Tensor)
    held.copy_(mask)
    original.masked_fill_(~mask, 0.0)
    layer.weight = original * held


def _refresh_attention(model: nn.Module) -> None:
    """Make attention layers see the masked weight: they read the weight of `out_proj` but never call it."""
    for parent in model.modules():
        if not isinstance(parent, nn.MultiheadAttention):
            continue
        if _apply_masks not in parent._forward_pre_hooks.values():
            parent.register_forward_pre_hook(_apply_masks)


def _apply_masks(parent: nn.Module, inputs: object) -> None:
    for layer in masked_layers(parent).values():
        layer.weight = layer.weight_orig * layer.weight_mask  # type: ignore[operator]

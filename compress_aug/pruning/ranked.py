"""Masks of an exact share: the smallest weights, or random ones."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from compress_aug.errors import PruneError, nearest
from compress_aug.measure import effective_weight
from compress_aug.pruning.choice import Patterns, check_layers, chosen_layers
from compress_aug.pruning.masks import behind_mask, check_numbers, magnitudes, put_masks
from compress_aug.surgery import layer_shapes, record

Scope = Literal["global", "layer"]

Rank = Callable[[nn.Module, Tensor], Tensor]
"""layer, its weight -> ranks in the same shape: the lowest go first, masked weights are at -1, zeros at 0."""


def mask_smallest(
    model: nn.Module,
    sparsity: float,
    scope: Scope = "global",
    layers: Patterns = None,
    exclude: Patterns = None,
) -> nn.Module:
    """Zero the smallest weights (by absolute value) of every convolution and linear layer, or of chosen ones.

    sparsity: share of those weights that is masked afterwards, in [0, 1): the total, not what is added now.
              Exact to one weight: round(sparsity * weights) of them. Where layers are chosen, their weights
              alone count, and those of the others are left as they are.
    scope:    "global" ranks all (chosen) layers together, "layer" takes the same share from each layer.
    layers, exclude: names, globs or types of layers; see `chosen_layers`. All take part by default.

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
    weights that are not numbers, for a model without such layers, for a pattern that matches none, and for a
    weight that two layers share.

    >>> from compress_aug.measure import sparsity
    >>> sparsity(mask_smallest(nn.Linear(10, 10), 0.4))
    0.4

    Source: arXiv 2305.13232 prunes with PyTorch's L1-norm unstructured pruning and does not say whether
    layers are ranked together, nor which tensors take part: both are our decisions.
    """
    chosen = checked_layers(model, sparsity, scope, layers, exclude)
    mask_share(model, chosen, sparsity, scope, magnitudes, whose=_whose(layers, exclude))
    shapes = layer_shapes(model, list(chosen))
    record(model, "mask", method="l1", sparsity=sparsity, scope=scope, layers=shapes)
    return model


def mask_random(
    model: nn.Module,
    sparsity: float,
    scope: Scope = "global",
    layers: Patterns = None,
    exclude: Patterns = None,
    *,
    seed: int = 0,
) -> nn.Module:
    """Zero weights drawn at random: what a criterion has to beat.

    sparsity, scope, layers, exclude: as for `mask_smallest`, and as exact. With "layer" each layer loses the
    same share; with "global" so it does on average only.
    seed: of the draw, which is the same on every device. Rising totals with one seed end where one call with
          the last of them does.

    Changes the model and returns it. Masks only grow. Weights that are zero already go first, since nothing is
    lost with them. Raises PruneError as `mask_smallest` does.

    >>> from compress_aug.measure import sparsity
    >>> sparsity(mask_random(nn.Linear(10, 10), 0.4, seed=1))
    0.4
    """
    chosen = checked_layers(model, sparsity, scope, layers, exclude)
    generator = torch.Generator().manual_seed(seed)

    def drawn(layer: nn.Module, weight: Tensor) -> Tensor:
        ranks = 1 + torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        return behind_mask(layer, ranks.to(weight.device).masked_fill(weight == 0, 0.0))

    mask_share(model, chosen, sparsity, scope, drawn, whose=_whose(layers, exclude))
    shapes = layer_shapes(model, list(chosen))
    record(model, "mask", method="random", sparsity=sparsity, scope=scope, seed=seed, layers=shapes)
    return model


def _whose(layers: Patterns, exclude: Patterns) -> str:
    return "The model" if layers is None and exclude is None else "The chosen part of the model"


def checked_layers(
    model: nn.Module, sparsity: float, scope: str, layers: Patterns, exclude: Patterns
) -> dict[str, nn.Module]:
    """The chosen layers. Raises PruneError for arguments and layers that no mask can be made from."""
    check_sparsity(sparsity)
    if scope not in get_args(Scope):
        raise PruneError(f'No way to rank weights is called "{scope}": {nearest(scope, get_args(Scope))}')
    chosen = chosen_layers(model, layers, exclude)
    check_layers(model, chosen)
    return chosen


def check_sparsity(sparsity: float) -> None:
    """Raise PruneError unless it is a number in [0, 1)."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise PruneError(
            f"sparsity is the share of weights that is zero, from 0 to below 1; found {sparsity!r}."
        )


@torch.no_grad()
def mask_share(
    model: nn.Module, layers: dict[str, nn.Module], sparsity: float, scope: str, rank: Rank, *, whose: str
) -> None:
    """Mask exactly this share of the layers' weights, the lowest ranks first. Writes nothing to the log."""
    if scope == "global":
        masks = _masks(layers, sparsity, rank, whose)
    else:
        masks = {}
        for name, layer in layers.items():
            masks |= _masks({name: layer}, sparsity, rank, f'Layer "{name}"')
    put_masks(model, masks)


def _masks(layers: dict[str, nn.Module], sparsity: float, rank: Rank, whose: str) -> dict[str, Tensor]:
    """The mask (bool, True where a weight stays) of each layer, ranked together; changes nothing."""
    weights = {name: effective_weight(layer) for name, layer in layers.items()}
    check_numbers(weights, whose)
    device = next(iter(weights.values())).device
    ranks = torch.cat([rank(layers[name], weight).flatten().to(device) for name, weight in weights.items()])
    count = round(sparsity * len(ranks))
    _check_not_fewer(ranks, count, sparsity, whose)
    keep = _all_but_lowest(ranks, count)
    pieces = torch.split(keep, [weight.numel() for weight in weights.values()])
    return {
        name: piece.reshape(weight.shape).to(weight.device)
        for (name, weight), piece in zip(weights.items(), pieces, strict=True)
    }


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


def _all_but_lowest(ranks: Tensor, count: int) -> Tensor:
    """True for all entries of `ranks` (1-D) but the `count` lowest; of equal ones the earlier go first."""
    if count == 0:
        return torch.ones_like(ranks, dtype=torch.bool)
    # The value of the count-th lowest is the same on every device; the indices that topk picks are not.
    # On a GPU kthvalue refuses to run under `torch.use_deterministic_algorithms`, and sorting is fast there.
    threshold = ranks.sort().values[count - 1] if ranks.is_cuda else ranks.kthvalue(count).values
    keep = ranks > threshold
    ties = (ranks == threshold).nonzero().flatten()
    keep[ties[count - int((ranks < threshold).sum()) :]] = True
    return keep

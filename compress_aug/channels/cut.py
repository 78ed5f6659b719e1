"""Cut channels to a ratio or a budget: what is asked for, how far to go, the log."""

from collections.abc import Callable, Mapping
from typing import get_args

from torch import Tensor, nn
from torch.nn.utils import prune

from compress_aug import measure, surgery
from compress_aug.channels.graph import (
    Importance,
    Layer,
    Removed,
    channels_to_remove,
    check_cut,
    noise_like,
    removable_layers,
    remove,
)
from compress_aug.errors import PruneError, nearest

_GOALS = ("ratio", "parameters", "macs", "cost")
# torch leaves this function without annotations.
_put_mask_of_ones: Callable[[nn.Module, str], nn.Module] = prune.identity


def cut_channels(
    model: nn.Module,
    example: Tensor,
    *,
    until: Mapping[str, float],
    importance: Importance = "l1",
    round_to: int = 8,
    original: Mapping[str, float] | None = None,
    cost: Callable[[nn.Module], float] | None = None,
) -> nn.Module:
    """Remove the least important channels, the same share of every layer, until a goal is met.

    example:    (N, C, H, W), inputs of the model; only the shape counts
    until:      one goal. {"ratio": r}: the share of channels cut in total, in (0, 1). {"parameters": s} or
                {"macs": s}: the share of the original that stays at most, in (0, 1). {"cost": c}: what `cost`
                returns at most, in its own unit (milliseconds, bytes)
    importance: "l1" or "l2" norm of a channel's weights, "bn_scale" of its batch normalisation, "random" (the
                same on every call)
    round_to:   layers keep a multiple of it, some rounded up and some down, and never fewer channels than it
    original:   {"parameters": ..., "macs": ...} of the model that entered the recipe; by default this model's
    cost:       measures a model that was cut; called about ten times

    Changes the model and returns it. The classifier's outputs are never cut. The share of channels is found
    by bisection on copies. The log entry says what was reached ("reached") and which layers cannot be cut and
    why ("left_alone"): cuts are tried on a copy, which must compute what the model computes with the removed
    channels at zero. (Layer and group normalisation and attention mix channels: there it must only run.)

    Masks are made permanent and then put back from the zeros that are left, so the sparsity may change.
    Weights become new Parameter objects: a training loop must build its optimizer after this call.

    Raises PruneError for a goal that is malformed or out of reach, and for a model that torch-pruning cannot
    follow: of the nets we tried, ShuffleNetV2.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 4))
    >>> cut_channels(net, torch.zeros(1, 3, 8, 8), until={"ratio": 0.5})[0].out_channels
    16

    Source: dependency graph and group importance of arXiv 2301.12900 (torch-pruning). One ratio for all
    layers, the rounding, the bisection and the trial are our decisions.
    """
    what, goal = _goal(until, cost)
    _check_choices(importance, round_to)
    bare = surgery.fold_masks(surgery.copy_model(model)).eval()
    image = noise_like(example.shape, bare)
    layers, left_alone = removable_layers(bare, image, importance, round_to)
    before = _ratio_before(model)
    if what == "ratio":
        ratio, amount = _further(goal, before), None
    else:
        amount = cost or _share(what, bare, image, original)
        ratio = _bisect(bare, image, layers, round_to, amount, (what, goal))
    removed = channels_to_remove(layers, ratio, round_to)
    check_cut(bare, image, removed)
    shapes = surgery.layer_shapes(model, list(measure.prunable_layers(model)))
    _remove_and_mask(model, image, removed)
    cut = sum(map(len, removed.values())) / sum(len(layer.scores) for layer in layers)
    surgery.record(
        model,
        "cut_channels",
        until={what: goal},
        importance=importance,
        round_to=round_to,
        ratio=1 - (1 - before) * (1 - ratio),
        reached=1 - (1 - before) * (1 - cut) if amount is None else amount(surgery.copy_model(model)),
        example=list(image.shape),
        layers=shapes,
        removed=removed,
        kept={name: shape[0] for name, shape in surgery.layer_shapes(model, list(removed)).items()},
        left_alone=left_alone,
    )
    return model


def replay(model: nn.Module, entry: surgery.LogEntry) -> nn.Module:
    """Remove the channels of a "cut_channels" entry from a fresh base model.

    Changes the model and returns it. Writes nothing to its log.
    Raises ModelError if the model is not the one that the entry was written for.
    """
    surgery.check_shapes(model, entry["layers"], "cut_channels")
    return _remove_and_mask(model, noise_like(entry["example"], model), entry["removed"])


# What is asked for.


def _goal(until: Mapping[str, float], cost: object) -> tuple[str, float]:
    if len(until) != 1:
        raise PruneError(f"until takes exactly one of {', '.join(_GOALS)}; found {dict(until)}.")
    ((what, goal),) = until.items()
    if what not in _GOALS:
        raise PruneError(f'Channels cannot be cut until "{what}": {nearest(what, _GOALS)}')
    if (what == "cost") != (cost is not None):
        raise PruneError('until={"cost": limit} and cost=function belong together; one of them is missing.')
    if what != "cost" and not 0 < goal < 1:
        raise PruneError(f"until {what} is a share, above 0 and below 1; found {goal!r}.")
    return what, float(goal)


def _check_choices(importance: str, round_to: int) -> None:
    known = get_args(Importance)
    if importance not in known:
        raise PruneError(f'No importance of channels is called "{importance}": {nearest(importance, known)}')
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise PruneError(f"round_to must be a whole number from 1 up, found {round_to!r}.")


def _ratio_before(model: nn.Module) -> float:
    """The share of channels that earlier calls cut."""
    log = surgery.surgery_log(model)
    return next((float(entry["ratio"]) for entry in reversed(log) if entry["verb"] == "cut_channels"), 0.0)


def _further(goal: float, before: float) -> float:
    """The share to cut of what is left, so that `goal` is cut in total."""
    if goal < before:
        raise PruneError(f"A share of {before:.3g} of the channels is cut already, more than {goal:g}.")
    return 1 - (1 - goal) / (1 - before)


def _share(
    what: str, model: nn.Module, image: Tensor, original: Mapping[str, float] | None
) -> Callable[[nn.Module], float]:
    _, channels, height, width = image.shape

    def count(measured: nn.Module) -> int:
        if what == "macs":
            return measure.macs(measured, (channels, height, width))
        return measure.parameters(measured)

    if original is not None and not original.get(what):
        raise PruneError(f'original must hold "{what}" of the model that entered; found {dict(original)}.')
    whole = count(model) if original is None else original[what]
    return lambda measured: count(measured) / whole


def _bisect(
    model: nn.Module,
    image: Tensor,
    layers: list[Layer],
    round_to: int,
    amount: Callable[[nn.Module], float],
    goal: tuple[str, float],
) -> float:
    """The smallest ratio, to 1/256, that was seen to meet the goal."""

    def reached(ratio: float) -> float:
        removed = channels_to_remove(layers, ratio, round_to)
        return amount(remove(surgery.copy_model(model), image, removed))

    what, limit = goal
    low, high = 0.0, 1.0
    if reached(low) <= limit:
        return low
    least = reached(high)
    if least > limit:
        raise PruneError(
            f"Cutting channels brings {what} down to {least:.3g} at the least, not to {limit:g}."
        )
    while high - low > 1 / 256:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) <= limit else (middle, high)
    return high


def _remove_and_mask(model: nn.Module, image: Tensor, removed: Removed) -> nn.Module:
    """torch-pruning knows no masks: make them permanent first, read them off the zeros afterwards."""
    masked = list(surgery.masked_layers(model))
    remove(surgery.fold_masks(model), image, removed)
    for name in masked:
        layer = model.get_submodule(name)
        _put_mask_of_ones(layer, "weight")
        original, mask = layer.weight_orig, layer.weight_mask
        assert isinstance(original, Tensor) and isinstance(mask, Tensor)
        mask.copy_(original.detach() != 0)
    return model

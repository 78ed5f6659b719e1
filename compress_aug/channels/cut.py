"""Cut channels to a ratio or a budget: what is asked for, how far to go, the log."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import prune

from compress_aug import measure, surgery
from compress_aug.channels.graph import (
    Layer,
    Removed,
    channels_to_remove,
    check_cut,
    noise_like,
    removable_layers,
    remove,
)
from compress_aug.channels.scores import Batches, Importance, weighted_by_gradients
from compress_aug.channels.search import Found, OutOfReach, Trial, counted, measured
from compress_aug.errors import PruneError, nearest

_SHARES = ("ratio", "parameters", "macs")
_COSTS = ("cost", "latency_ms", "size_mb")
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
    batches: Batches | None = None,
) -> nn.Module:
    """Remove the least important channels, the same share of every layer, until a goal is met.

    example:    (N, C, H, W), inputs of the model, or (N, C, L) for one of 1-D convolutions, and so on; only the
                shape counts
    until:      one goal. {"ratio": r}: the share of channels cut in total, in (0, 1). {"parameters": s} or
                {"macs": s}: the share of the original that stays at most, in (0, 1). {"latency_ms": c},
                {"size_mb": c} or {"cost": c}: what `cost` returns at most, in its own unit
    importance: "l1" or "l2" norm of a channel's weights, "bn_scale" of its batch normalisation, "taylor" (what
                the loss gains by it, to first order), "random" (the same on every call)
    round_to:   layers keep a multiple of it, some rounded up and some down, and never fewer channels than it
    original:   {"parameters": ..., "macs": ...} of the model that entered the recipe; by default this model's
    cost:       measures a model that was cut, a copy in eval mode; called up to twelve times. It need not
                fall with every cut: see `compress_aug.channels.search.measured`
    batches:    for "taylor" alone: (inputs, targets) in turn, or a function that runs the model it is given
                and calls backward on a loss of its own

    Changes the model and returns it. The classifier's outputs are never cut. The log entry says what was
    reached ("reached"), what was tried ("trials": share of channels cut in total, value), and which layers
    cannot be cut and why ("left_alone"): cuts are tried on a copy, which must compute what the model computes
    with the removed channels at zero. (Layer and group normalisation and attention mix channels: there it must
    only run.) Where torch-pruning cannot follow the whole model, as ShuffleNetV2 with its channel shuffle, the
    parts that can be followed are cut, and "followed_in_parts" says what stood in the way.

    Masks are made permanent and then put back from the zeros that are left, so the sparsity may change.
    Weights become new Parameter objects: a training loop must build its optimizer after this call.

    Raises PruneError for a goal that is malformed or out of reach, and for a model that cannot be followed, is
    quantized, does not run on such an input or returns anything else than one tensor.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 4))
    >>> cut_channels(net, torch.zeros(1, 3, 8, 8), until={"ratio": 0.5})[0].out_channels
    16

    Source: dependency graph and group importance of arXiv 2301.12900 (torch-pruning); "taylor" after arXiv
    1906.10771, but |weight x gradient| summed over weights and batches, where the paper squares sums. One ratio
    for all layers, the rounding, the search, the trial and cutting in parts are our decisions.
    """
    what, goal = _goal(until, cost)
    _check_choices(importance, round_to, batches)
    _check_model(model)
    bare = surgery.fold_masks(surgery.copy_model(model)).eval()
    image = noise_like(example.shape, bare)
    _check_output(bare, image)
    amount = cost or (None if what == "ratio" else _share(what, bare, image, original))
    removed, chosen = _chosen(
        bare, image, (what, goal), importance, round_to, amount, batches, _ratio_before(model)
    )
    check_cut(bare, image, removed)
    shapes = surgery.layer_shapes(model, list(measure.prunable_layers(model)))
    _remove_and_mask(model, image, removed)
    surgery.record(
        model,
        "cut_channels",
        until={what: goal},
        importance=importance,
        round_to=round_to,
        **chosen,
        example=list(image.shape),
        layers=shapes,
        removed=removed,
        kept={name: shape[0] for name, shape in surgery.layer_shapes(model, list(removed)).items()},
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
    known = (*_SHARES, *_COSTS)
    if len(until) != 1:
        raise PruneError(f"until takes exactly one of {', '.join(known)}; found {dict(until)}.")
    ((what, goal),) = until.items()
    if what not in known:
        raise PruneError(f'Channels cannot be cut until "{what}": {nearest(what, known)}')
    if (what in _COSTS) != (cost is not None):
        raise PruneError(
            f"until takes {', '.join(_COSTS)} together with cost=function that measures it, and no other goal "
            f"does; found until={dict(until)} {'without' if cost is None else 'with'} a cost."
        )
    if what in _SHARES and not 0 < goal < 1:
        raise PruneError(f"until {what} is a share, above 0 and below 1; found {goal!r}.")
    if not goal > 0:
        raise PruneError(f"until {what} must be above 0, found {goal!r}.")
    return what, float(goal)


def _check_choices(importance: str, round_to: int, batches: Batches | None) -> None:
    known = get_args(Importance)
    if importance not in known:
        raise PruneError(f'No importance of channels is called "{importance}": {nearest(importance, known)}')
    if (importance == "taylor") != (batches is not None):
        raise PruneError(
            'importance="taylor" and batches=(inputs, targets) in turn belong together; one of them is missing.'
        )
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise PruneError(f"round_to must be a whole number from 1 up, found {round_to!r}.")


def _check_model(model: nn.Module) -> None:
    if any(entry["verb"] == "quantize" for entry in surgery.surgery_log(model)):
        raise PruneError("The model is quantized: channels are cut before that.")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise PruneError(f'"{name}" has no values yet: run one batch through the model before cutting.')


@torch.no_grad()
def _check_output(model: nn.Module, image: Tensor) -> None:
    shape = f"(N, {', '.join(map(str, image.shape[1:]))})"
    try:
        output = model(image)
    # Not narrower: this runs the model's own forward, which may raise anything.
    except Exception as error:
        raise PruneError(
            f"The model does not run on an input of shape {shape} ({type(error).__name__}: {error}): give an "
            "example of the shape that it reads."
        ) from error
    if not isinstance(output, Tensor):
        raise PruneError(
            f"The model returns a {type(output).__name__}, and channels can be cut where it returns one tensor: "
            "wrap it in a module that returns the one that counts."
        )


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
    def count(measured: nn.Module) -> int:
        if what == "macs":
            return measure.macs(measured, tuple(image.shape[1:]))
        return measure.parameters(measured)

    if original is not None and not original.get(what):
        raise PruneError(f'original must hold "{what}" of the model that entered; found {dict(original)}.')
    whole = count(model) if original is None else original[what]
    return lambda measured: count(measured) / whole


# How far to go.


def _chosen(
    model: nn.Module,
    image: Tensor,
    goal: tuple[str, float],
    importance: Importance,
    round_to: int,
    amount: Callable[[nn.Module], float] | None,
    batches: Batches | None,
    before: float,
) -> tuple[Removed, dict[str, Any]]:
    """The channels to remove, and what the log says of the choice.

    amount: what the goal limits; None for a ratio.  before: the share of channels that earlier calls cut
    """
    # The l1 norm of weight x gradient is what taylor means.
    ranked = model if batches is None else weighted_by_gradients(model, batches)
    norm: Importance = "l1" if importance == "taylor" else importance
    layers, left_alone, in_parts = removable_layers(ranked, image, norm, round_to)
    if amount is None:
        found = _as_asked(layers, _further(goal[1], before), round_to)
    else:
        found = _searched(model, image, layers, round_to, amount, goal)

    def in_total(ratio: float) -> float:
        return 1 - (1 - before) * (1 - ratio)

    return channels_to_remove(layers, found.ratio, round_to), {
        "ratio": in_total(found.ratio),
        "reached": in_total(found.value) if amount is None else found.value,
        "trials": [[in_total(ratio), value] for ratio, value in found.trials],
        "left_alone": left_alone,
        "followed_in_parts": in_parts,
    }


def _as_asked(layers: list[Layer], ratio: float, round_to: int) -> Found:
    """The ratio itself, and the share of channels that it comes to once layers are rounded."""
    removed = channels_to_remove(layers, ratio, round_to)
    share = sum(map(len, removed.values())) / sum(len(layer.scores) for layer in layers)
    return Found(ratio, share, [])


def _searched(
    model: nn.Module,
    image: Tensor,
    layers: list[Layer],
    round_to: int,
    amount: Callable[[nn.Module], float],
    goal: tuple[str, float],
) -> Found:
    known: dict[str, float] = {}
    tried: list[Trial] = []

    def amount_at(ratio: float, round_to: int = round_to) -> float:
        removed = channels_to_remove(layers, ratio, round_to)
        # Neighbouring ratios often round to the same cut, and measuring may take seconds.
        if (cut := str(removed)) not in known:
            known[cut] = float(amount(remove(surgery.copy_model(model), image, removed)))
            tried.append(Trial(ratio, known[cut]))
        return known[cut]

    search = measured if goal[0] in _COSTS else counted
    try:
        return search(amount_at, goal)._replace(trials=tried)
    except OutOfReach as error:
        raise PruneError(f"{error} {_instead(round_to, goal, amount_at)}") from None


def _instead(round_to: int, goal: tuple[str, float], amount_at: Callable[[float, int], float]) -> str:
    """What to do where a goal is out of reach."""
    ask = "Ask for a little more than that, or start from a smaller model."
    if round_to == 1:
        return ask
    keeps = f"round_to {round_to} keeps at least {round_to} channels of each layer"
    if goal[0] in _COSTS:
        # Not tried, because a trial may take minutes.
        return f"{keeps}: a smaller round_to cuts further. {ask}"
    finest = amount_at(1.0, 1)
    if finest > goal[1]:
        return ask
    return (
        f"{keeps}: with round_to 1 it comes down to {finest:.3g}. Choose a smaller round_to, or ask for more."
    )


def _remove_and_mask(model: nn.Module, image: Tensor, removed: Removed) -> nn.Module:
    """torch-pruning knows no masks: make them permanent first, read them off the zeros afterwards."""
    masked = list(surgery.masked_layers(model))
    remove(surgery.fold_masks(model), image, removed)
    for name in masked:
        holder, weight = surgery.holder_of(model, name)
        assert holder is not None
        _put_mask_of_ones(holder, weight)
        original, mask = getattr(holder, f"{weight}_orig"), getattr(holder, f"{weight}_mask")
        assert isinstance(original, Tensor) and isinstance(mask, Tensor)
        mask.copy_(original.detach() != 0)
    return model

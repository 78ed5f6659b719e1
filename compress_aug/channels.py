"""Cut channels for good, to a ratio or a budget: the model really gets smaller (torch-pruning)."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.utils import prune

from compress_aug import measure, surgery
from compress_aug.errors import PruneError, nearest

Importance = Literal["l1", "l2", "bn_scale", "random"]
Removed = Mapping[str, Sequence[int]]

_GOALS = ("ratio", "parameters", "macs", "cost")
_WITH_CHANNELS = (nn.modules.conv._ConvNd, nn.Linear)
_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)
# torch leaves this function without annotations.
_put_mask_of_ones: Callable[[nn.Module, str], nn.Module] = prune.identity


class _Layer(NamedTuple):
    """A layer whose output channels, and all that hangs on them, can be removed together."""

    name: str
    scores: Tensor | None  # how much each channel matters; None where that cannot be said
    parts: int  # channels computed in parts (grouped convolution, group normalisation) shrink part by part


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
                returns at most, in its own unit (milliseconds, bytes).
    importance: "l1" or "l2" norm of a channel's weights, "bn_scale" of its batch normalisation, "random" (the
                same on every call)
    round_to:   layers keep a multiple of it, some rounded up and some down; fewer channels than that stay whole
    original:   {"parameters": ..., "macs": ...} of the model that entered the recipe; by default this model's
    cost:       measures a model that was cut; called about ten times

    Changes the model and returns it. The classifier's outputs are never cut. The share is found by bisection on
    copies; the log entry says what was reached ("reached") and which layers could not be cut, with the reason
    ("left_alone"). Each cut is tried on a copy, which must compute the same as the model with the removed
    channels at zero. (Layer and group normalisation and attention mix channels: there it must only run.)

    Masks are made permanent and then put back from the zeros that are left, so the sparsity may change. Weights
    become new Parameter objects: a training loop must build its optimizer after this call.

    Raises PruneError for a goal that is malformed or out of reach, and for a model that torch-pruning cannot
    follow (of the nets we tried, ShuffleNetV2).

    >>> net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 4))
    >>> cut_channels(net, torch.zeros(1, 3, 8, 8), until={"ratio": 0.5})[0].out_channels
    16

    Source: dependency graph and group importance of arXiv 2301.12900 (torch-pruning). One ratio for all layers,
    the rounding, the bisection and the trial are our decisions.
    """
    what, goal = _goal(until, cost)
    _check_choices(importance, round_to)
    bare = surgery.make_permanent(surgery.copy_model(model)).eval()
    image = _noise(example.shape, bare)
    layers, left_alone = _rank(bare, image, importance)
    left_alone |= _trials(bare, image, _removed(layers, 0.5, round_to, left_alone))

    def cut(ratio: float) -> nn.Module:
        return _remove(surgery.copy_model(bare), image, _removed(layers, ratio, round_to, left_alone))

    before = _ratio_before(model)
    if what == "ratio":
        ratio = _further(goal, before)
    else:
        amount = cost or _share(what, bare, image, original)
        ratio = _bisect(lambda ratio: amount(cut(ratio)), goal, what)
    removed = _removed(layers, ratio, round_to, left_alone)
    problem = _problem(bare, image, removed)
    if problem is not None:
        raise PruneError(f"The channels cannot be cut together: {problem}.")
    shapes = surgery.layer_shapes(model, list(measure.prunable_layers(model)))
    _remove_and_mask(model, image, removed)
    surgery.record(
        model,
        "cut_channels",
        until={what: goal},
        importance=importance,
        round_to=round_to,
        ratio=1 - (1 - before) * (1 - ratio),
        reached=None if what == "ratio" else amount(surgery.copy_model(model)),
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
    return _remove_and_mask(model, _noise(entry["example"], model), entry["removed"])


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


def _bisect(reached: Callable[[float], float], goal: float, what: str) -> float:
    """The smallest ratio, to 1/256, that was seen to meet the goal."""
    low, high = 0.0, 1.0
    if reached(low) <= goal:
        return low
    least = reached(high)
    if least > goal:
        raise PruneError(f"Cutting channels brings {what} down to {least:.3g} at the least, not to {goal:g}.")
    while high - low > 1 / 256:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) <= goal else (middle, high)
    return high


# What is cut.


def _noise(shape: Sequence[int], model: nn.Module) -> Tensor:
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), None)
    noise = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    return noise.to(surgery.device_of(model), dtype)


def _graph(model: nn.Module, image: Tensor) -> Any:
    # A list, because it means the model's arguments; with a gradient, because the parameters may be frozen.
    with torch.enable_grad():
        try:
            inputs = [image.clone().requires_grad_()]
            return tp.DependencyGraph().build_dependency(model, inputs, verbose=False)
        except Exception as error:
            raise PruneError(
                f"torch-pruning cannot follow the channels through this model ({type(error).__name__}: {error}). "
                "Shuffled channels, as in ShuffleNet, are among what it does not know."
            ) from error


def _rank(model: nn.Module, image: Tensor, importance: Importance) -> tuple[list[_Layer], dict[str, str]]:
    """Every layer with its channels' scores; and those that must stay whole, with the reason."""
    graph = _graph(model, image)
    names = {module: name for name, module in model.named_modules()}
    last = next(node for node in graph.module2node.values() if not node.outputs)
    while not isinstance(last.module, _WITH_CHANNELS) and last.inputs:
        last = last.inputs[0]
    left_alone = {names.get(last.module, ""): "its outputs are those of the model"}
    layers = []
    for group in graph.get_all_groups(root_module_types=list(_WITH_CHANNELS)):
        layer = _Layer(names[group[0].dep.target.module], None, _parts(group))
        scores = _scores(group, layer.name, importance)
        if scores is None:
            left_alone[layer.name] = "it has no batch normalisation to rank its channels by"
        layers.append(layer._replace(scores=scores))
    return layers, left_alone


def _scores(group: Any, name: str, importance: Importance) -> Tensor | None:
    scores: Tensor | None
    if importance == "random":
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.rand(len(group[0].idxs), generator=generator)
    if importance == "bn_scale":
        scores = tp.importance.BNScaleImportance()(group)
    else:
        scores = tp.importance.MagnitudeImportance(p=1 if importance == "l1" else 2)(group)
    return None if scores is None else scores.cpu()


def _parts(group: Any) -> int:
    modules = [dep.target.module for dep, _ in group]
    convolutions = [module for module in modules if isinstance(module, nn.modules.conv._ConvNd)]
    parts = [module.groups for module in convolutions if module.groups != module.out_channels]
    return max(
        parts + [module.num_groups for module in modules if isinstance(module, nn.GroupNorm)], default=1
    )


def _removed(
    layers: list[_Layer], ratio: float, round_to: int, left_alone: Mapping[str, str]
) -> dict[str, list[int]]:
    """The channels to remove at this ratio, by layer."""
    removed = {}
    for position, layer in enumerate(layers):
        if layer.scores is None or layer.name in left_alone or ratio == 0:
            continue
        # Layers step to their next multiple one after the other, not all at the same ratio.
        phase = 0.25 + 0.5 * position / len(layers)
        whole, size = len(layer.scores), len(layer.scores) // layer.parts
        multiples = math.floor(whole * (1 - ratio) / round_to + phase)
        keep = math.ceil(min(whole, max(1, multiples) * round_to) / layer.parts)
        order = layer.scores.reshape(layer.parts, size).mean(0).argsort(stable=True)[: size - keep]
        channels = (torch.arange(layer.parts)[:, None] * size + order.sort().values).flatten().tolist()
        removed |= {layer.name: channels} if channels else {}
    return removed


def _remove(model: nn.Module, image: Tensor, removed: Removed) -> nn.Module:
    modes = {module: module.training for module in model.modules()}
    graph = _graph(model, image)
    for group in _groups(graph, model, removed):
        group.prune(record_history=False)
    for module, training in modes.items():
        module.training = training
    return model


def _groups(graph: Any, model: nn.Module, removed: Removed) -> Any:
    for name, channels in removed.items():
        layer = model.get_submodule(name)
        yield graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, channels)


def _remove_and_mask(model: nn.Module, image: Tensor, removed: Removed) -> nn.Module:
    """torch-pruning knows no masks: make them permanent first, read them off the zeros afterwards."""
    masked = list(surgery.masked_layers(model))
    _remove(surgery.make_permanent(model), image, removed)
    for name in masked:
        layer = model.get_submodule(name)
        _put_mask_of_ones(layer, "weight")
        original, mask = layer.weight_orig, layer.weight_mask
        assert isinstance(original, Tensor) and isinstance(mask, Tensor)
        mask.copy_(original.detach() != 0)
    return model


# What cannot be cut.


def _trials(model: nn.Module, image: Tensor, removed: Removed) -> dict[str, str]:
    """The layers that must stay whole, with the reason: each is tried alone, once all together have failed."""
    left_alone = {}
    if removed and _problem(model, image, removed) is not None:
        problems = {name: _problem(model, image, {name: channels}) for name, channels in removed.items()}
        left_alone = {name: problem for name, problem in problems.items() if problem is not None}
    if len(left_alone) == len(removed):
        reasons = "".join(f' "{name}": {reason}.' for name, reason in left_alone.items())
        raise PruneError(f"No layer of the model can lose a channel.{reasons}")
    return left_alone


@torch.no_grad()
def _problem(model: nn.Module, image: Tensor, removed: Removed) -> str | None:
    """Why the model without these channels is not the model with them at zero; None if it is."""
    # Random weights, because a layer that is zero (a new residual block's last) would hide what goes wrong.
    scrambled = _scramble(surgery.copy_model(model))
    try:
        output = _remove(surgery.copy_model(scrambled), image, removed)(image)
    except Exception as error:
        return f"the model does not run without them ({type(error).__name__}: {error})"
    graph, exact = _graph(scrambled, image), True
    for group in _groups(graph, scrambled, removed):
        for dep, channels in group:
            exact = exact and not isinstance(dep.target.module, _MIXING)
            _silence(dep.target.module, graph.is_out_channel_pruning_fn(dep.handler), channels)
    expected = scrambled(image)
    if output.shape != expected.shape:
        return f"the model's output becomes {tuple(output.shape)}"
    if exact and not torch.allclose(output, expected, rtol=0.0, atol=1e-3 * float(expected.abs().max())):
        return "the model then computes something else than with these channels at zero"
    return None


def _scramble(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        wide = parameter.dim() > 1
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * (len(parameter) / parameter.numel()) ** 0.5 if wide else 1 + 0.1 * noise)
    return model


def _silence(module: nn.Module, out: bool, channels: Sequence[int]) -> None:
    """Set what these channels put out, or what is read from them, to zero."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor):
        return
    if out or weight.dim() == 1:
        weight[channels] = 0
        if bias is not None:
            bias[channels] = 0
        return
    # In a grouped convolution a channel is read by the outputs of its own group only.
    groups = getattr(module, "groups", 1)
    rows = weight.view(groups, -1, *weight.shape[1:])
    for channel in channels:
        rows[channel // weight.shape[1], :, channel % weight.shape[1]] = 0

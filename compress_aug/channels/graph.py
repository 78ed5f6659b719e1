"""Which channels can go together, which must stay, and removing them: all that knows torch-pruning."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import Tensor, nn

from compress_aug.errors import PruneError
from compress_aug.surgery import copy_model, device_of

Importance = Literal["l1", "l2", "bn_scale", "random"]
Removed = Mapping[str, Sequence[int]]

_WITH_CHANNELS = (nn.modules.conv._ConvNd, nn.Linear)
_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)


class Layer(NamedTuple):
    """A layer whose output channels, and all that hangs on them, can be removed together."""

    name: str
    scores: Tensor  # how much each channel matters
    parts: int  # channels computed in parts (grouped convolution, group normalisation) shrink part by part


def noise_like(shape: Sequence[int], model: nn.Module) -> Tensor:
    """Two seeded random inputs of this shape (N, C, H, W), on the model's device and in its number type."""
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), None)
    noise = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    return noise.to(device_of(model), dtype)


def removable_layers(
    model: nn.Module, image: Tensor, importance: Importance, round_to: int
) -> tuple[list[Layer], dict[str, str]]:
    """The layers that can lose channels, with the channels' scores; those that cannot, with the reason."""
    graph = _graph(model, image)
    names = {module: name for name, module in model.named_modules()}
    left_alone = {_classifier(graph, names): "its outputs are those of the model"}
    layers = []
    with _followed():
        groups = list(graph.get_all_groups(root_module_types=list(_WITH_CHANNELS)))
    for group in groups:
        name = names[group[0].dep.target.module]
        scores = _scores(group, name, importance)
        if scores is None:
            left_alone[name] = "it has no batch normalisation to rank its channels by"
        elif name not in left_alone:
            layers.append(Layer(name, scores, _parts(group)))
    # At one half, every layer that loses a channel at any ratio loses one.
    left_alone |= _failures(model, image, channels_to_remove(layers, 0.5, round_to))
    layers = [layer for layer in layers if layer.name not in left_alone]
    if not channels_to_remove(layers, 0.5, round_to):
        reasons = "".join(f' "{name}": {reason}.' for name, reason in left_alone.items())
        raise PruneError(f"No layer can lose channels (round_to is {round_to}). Left whole:{reasons}")
    return layers, left_alone


def channels_to_remove(layers: list[Layer], ratio: float, round_to: int) -> dict[str, list[int]]:
    """The channels to remove at this ratio, by layer; the least important ones, as many of each part.

    Layers step to their next multiple of `round_to` one after the other, not all at the same ratio: else a
    net whose layers have few multiples could be cut to a few sizes only.
    """
    removed: dict[str, list[int]] = {}
    for position, (name, scores, parts) in enumerate(layers):
        whole, size = len(scores), len(scores) // parts
        multiples = math.floor(whole * (1 - ratio) / round_to + 0.25 + 0.5 * position / len(layers))
        # At 0 nothing goes, not even what exceeds a multiple.
        keep = min(whole, max(1, multiples) * round_to) if ratio > 0 else whole
        gone = size - math.ceil(keep / parts)
        least = scores.reshape(parts, size).mean(0).argsort(stable=True)[:gone].sort().values
        if gone:
            removed[name] = (torch.arange(parts)[:, None] * size + least).flatten().tolist()
    return removed


def remove(model: nn.Module, image: Tensor, removed: Removed) -> nn.Module:
    """Remove these output channels, and all that hangs on them. Changes the model and returns it."""
    modes = {module: module.training for module in model.modules()}
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    graph = _graph(model, image)
    for group in _groups(graph, model, removed):
        group.prune(record_history=False)
    for module, training in modes.items():
        module.training = training
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return model


def check_cut(model: nn.Module, image: Tensor, removed: Removed) -> None:
    """Raise PruneError if the model without these channels is not the model with them at zero."""
    problem = _problem(model, image, removed)
    if problem is not None:
        raise PruneError(f"The channels cannot be cut together: {problem}.")


# torch-pruning's graph.


def _graph(model: nn.Module, image: Tensor) -> Any:
    # A list, because it means the model's arguments; with a gradient, because the parameters may be frozen.
    inputs = [image.clone().requires_grad_()]
    with torch.enable_grad(), _followed():
        return tp.DependencyGraph().build_dependency(model, inputs, verbose=False)


@contextmanager
def _followed() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise PruneError(
            f"torch-pruning cannot follow the channels through this model ({error}). Shuffled channels, as "
            "in ShuffleNet, are among what it does not know."
        ) from error


def _groups(graph: Any, model: nn.Module, removed: Removed) -> Iterator[Any]:
    for name, channels in removed.items():
        layer = model.get_submodule(name)
        yield graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, channels)


def _classifier(graph: Any, names: Mapping[nn.Module, str]) -> str:
    """The layer that makes the model's output."""
    node = next(node for node in graph.module2node.values() if not node.outputs)
    while not isinstance(node.module, _WITH_CHANNELS) and node.inputs:
        node = node.inputs[0]
    return names.get(node.module, "")


def _scores(group: Any, name: str, importance: Importance) -> Tensor | None:
    if importance == "random":
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.rand(len(group[0].idxs), generator=generator)
    if importance == "bn_scale":
        scores: Tensor | None = tp.importance.BNScaleImportance()(group)
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


# What cannot be cut.


def _failures(model: nn.Module, image: Tensor, removed: Removed) -> dict[str, str]:
    """The layers that cannot be cut, with the reason: each is tried alone, but only if all together fail."""
    if _problem(model, image, removed) is None:
        return {}
    problems = {name: _problem(model, image, {name: channels}) for name, channels in removed.items()}
    return {name: problem for name, problem in problems.items() if problem is not None}


@torch.no_grad()
def _problem(model: nn.Module, image: Tensor, removed: Removed) -> str | None:
    """Why the model without these channels is not the model with them at zero; None if it is."""
    # Random weights, because a layer that is zero (a new residual block's last) would hide what goes wrong.
    scrambled = _scramble(copy_model(model))
    try:
        output = remove(copy_model(scrambled), image, removed)(image)
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

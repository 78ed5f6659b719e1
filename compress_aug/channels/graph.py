"""Which channels can go together, which must stay, and removing them: all that knows torch-pruning's graph."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch_pruning.dependency.index_mapping import _ConcatIndexMapping  # type: ignore[import-untyped]
from torch_pruning.dependency.shape_infer import infer_in_channels_recursively  # type: ignore[import-untyped]

from compress_aug.channels.regions import regions
from compress_aug.channels.scores import Importance, score_channels
from compress_aug.errors import PruneError
from compress_aug.surgery import copy_model, device_of

Removed = Mapping[str, Sequence[int]]

_WITH_CHANNELS = (nn.modules.conv._ConvNd, nn.Linear)
_NOT_FOLLOWED = "torch-pruning cannot follow its channels"
_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)


class Layer(NamedTuple):
    """A layer whose output channels, and all that hangs on them, can be removed together."""

    name: str
    scores: Tensor  # how much each channel matters
    parts: int  # channels computed in parts (grouped convolution, group normalisation) shrink part by part
    mixed: bool  # something computes with all of them at once, so that one less is another than one at zero


class Found(NamedTuple):
    """The layers that can lose channels, those that cannot and why, and what kept the whole from being followed."""

    layers: list[Layer]
    left_alone: dict[str, str]
    followed_in_parts: str | None


def noise_like(shape: Sequence[int], model: nn.Module) -> Tensor:
    """Two seeded random inputs of this shape (N, C, H, W), on the model's device and in its number type."""
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), None)
    noise = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    return noise.to(device_of(model), dtype)


def removable_layers(model: nn.Module, image: Tensor, importance: Importance, round_to: int) -> Found:
    """The layers that can lose channels, with the channels' scores; those that cannot, with the reason.

    Raises PruneError if there is none, and if the model cannot be followed at all.
    """
    followed = _Followed(model, image)
    left_alone = followed.left_alone
    layers = []
    for name, group in followed.groups():
        try:
            found = score_channels(group, name, importance)
        except (IndexError, RuntimeError):
            # A group that holds channels which its layers do not have, or a normalisation over places as well.
            left_alone[name] = _NOT_FOLLOWED
            continue
        computed = _computed(group)
        if computed:
            left_alone[name] = f'it needs "{computed}", whose weight is computed (weight normalisation, say)'
        elif found is None:
            left_alone[name] = "it has no batch normalisation to rank its channels by"
        elif name not in left_alone:
            layers.append(Layer(name, found, _parts(group), _is_mixed(group)))
    # At one half, every layer that loses a channel at any ratio loses one.
    for mixed in (False, True):
        # Apart, because a single mixed layer among them would let no difference count.
        alike = [layer for layer in layers if layer.mixed == mixed]
        left_alone |= _failures(model, image, channels_to_remove(alike, 0.5, round_to))
    layers = [layer for layer in layers if layer.name not in left_alone]
    if not channels_to_remove(layers, 0.5, round_to):
        reasons = "".join(f' "{name}": {reason}.' for name, reason in left_alone.items())
        finer = ", ".join(f'"{name}"' for name in channels_to_remove(layers, 0.5, 1))
        advice = f" With a smaller round_to these can: {finer}." if finer else ""
        raise PruneError(
            f"No layer can lose channels (round_to is {round_to}).{advice}"
            + (f" Left whole:{reasons}" if reasons else "")
        )
    return Found(layers, left_alone, followed.in_parts)


def channels_to_remove(layers: list[Layer], ratio: float, round_to: int) -> dict[str, list[int]]:
    """The channels to remove at this ratio, by layer; the least important ones, as many of each part.

    Layers step to their next multiple of `round_to` one after the other, not all at the same ratio: else a
    net whose layers have few multiples could be cut to a few sizes only.
    """
    removed: dict[str, list[int]] = {}
    for position, (name, scores, parts, _) in enumerate(layers):
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
    followed = _Followed(model.eval(), image)
    for name, channels in removed.items():
        followed.group(name, channels).prune(record_history=False)
    for module, training in modes.items():
        module.training = training
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return model


def check_cut(model: nn.Module, image: Tensor, removed: Removed) -> None:
    """Raise PruneError if the model without these channels is not the model with them at zero."""
    problem = difference(_scramble(copy_model(model)), image, removed)
    if problem is not None:
        raise PruneError(f"The channels cannot be cut together: {problem}.")


@torch.no_grad()
def difference(model: nn.Module, image: Tensor, removed: Removed) -> str | None:
    """Why the model without these channels is not the model with them at zero; None if it is.

    Works on copies. Where something mixes channels (`_MIXING`) only the shape of the output is compared.
    """
    try:
        output = remove(copy_model(model), image, removed)(image)
    except Exception:
        return (
            "the model does not run without them: its forward counts on their number, as a fixed reshape does"
        )
    silenced, exact = copy_model(model), True
    followed = _Followed(silenced, image)
    for name, channels in removed.items():
        group = followed.group(name, channels)
        exact = exact and not _is_mixed(group)
        for dep, indices in group:
            _silence(dep.target.module, _is_out(group, dep), indices)
    expected = silenced(image)
    if output.shape != expected.shape:
        return f"the model's output becomes {tuple(output.shape)}"
    if exact and not torch.allclose(output, expected, rtol=0.0, atol=1e-3 * float(expected.abs().max())):
        return "the model then computes something else than with these channels at zero"
    return None


# torch-pruning's graph.


class _Followed:
    """torch-pruning's graph of the model; or one for each part of it, where it cannot follow the whole.

    left_alone: layers that cannot be cut, as far as the graphs alone tell, with the reason
    in_parts:   what torch-pruning said of the whole; None if it follows the whole

    Raises PruneError if torch.fx cannot trace the model either.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self._model = model
        self._graphs: dict[str, Any] = {}
        self.left_alone: dict[str, str] = {}
        self.in_parts: str | None = None
        try:
            self._follow_whole(image)
        # Not narrower: what it does not know makes torch-pruning raise anything, often a ZeroDivisionError.
        except Exception as error:
            # For the log; nobody is helped by it otherwise.
            self.in_parts = f"{type(error).__name__}: {error}"
            self._follow_parts(image)

    def _follow_whole(self, image: Tensor) -> None:
        graph = _graph(self._model, [image])
        names = {module: name for name, module in self._model.named_modules()}
        with_channels = [module for module in graph.module2node if isinstance(module, _WITH_CHANNELS)]
        self._graphs = {names[module]: graph for module in with_channels}
        self.left_alone[_classifier(graph, names)] = "its outputs are those of the model"

    def _follow_parts(self, image: Tensor) -> None:
        try:
            found, self.left_alone = regions(self._model, image)
        except PruneError as error:
            raise PruneError(
                f"torch-pruning cannot follow the channels through this model, and {error}. Both follow what the "
                "forward does with one image: write it without branches on values and without fixed sizes, or prune "
                "single weights (mask_smallest, in a recipe `prune`)."
            ) from error
        for name, region in found.items():
            try:
                self._graphs[name] = _graph(region.part, region.inputs)
            except Exception:
                self.left_alone[name] = _NOT_FOLLOWED

    def group(self, name: str, channels: Sequence[int]) -> Any:
        """What has to go so that these output channels of a layer can go."""
        graph = self._graphs[name]
        _follow_joints(graph)
        layer = self._model.get_submodule(name)
        return graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, channels)

    def groups(self) -> Iterator[tuple[str, Any]]:
        """Each group once, with all of its channels, under the name of the first layer that it can be cut by."""
        taken: set[nn.Module] = set()
        for name, graph in self._graphs.items():
            layer = self._model.get_submodule(name)
            if layer in taken:
                continue
            try:
                group = self.group(name, range(graph.get_out_channels(layer)))
            except Exception:
                self.left_alone[name] = _NOT_FOLLOWED
                continue
            taken |= {dep.target.module for dep, _ in group if _is_out(group, dep)}
            yield name, group


def _is_out(group: Any, dep: Any) -> bool:
    """Whether it is outputs of its target, not inputs, that a dependency removes."""
    return bool(group._DG.is_out_channel_pruning_fn(dep.handler))


def _computed(group: Any) -> str | None:
    """A layer of the group whose weight is no parameter of its own, so that nothing can be cut off it."""
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, _WITH_CHANNELS) and "weight" not in module._parameters:
            return str(dep.target._name)
    return None


def _is_mixed(group: Any) -> bool:
    return any(isinstance(dep.target.module, _MIXING) for dep, _ in group)


def _graph(model: nn.Module, inputs: list[Tensor]) -> Any:
    # With a gradient, because the parameters may be frozen.
    with_gradient = [given.clone().requires_grad_() for given in inputs]
    with torch.enable_grad():
        return tp.DependencyGraph().build_dependency(model, with_gradient, verbose=False)


def _follow_joints(graph: Any) -> None:
    """Tell torch-pruning which channels are whose behind a concatenation whose reader it cannot size.

    It gives up where a flatten lies between, and would then cut the same places of every part.
    """
    for joint in [node for node in graph.module2node.values() if node.type == tp.ops.OPTYPE.CONCAT]:
        sizes = joint.module.concat_sizes
        # What it did follow has offsets. Tokens are joined on the second axis as well, but are not read as many
        # times the sum of their channels.
        if joint.module.offsets is not None or joint.grad_fn._saved_dim != 1 or None in (sizes or [None]):
            continue
        read = infer_in_channels_recursively(graph, joint, [0])
        if not joint.enable_index_mapping or read is None or read % sum(sizes) != 0:
            continue
        for place, part in enumerate(joint.inputs):
            ends = [sum(sizes[:place]), sum(sizes[: place + 1])]
            for node, other, reverse in ((joint, part, True), (part, joint, False)):
                for dep in node.dependencies:
                    if dep.target is other:
                        dep.index_mapping[1] = _ConcatIndexMapping(offset=ends, reverse=reverse)


def _classifier(graph: Any, names: Mapping[nn.Module, str]) -> str:
    """The layer that makes the model's output."""
    node = next(node for node in graph.module2node.values() if not node.outputs)
    while not isinstance(node.module, _WITH_CHANNELS) and node.inputs:
        node = node.inputs[0]
    return names.get(node.module, "")


def _parts(group: Any) -> int:
    modules = [dep.target.module for dep, _ in group]
    convolutions = [module for module in modules if isinstance(module, nn.modules.conv._ConvNd)]
    parts = [module.groups for module in convolutions if module.groups != module.out_channels]
    return max(
        parts + [module.num_groups for module in modules if isinstance(module, nn.GroupNorm)], default=1
    )


# What cannot be cut.


def _failures(model: nn.Module, image: Tensor, removed: Removed) -> dict[str, str]:
    """The layers that cannot be cut, with the reason."""
    # Random weights, because a layer that is zero (a new residual block's last) would hide what goes wrong.
    scrambled = _scramble(copy_model(model))

    def failing(part: list[str]) -> dict[str, str]:
        """Tries them together and halves what fails: few layers do, and each trial copies the model."""
        problem = difference(scrambled, image, {name: removed[name] for name in part})
        if problem is None:
            return {}
        if len(part) == 1:
            return {part[0]: problem}
        middle = len(part) // 2
        return failing(part[:middle]) | failing(part[middle:])

    return failing(list(removed)) if removed else {}


@torch.no_grad()
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
    # Behind a slope, what is zero stays zero; and a PReLU may have one slope for all channels.
    if not isinstance(weight, Tensor) or isinstance(module, nn.PReLU):
        return
    if bias is not None and (out or weight.dim() == 1):
        bias[channels] = 0
    # The first axis of a transposed convolution is what it reads.
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    if weight.dim() == 1 or out != transposed:
        weight[channels] = 0
        return
    # In a grouped convolution a channel is read, in a transposed one made, within its own group only.
    groups = getattr(module, "groups", 1)
    rows = weight.view(groups, -1, *weight.shape[1:])
    for channel in channels:
        rows[channel // weight.shape[1], :, channel % weight.shape[1]] = 0

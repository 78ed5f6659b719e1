"""Where extra layers go: the last feature map before the pooling, found by watching a forward pass."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from compress_aug.errors import AttachError, nearest
from compress_aug.inheritance.blocks import Form
from compress_aug.surgery import copy_model, device_of

# Shapes as in compress_aug.batch; T is the number of tokens.

# A tensor's identity and version: an in-place change makes it another tensor, so that `out += shortcut` does
# not pass for the output of the layer before it.
Key = tuple[int, int]

# What may stand between a convolution and the pooling without mixing channels.
_ELEMENTWISE = (
    _BatchNorm,
    nn.Identity,
    nn.Dropout,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
)


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward pass."""

    path: str
    module: nn.Module
    entered: Key | None  # the first input
    left: Key  # the output
    shape: tuple[int, ...]  # of the output
    positive: bool  # no output is below zero


@dataclass(frozen=True)
class Probe:
    """One forward pass of a copy of the model: its calls in the order in which they ended."""

    model: nn.Module
    inputs: Tensor
    output: Tensor
    calls: list[Call]


@dataclass(frozen=True)
class Place:
    """Where extra blocks go, why, and of which kind they are."""

    path: str
    reason: str
    shape: tuple[int, ...]
    form: Form
    channels: int
    positive: bool


def find_attachment(model: nn.Module, example: Tensor) -> tuple[str, str, tuple[int, ...]]:
    """Where `attach_layers` puts its blocks: the module's path, the reason, the shape of its output.

    example: as for `attach_layers`. The shape's first number is the batch of the probe, 2.

    The rule is our decision. The classifier is the last linear layer or 1x1 convolution with as many outputs
    as the model. The blocks follow the last module before it that puts out a feature map (N, C, H, W) larger
    than 1x1, or tokens (N, T, C); in a net without such a module, the last one that puts out features (N, C).
    If a 1x1 convolution makes that map and only widens it for the classifier, as in MobileNetV2, ShuffleNetV2
    and EfficientNet, the blocks go before that convolution. A module that runs more than once is not chosen.
    What works without a module (F.relu, x.mean) leaves the blocks at the module before it.

    Raises AttachError as `attach_layers` does.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    >>> find_attachment(net, torch.zeros(1, 3, 16, 16))
    ('0', 'the last feature map before the classifier "3"', (2, 8, 14, 14))
    """
    place, _ = find_place(model, example, None)
    return place.path, place.reason, place.shape


def find_place(model: nn.Module, example: Tensor, after: str | None) -> tuple[Place, Probe]:
    """The place by the rule of `find_attachment`, or the one named; and the pass in which it was found."""
    if after is not None:
        module_at(model, after)
    probe = _run(model, example)
    if after is not None:
        return _place(probe.calls, _named(probe.calls, after), "chosen by name"), probe
    end, classifier = _classifier(probe)
    before = probe.calls[:end]
    call = _last_features(before, classifier)
    what = {2: "features", 3: "tokens"}.get(len(call.shape), "feature map")
    reason = f'the last {what} before the classifier "{classifier.path}"'
    narrow = _before_widening(before, call)
    if narrow is not None:
        reason += f", before a 1x1 convolution widens {narrow.shape[1]} to {call.shape[1]} channels"
        call = narrow
    return _place(probe.calls, call, reason), probe


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module at this path. Raises AttachError that offers the nearest path."""
    modules: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if path not in modules:
        raise AttachError(
            f'The model has no module "{path}" for layers to follow: {nearest(path, [*modules])}'
        )
    return modules[path]


# Watching one forward pass.


def _run(model: nn.Module, example: Tensor) -> Probe:
    copied = copy_model(model).eval()
    # On noise, because a constant image may leave a map without negative values by chance.
    noise = torch.randn((2, *example.shape[1:]), generator=torch.Generator().manual_seed(0))
    dtype = next((tensor.dtype for tensor in copied.parameters() if tensor.is_floating_point()), None)
    inputs = noise.to(device_of(copied), dtype)
    calls: list[Call] = []
    alive: list[Tensor] = []
    handles: list[RemovableHandle] = []
    for path, module in copied.named_modules():
        if path:
            handles += _watch(path, module, calls, alive)
    try:
        with torch.no_grad():
            output = copied(inputs)
    except Exception as error:
        shape = tuple(inputs.shape)
        raise AttachError(f"The model does not run on inputs of shape {shape} ({error}).") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor) or output.dim() != 2:
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise AttachError(f"Extra layers need a classifier, whose output is (N, K); this model's is {found}.")
    return Probe(copied, inputs, output, calls)


def _watch(path: str, module: nn.Module, calls: list[Call], alive: list[Tensor]) -> list[RemovableHandle]:
    """Write down every call of the module that puts out a tensor of real numbers."""
    entered: list[Key | None] = []

    def enter(_: nn.Module, inputs: tuple[object, ...]) -> None:
        first = inputs[0] if inputs else None
        # Taken before the module runs, which may change its input in place.
        entered.append(_key(first) if isinstance(first, Tensor) else None)

    def leave(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        key = entered.pop()
        if isinstance(output, Tensor) and output.is_floating_point():
            # Kept until the pass ends, so that no identity is given out twice.
            alive.append(output)
            positive = bool((output >= 0).all())
            calls.append(Call(path, module, key, _key(output), tuple(output.shape), positive))

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _key(tensor: Tensor) -> Key:
    return id(tensor), tensor._version


# The rule.


def _classifier(probe: Probe) -> tuple[int, Call]:
    """The call that makes the logits, and its position."""
    classes = probe.output.shape[1]
    for position, call in reversed([*enumerate(probe.calls)]):
        linear = isinstance(call.module, nn.Linear) and call.shape[-1] == classes
        if linear or (_is_pointwise(call.module) and call.shape[1] == classes):
            return position, call
    raise AttachError(
        f"The model has {classes} outputs, but no linear layer or 1x1 convolution has as many: name the "
        "module for layers to follow with `after`."
    )


def _last_features(before: Sequence[Call], classifier: Call) -> Call:
    """The last call before the classifier that puts out a map or tokens; without any, features."""
    flat = None
    for call in reversed(before[_first_weight(before) :]):
        owner = _owner(before, call.left)
        if owner is None or isinstance(call.module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            continue
        if _positions(call.shape) > 1:
            _check_not_shrunk(before, call)
            return owner
        if flat is None and len(call.shape) == 2:
            flat = owner
    if flat is None:
        raise AttachError(
            f'There is no layer before the classifier "{classifier.path}" that others could follow.'
        )
    return flat


def _first_weight(calls: Sequence[Call]) -> int:
    """The position of the first call of a module with parameters: what comes before are the images."""
    return next(
        (i for i, call in enumerate(calls) if any(True for _ in call.module.parameters())), len(calls)
    )


def _check_not_shrunk(before: Sequence[Call], last: Call) -> None:
    """Refuse a net whose map shrinks to 1x1 on the way: before its pooling, 3x3 layers would see nothing."""
    for call in before[before.index(last) + 1 :]:
        if isinstance(call.module, nn.Conv2d) and not _is_pointwise(call.module):
            raise AttachError(
                f'The feature map shrinks to {call.shape} in "{call.path}", before any pooling, and leaves '
                "nothing for 3x3 layers to see: give larger images, or name a module with `after`."
            )


def _before_widening(before: Sequence[Call], call: Call) -> Call | None:
    """What enters the 1x1 convolution that made this map, if one did and has more channels than it got."""
    key: Key | None = call.left
    for layer in reversed(before):
        if layer.left != key:
            continue
        if isinstance(layer.module, nn.Conv2d):
            convolution = layer.module
            widens = convolution.out_channels > convolution.in_channels and convolution.groups == 1
            return _owner(before, layer.entered) if widens and _is_pointwise(convolution) else None
        if isinstance(layer.module, _ELEMENTWISE):
            key = layer.entered
        elif next(layer.module.children(), None) is None:
            return None
    return None


def _owner(calls: Sequence[Call], key: Key | None) -> Call | None:
    """The outermost module that put this tensor out and ran once only."""
    runs = Counter(call.path for call in calls)
    owners = [call for call in calls if call.left == key and runs[call.path] == 1]
    return min(owners, key=lambda call: call.path.count("."), default=None)


def _named(calls: Sequence[Call], path: str) -> Call:
    found = [call for call in calls if call.path == path]
    if len(found) != 1:
        raise AttachError(
            f'Module "{path}" puts out {len(found)} tensors in a forward pass: name one that puts out just '
            "one with `after`."
        )
    return found[0]


# The kind of block.


def _place(calls: Sequence[Call], call: Call, reason: str) -> Place:
    shape = call.shape
    if len(shape) not in (2, 3, 4):
        raise AttachError(
            f'"{call.path}" puts out a tensor of shape {shape}; extra layers can follow a feature map '
            "(N, C, H, W), tokens (N, T, C) or features (N, C): name such a module with `after`."
        )
    form = _form(calls, call)
    channels = shape[1] if form in ("convolution", "separable", "inverted") else shape[-1]
    return Place(call.path, reason, shape, form, channels, call.positive)


def _form(calls: Sequence[Call], call: Call) -> Form:
    """The kind of block that the net itself is made of, as far as the calls before this one tell."""
    if len(call.shape) == 2:
        return "features"
    if len(call.shape) == 3 or _is_channels_last(calls, call):
        return "tokens"
    earlier = [other.module for other in calls[: calls.index(call)] if isinstance(other.module, nn.Conv2d)]
    depthwise = [module for module in earlier if module.groups == module.in_channels > 1]
    if depthwise and depthwise[-1].out_channels > call.shape[1]:
        return "inverted"
    return "separable" if depthwise or call.shape[1] > 512 else "convolution"


def _is_channels_last(calls: Sequence[Call], call: Call) -> bool:
    """Whether a 4-D output is (N, H, W, C), because a layer made it that works on the last dimension."""
    makers = [other.module for other in calls if other.left == call.left]
    sizes = [module.normalized_shape[-1] for module in makers if isinstance(module, nn.LayerNorm)]
    sizes += [module.out_features for module in makers if isinstance(module, nn.Linear)]
    return any(size == call.shape[-1] != call.shape[1] for size in sizes)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and set(module.stride) == {1}


def _positions(shape: tuple[int, ...]) -> int:
    """How many positions a map or a sequence has; 0 for features, which have none."""
    return shape[1] if len(shape) == 3 else math.prod(shape[2:]) if len(shape) > 3 else 0

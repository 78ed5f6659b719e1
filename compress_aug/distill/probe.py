"""One look at a model in which every module tells what it read and returned: where feature maps can be read."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Functions of torch that networks use between layers, by name, their in-place forms (with "_" behind) as well. Gates,
# such as sigmoid and hardsigmoid, are none: what they make is multiplied with a map and is not one.
_RECTIFIERS = ("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu")
_ACTIVATIONS = frozenset((*_RECTIFIERS, "gelu", "silu", "mish", "hardswish", "softplus", "tanh"))

Key = tuple[int, int]
"""A value: the tensor it lies in, and how often that had been written."""


@dataclass(frozen=True)
class Event:
    """A module read or returned a tensor.

    call: the how-manieth call of the module it was, from 1
    reads: whether the tensor is what it read
    """

    path: str
    module: nn.Module
    call: int
    reads: bool
    tensor: Tensor
    key: Key

    @property
    def is_overwritten(self) -> bool:
        """Whether an operation in place has changed the tensor since."""
        return self.tensor._version != self.key[1]


@dataclass(frozen=True)
class Seen:
    """events: in the order in which they happened;  made: what activations put out, in that order."""

    events: list[Event]
    made: list[tuple[Key, Tensor]]


def look(model: nn.Module, example: Tensor) -> Seen:
    """Run a model once, in eval mode and without gradients, and return what its modules did. Changes nothing.

    example: (N, C, H, W), one image is enough
    """
    seen = Seen([], [])
    calls: Counter[str] = Counter()
    handles: list[Any] = []

    def tell(path: str, module: nn.Module, reads: bool, value: object) -> None:
        if isinstance(value, Tensor):
            key = (id(value), value._version)
            # The event holds the tensor, so that no later one gets its id.
            seen.events.append(Event(path, module, calls[path], reads, value, key))

    def watch(path: str, module: nn.Module) -> None:
        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            calls[path] += 1
            tell(path, module, True, inputs[0] if inputs else None)

        def leave(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            tell(path, module, False, output)

        handles.extend((module.register_forward_pre_hook(enter), module.register_forward_hook(leave)))

    for path, module in model.named_modules():
        if path and not _is_inside_quantizer(path, model):
            watch(path, module)
    try:
        with evaluating(model), torch.no_grad(), _Activations(seen.made):
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def is_quantizer(module: nn.Module) -> bool:
    """Whether all that a module does is to quantize what it reads; the second kind is that of DoReFa."""
    # By name, because importing Brevitas takes two seconds and most models have none of it.
    return type(module).__name__ in ("QuantIdentity", "QuantNonLinearActLayer")


def _is_inside_quantizer(path: str, model: nn.Module) -> bool:
    # These parts hand values on as they are, but only where the layer takes its long way.
    parent, _, part = path.rpartition(".")
    if part in ("input_quant", "output_quant", "weight_quant", "bias_quant"):
        return True
    while parent:
        if is_quantizer(model.get_submodule(parent)):
            return True
        parent = parent.rpartition(".")[0]
    return False


class _Activations(TorchFunctionMode):
    """Notes what activation functions return, wherever they are called."""

    def __init__(self, made: list[tuple[Key, Tensor]]) -> None:
        super().__init__()
        self._made = made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").rstrip("_")
        if name in _ACTIVATIONS and isinstance(result, Tensor):
            self._made.append(((id(result), result._version), result))
        return result


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and each of its modules back in its own mode behind it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

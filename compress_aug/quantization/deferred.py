"""ReLU and ReLU6 left to the quantizer behind them, which cuts off values anyway: a pass over memory less each way."""

from math import inf
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules import module as torch_modules
from torch.utils._pytree import tree_map

from compress_aug.quantization.fused import takes


class Deferred(Tensor):
    """A value that still has to be rectified: whoever reads it finds it rectified, but a quantizer of ours does both.

    raw:  the value before
    high: where it will be cut off above, inf for ReLU
    """

    raw: Tensor
    high: float

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*tree_map(rectified, args), **tree_map(rectified, kwargs or {}))


def rectified(value: Any) -> Any:
    """What a deferred value will be, and anything else as it is."""
    if not isinstance(value, Deferred):
        return value
    return functional.relu(value.raw) if value.high == inf else functional.relu6(value.raw)


def _deferred(raw: Tensor, high: float) -> Tensor:
    made: Any = raw.as_subclass(Deferred)
    made.raw, made.high = raw, high
    return made  # type: ignore[no-any-return]


def _may_defer(values: Tensor) -> bool:
    # Whoever writes the network down, tracing or compiling, must find the operations themselves in it.
    is_written = torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()
    return type(values) is Tensor and takes(values) and not is_written


class ReLU(nn.ReLU):
    """A ReLU that the quantizer behind it carries out, unless a hook looks at what it returns."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if _is_watched(self) else relu(input)


class ReLU6(nn.ReLU6):
    """The same for ReLU6."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if _is_watched(self) else relu6(input)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or torch_modules._global_forward_hooks or _is_wrapped(module))


def is_entered(module: nn.Module) -> bool:
    """Whether a hook looks at what a module reads, before its own forward does."""
    return bool(module._forward_pre_hooks or torch_modules._global_forward_pre_hooks or _is_wrapped(module))


def _is_wrapped(module: nn.Module) -> bool:
    """For hooks on the backward pass torch puts functions around a module, which read no more than plain tensors."""
    return bool(
        module._backward_hooks
        or module._backward_pre_hooks
        or torch_modules._global_backward_hooks
        or torch_modules._global_backward_pre_hooks
    )


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.relu`, which the quantizer behind it carries out."""
    return _deferred(input, inf) if _may_defer(input) else functional.relu(input)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.relu6`, which the quantizer behind it carries out."""
    return _deferred(input, 6.0) if _may_defer(input) else functional.relu6(input)


_MODULES: dict[type[nn.Module], type[nn.Module]] = {nn.ReLU: ReLU, nn.ReLU6: ReLU6}
_FUNCTIONS: dict[Any, Any] = {functional.relu: relu, torch.relu: relu, functional.relu6: relu6}


def defer_rectifiers(model: fx.GraphModule, kind: type[nn.Module]) -> None:
    """Let the quantizers of a graph carry out each ReLU and ReLU6 that they alone read. Changes the model.

    kind: of the quantizers that can
    """
    modules = dict(model.named_modules())
    nodes = list(model.graph.nodes)

    def is_quantizer(node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(modules[str(node.target)], kind)

    kept = {node.target for node in nodes if not all(map(is_quantizer, node.users))}
    for node in nodes:
        if (
            node.op == "call_module"
            and type(modules[str(node.target)]) in _MODULES
            and node.target not in kept
        ):
            # A module may be called at several places; the second of them finds it replaced.
            old = model.get_submodule(str(node.target))
            if type(old) in _MODULES:
                model.set_submodule(str(node.target), _MODULES[type(old)]().train(old.training))
        elif node.op == "call_function" and node.target in _FUNCTIONS and all(map(is_quantizer, node.users)):
            node.target = _FUNCTIONS[node.target]
    model.recompile()

"""What the operations of a traced model do to their values: move them, rectify them, or make new ones."""

import operator
from collections.abc import Iterable, Mapping

import torch
from torch import fx, nn
from torch.nn import functional

Modules = Mapping[str, nn.Module]


class Scope(nn.Module):
    """Stands where a container of the original model returned its value.

    Tracing flattens containers; calling a Scope under the container's name keeps hooks on it working
    (feature distillation taps a block by its name). It hands its input on and leaves no trace in ONNX.
    """

    # Named as by the layers of torch, whose place it takes where a norm is folded that was called by keyword.
    def forward(self, input: object) -> object:
        return input


# Layers that skip their branch at random while training; their own control flow cannot be traced.
RANDOM_DEPTH = ("StochasticDepth", "DropPath")

_MOVING_MODULES = (
    Scope,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.Flatten,
    nn.Unflatten,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.ChannelShuffle,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ZeroPad2d,
    nn.UpsamplingNearest2d,
)
_MOVING_FUNCTIONS = {
    operator.getitem,
    torch.cat,
    torch.concat,
    torch.stack,
    torch.chunk,
    torch.split,
    torch.unbind,
    torch.select,
    torch.narrow,
    torch.swapaxes,
    torch.swapdims,
    torch.roll,
    torch.flatten,
    torch.reshape,
    torch.transpose,
    torch.permute,
    torch.squeeze,
    torch.unsqueeze,
    torch.channel_shuffle,
    torch.pixel_shuffle,
    torch.pixel_unshuffle,
    functional.channel_shuffle,
    functional.pixel_shuffle,
    functional.pixel_unshuffle,
    functional.dropout,
    functional.dropout2d,
    functional.max_pool1d,
    functional.max_pool2d,
    functional.max_pool3d,
    functional.adaptive_max_pool2d,
    torch.max_pool2d,
}
_MOVING_METHODS = {
    "chunk",
    "split",
    "unbind",
    "select",
    "narrow",
    "swapaxes",
    "swapdims",
    "roll",
    "flatten",
    "unflatten",
    "reshape",
    "view",
    "transpose",
    "permute",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "clone",
    "detach",
}
_ADD = {operator.add, torch.add, "add"}
MULTIPLY = {operator.mul, torch.mul, "mul"}
PRODUCTS = {operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm"}
_AVERAGE_MODULES = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_AVERAGE = {
    torch.avg_pool1d,
    functional.avg_pool1d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool1d,
    functional.adaptive_avg_pool2d,
    torch.adaptive_avg_pool1d,
}
_RECTIFY = {torch.relu, functional.relu, functional.relu6, "relu"}
_CLAMP = {
    torch.clamp,
    torch.clip,
    functional.hardtanh,
    functional.hardtanh_,
    "clamp",
    "clamp_",
    "clip",
    "clip_",
}
_SIGMOID_MODULES = (nn.Sigmoid, nn.Hardsigmoid)
_SIGMOIDS = {torch.sigmoid, functional.sigmoid, functional.hardsigmoid, "sigmoid"}
_POSITIVE_MODULES = (*_SIGMOID_MODULES, nn.Softmax, nn.Softmax2d, nn.Softplus)
_POSITIVE = {
    *_SIGMOIDS,
    torch.softmax,
    torch.abs,
    torch.exp,
    functional.softmax,
    "softmax",
    "abs",
    "exp",
    "square",
}


def module_of(node: fx.Node, modules: Modules) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return modules[str(node.target)] if node.op == "call_module" else None


def _called(node: fx.Node, kinds: tuple[type, ...], targets: Iterable[object], modules: Modules) -> bool:
    if node.op == "call_module":
        module = module_of(node, modules)
        own = getattr(type(module), "forward", None)
        # A subclass with a forward of its own may do more.
        return any(isinstance(module, kind) and own is getattr(kind, "forward", None) for kind in kinds)
    return node.op in ("call_function", "call_method") and node.target in set(targets)


def moves(node: fx.Node, modules: Modules) -> bool:
    """Whether every value that comes out went in: what lies on a grid before lies on it afterwards.

    Padding with zeros counts, because zero lies on every grid used here.
    """
    if node.op == "call_module" and type(module_of(node, modules)).__name__ in RANDOM_DEPTH:
        return True
    if node.target is functional.pad:
        mode, filled_with = _argument(node, 2, "mode", "constant"), _argument(node, 3, "value", 0)
        return mode == "constant" and filled_with in (0, None)
    if node.target is functional.interpolate:
        return bool(_argument(node, 3, "mode", "nearest") == "nearest")
    if node.op == "call_module" and isinstance(module_of(node, modules), nn.Upsample):
        return bool(modules[str(node.target)].mode == "nearest")
    return _called(node, _MOVING_MODULES, _MOVING_FUNCTIONS | _MOVING_METHODS, modules)


def rectifies(node: fx.Node, modules: Modules) -> bool:
    """ReLU, ReLU6 and other clamps from zero or above."""
    module = module_of(node, modules)
    if isinstance(module, nn.Hardtanh):
        return module.min_val >= 0
    if node.op in ("call_function", "call_method") and node.target in _CLAMP:
        is_hardtanh = node.target is functional.hardtanh
        low = _argument(node, 1, "min_val" if is_hardtanh else "min", -1.0 if is_hardtanh else None)
        return isinstance(low, int | float) and low >= 0
    return _called(node, (nn.ReLU,), _RECTIFY, modules)


def combines(node: fx.Node) -> bool:
    """An elementwise sum or product of two values of the network."""
    is_call = node.op in ("call_function", "call_method")
    # With a factor (`alpha`) a sum is another operation, and may be a difference.
    is_plain = len(node.args) + len(node.kwargs) == 2
    return is_call and node.target in _ADD | MULTIPLY and is_plain and len(node.all_input_nodes) == 2


def multiplies_matrices(node: fx.Node) -> bool:
    """A matrix product of two values of the network."""
    is_call = node.op in ("call_function", "call_method")
    return is_call and node.target in PRODUCTS and len(node.all_input_nodes) == 2


def is_sigmoid(node: fx.Node, modules: Modules) -> bool:
    """Sigmoid and hard sigmoid: what a gate is made of."""
    return _called(node, _SIGMOID_MODULES, _SIGMOIDS, modules)


def averages(node: fx.Node, modules: Modules) -> bool:
    """Average pooling, global or not."""
    return _called(node, _AVERAGE_MODULES, _AVERAGE, modules)


def has_integer_kernel(node: fx.Node, modules: Modules) -> bool:
    """Sums, products and averages: what runtimes compute on integers beside the layers with weights."""
    return combines(node) or averages(node, modules) or multiplies_matrices(node)


def never_negative(node: fx.Node, sources: list[bool], modules: Modules) -> bool:
    """Whether the values are known not to be negative, whatever the input and the weights.

    sources: the same, for each value that the operation reads.
    """
    if rectifies(node, modules) or _called(node, _POSITIVE_MODULES, _POSITIVE, modules):
        return True
    keeps_sign = moves(node, modules) or averages(node, modules) or combines(node)
    return keeps_sign and bool(sources) and all(sources)


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default

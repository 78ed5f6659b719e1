"""DoReFa: weights and activations on fixed levels, with rounding alone passed over by the gradient."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress_aug.errors import QuantizeError
from compress_aug.patterns import told
from compress_aug.quantization.ops import averages, combines, moves
from compress_aug.quantization.scale_groups import Flow, ScaleGroup
from compress_aug.surgery import masked_layers, surgery_log


class DorefaWeight(nn.Module):
    """A weight on the 2^k levels -1, -1 + 2/n, ..., 1 with n = 2^k - 1, as a quantizer of Brevitas.

    The levels are the odd integers from -n to n with scale 1/n: there is no level at zero. In the backward pass
    tanh, the division and the largest value are differentiated, rounding is passed over.

    rescale: multiply by mean|w| / mean|w_q|, taken as a constant, for layers without a batch norm [ours]

    >>> DorefaWeight(bits=2)(torch.tensor([-0.9, -0.1, 0.2, 0.9]))[0]
    tensor([-1.0000, -0.3333,  0.3333,  1.0000])

    Source: arXiv 1606.06160, equation 9; the odd integers are ours, so that stock integer kernels compute it.
    """

    def __init__(self, bits: int, rescale: bool = False) -> None:
        super().__init__()
        self.steps = 2**bits - 1
        self.bit_width = bits + 1
        self.rescale = rescale
        # Where Brevitas looks for how a weight is reshaped for its quantizer: not at all.
        self.int_quant = nn.Module()
        self.int_quant.input_view_impl = nn.Identity()

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """weight: any shape -> weight on the levels, scale (), zero point (), bits () of the integers."""
        rounded: Tensor = _Rounded.apply(self.steps * unit(weight))
        integers = 2 * rounded - self.steps
        scale = torch.full((), 1 / self.steps, dtype=weight.dtype, device=weight.device)
        if self.rescale:
            means = weight.detach().abs().mean(), integers.detach().abs().mean()
            scale = means[0] / means[1]
        zero_point = torch.zeros((), dtype=weight.dtype, device=weight.device)
        bits = torch.full((), float(self.bit_width), device=weight.device)
        return integers * scale, scale, zero_point, bits


def unit(weight: Tensor) -> Tensor:
    """tanh(w) / (2 max|tanh(w)|) + 1/2: weights of any size -> [0, 1], what DoReFa rounds."""
    squashed = weight.tanh()
    largest = squashed.abs().amax().clamp_min(torch.finfo(weight.dtype).tiny)
    return squashed / (2 * largest) + 0.5


class _Rounded(torch.autograd.Function):
    """Half to even, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class UnitClip(nn.Module):
    """What lies outside [0, 1] is cut off, and gets no gradient."""

    def __init__(self) -> None:
        # Written out, because Brevitas reads what a class wants from the arguments of its own __init__.
        super().__init__()

    def forward(self, values: Tensor) -> Tensor:
        return values.clamp(0, 1)


def check_unmasked(model: nn.Module) -> None:
    """Raises QuantizeError for a model with masks, or with masks folded in."""
    masked = list(masked_layers(model))
    if masked or any(entry["verb"] == "make_permanent" for entry in surgery_log(model)):
        where = f" (masks on {told(masked)})" if masked else ""
        raise QuantizeError(
            f'The model is pruned{where}, and scheme "dorefa" has no level at zero, so that no weight would stay '
            'zero: choose scheme "integer", or cut channels instead.'
        )


def check_norms(flow: Flow, layers: Iterable[str]) -> None:
    """Raises QuantizeError unless whatever each layer computes goes through a batch norm before it is used."""
    # Of a layer within a module that has no graph, nothing is known of what follows it.
    bare = [
        name
        for name in layers
        if not (calls := _calls(flow, name)) or not all(_reaches_norm(node, flow) for node in calls)
    ]
    if bare:
        raise QuantizeError(
            f'No batch norm follows {told(sorted(bare))}, and the weights of scheme "dorefa" span [-1, 1] in every '
            "layer, whatever their size was: turn on rescale, which gives each layer its mean size back, or "
            "leave these layers float by overrides."
        )


def _calls(flow: Flow, name: str) -> list[fx.Node]:
    return [node for node in flow.nodes if flow.layer(node) == name]


def _reaches_norm(node: fx.Node, flow: Flow) -> bool:
    def is_norm(user: fx.Node) -> bool:
        return user.op == "call_module" and isinstance(flow.modules[str(user.target)], _BatchNorm)

    users = list(node.users)
    return bool(users) and all(
        is_norm(user) or (moves(user, flow.modules) and _reaches_norm(user, flow)) for user in users
    )


def placed(
    groups: list[ScaleGroup],
    flow: Flow,
    kept_float: frozenset[str],
    *,
    with_signed: bool,
    with_pooled: bool,
) -> list[ScaleGroup]:
    """The groups that DoReFa quantizes: what quantized layers read; other operations compute in float.

    with_signed: also signed values, and the summands of what is quantized, so that sums are of integers [ours]
    with_pooled: with these also what is averaged for a quantized last layer, so that the last sum is of integers
                 [ours]

    So the input of a residual block (what both its ways read) and what lies between its layers are quantized,
    and the last block's output, which is pooled, is not, unless the last layer is quantized.
    """

    def is_read(group: ScaleGroup) -> bool:
        return any(_reads(user, flow, kept_float) for user in group.readers)

    taken = [group for group in groups if is_read(group) and (group.is_unsigned or with_signed)]
    last = {node for group in taken if group.is_outermost and with_pooled for node in group.members}

    def is_summand(group: ScaleGroup, made: set[fx.Node]) -> bool:
        return any(
            (combines(user) and user in made) or (averages(user, flow.modules) and user in last)
            for user in group.readers
        )

    while with_signed:
        made = {node for group in taken for node in group.members}
        summands = [group for group in groups if group not in taken and is_summand(group, made)]
        if not summands:
            break
        taken += summands
    return [group for group in groups if group in taken]


def _reads(node: fx.Node, flow: Flow, kept_float: frozenset[str]) -> bool:
    layer = flow.layer(node)
    return layer is not None and layer not in kept_float


def tell_signed(
    groups: list[ScaleGroup], flow: Flow, kept_float: frozenset[str], note: Callable[[str], None]
) -> None:
    """Name the quantized layers that go on reading float, because DoReFa's activations hold nothing negative."""
    readers = {
        str(user.target)
        for group in groups
        for user in group.readers
        if not group.is_unsigned and _reads(user, flow, kept_float)
    }
    if readers:
        note(
            f"these layers read float: what they read can be negative, which DoReFa cuts off: {told(sorted(readers))}"
        )

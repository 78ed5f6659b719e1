"""The log of changes that a model carries, and the two things every change needs: a safe copy, permanent masks.

A change (a mask, attached layers, quantized layers, ...) lives inside the model. Each verb appends one entry
to the model's log: plain JSON that says what was done, to which layers, and to which shapes, so that the same
change can be made again on a fresh model before its weights are loaded.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from compress_aug.errors import ModelError

LogEntry = dict[str, Any]

_LOG = "surgery_log"


def surgery_log(model: nn.Module) -> list[LogEntry]:
    """What was done to this model, oldest first. A copy: only `record` appends.

    >>> surgery_log(nn.Linear(2, 2))
    []
    """
    return copy.deepcopy(model.__dict__.get(_LOG, []))


def record(model: nn.Module, verb: str, **arguments: Any) -> None:
    """Append one entry to the model's log. Arguments must be plain JSON (numbers, text, lists, dicts).

    >>> layer = nn.Linear(2, 2)
    >>> record(layer, "mask", layers={"": [2, 2]})
    >>> surgery_log(layer)
    [{'verb': 'mask', 'layers': {'': [2, 2]}}]
    """
    entry = json.loads(json.dumps({"verb": verb, **arguments}))
    model.__dict__.setdefault(_LOG, []).append(entry)


def replace_log(model: nn.Module, log: list[LogEntry]) -> None:
    """Give the model this log: for a verb that returns a new module object, and for undoing an entry."""
    model.__dict__[_LOG] = copy.deepcopy(log)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with the model, masks and log included.

    `copy.deepcopy` raises on a model with `torch.nn.utils.prune` masks once it has run forward, because the
    masked weight is then the result of an operation. Here that tensor is copied by its value.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in module.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def freeze(model: nn.Module) -> nn.Module:
    """Eval mode, no gradients: how a kept teacher lives on. Changes the model and returns it."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def masked_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers, by name, whose weight carries a mask of `torch.nn.utils.prune`."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "weight_mask")}


def make_permanent(model: nn.Module) -> nn.Module:
    """Fold every mask into its weight: plain parameters with zeros. Changes the model and returns it.

    The zeros no longer hold through training; for tools that know no masks. Logged, if there was a mask.
    """
    masked = list(masked_layers(model))
    fold_masks(model)
    if masked:
        record(model, "make_permanent", layers=masked)
    return model


def fold_masks(model: nn.Module) -> nn.Module:
    """`make_permanent` for a step in between, which the log need not know of."""
    for module in masked_layers(model).values():
        prune.remove(module, "weight")  # type: ignore[no-untyped-call, unused-ignore]
    return model


def layer_shapes(model: nn.Module, names: list[str]) -> dict[str, list[int]]:
    """The weight shape of each named layer, for a log entry."""
    modules = dict(model.named_modules())
    shapes = {}
    for name in names:
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        shapes[name] = list(weight.shape)
    return shapes


def check_shapes(model: nn.Module, shapes: dict[str, list[int]], verb: str) -> None:
    """Refuse a base model that is not the one a log entry was written for.

    Raises ModelError that names the first layer which is missing or has another shape.
    """
    modules = dict(model.named_modules())
    for name, shape in shapes.items():
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor):
            raise ModelError(
                f'The log says "{verb}" of layer "{name}", but this model has no such layer: '
                "give the model that the checkpoint was made from."
            )
        if list(weight.shape) != shape:
            raise ModelError(
                f'Layer "{name}" has a weight of shape {list(weight.shape)}, the log of "{verb}" was written '
                f"for {shape}: give the model that the checkpoint was made from."
            )


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def without_fast_attention() -> Iterator[None]:
    """Let torch's transformer layers run as the layers that they hold, not as one operation of their own."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)

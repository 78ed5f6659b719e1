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

# Weights that torch's attention holds itself, and the layer that each of them becomes where attention is taken apart.
_PROJECTIONS = {f"{layer}_weight": layer for layer in ("in_proj", "q_proj", "k_proj", "v_proj")}


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
    """The layers, by name, whose weight carries a mask of `torch.nn.utils.prune`, projections of attention included."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        found |= {**attention_projections(module, name), name: module}
    return {name: module for name, module in found.items() if hasattr(module, "weight_mask")}


def attention_projections(module: nn.Module, name: str) -> dict[str, nn.Module]:
    """The projections that `nn.MultiheadAttention` computes from weights of its own, as linear layers by name.

    Each is a view, made for this call: it holds the very parameter (and mask) of the attention, so that a change of
    their values is one of the attention. It is never called, and nothing else of it reaches the attention: masks go
    to what `holder_of` tells. No other module has any.

    >>> list(attention_projections(nn.MultiheadAttention(8, 2), "attn"))
    ['attn.in_proj']
    """
    if not isinstance(module, nn.MultiheadAttention):
        return {}
    prefix = f"{name}." if name else ""
    weights = {layer: key for key, layer in _PROJECTIONS.items() if getattr(module, key, None) is not None}
    return {f"{prefix}{layer}": _view(module, key) for layer, key in weights.items()}


def _view(module: nn.MultiheadAttention, key: str) -> nn.Linear:
    weight: Tensor = getattr(module, key)
    view: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta").train(module.training)
    del view.weight
    for end in ("", "_orig"):
        if isinstance(held := getattr(module, f"{key}{end}", None), Tensor):
            setattr(view, f"weight{end}", held)
    if hasattr(module, f"{key}_mask"):
        view.register_buffer("weight_mask", getattr(module, f"{key}_mask"))
    return view  # type: ignore[no-any-return]


def holder_of(model: nn.Module, layer: str) -> tuple[nn.Module | None, str]:
    """The module that holds a layer's weight, and under which name: the layer itself, "weight", or its attention.

    None for a name that no module has.

    >>> holder_of(nn.MultiheadAttention(8, 2), "in_proj")[1]
    'in_proj_weight'
    """
    modules = dict(model.named_modules())
    parent, _, last = layer.rpartition(".")
    if layer not in modules and isinstance(modules.get(parent), nn.MultiheadAttention):
        return modules[parent], f"{last}_weight"
    return modules.get(layer), "weight"


def masked_layer(key: str) -> str | None:
    """The layer that a key of a state dict is the mask of; None if it is none.

    >>> masked_layer("conv.weight_mask"), masked_layer("attn.in_proj_weight_mask"), masked_layer("conv.weight")
    ('conv', 'attn.in_proj', None)
    """
    parent, _, last = key.rpartition(".")
    weight = last.removesuffix("_mask")
    if last == weight or weight not in ("weight", *_PROJECTIONS):
        return None
    return ".".join(filter(None, (parent, _PROJECTIONS.get(weight))))


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
    for name in masked_layers(model):
        prune.remove(*holder_of(model, name))  # type: ignore[no-untyped-call, unused-ignore]
    return model


def layer_shapes(model: nn.Module, names: list[str]) -> dict[str, list[int]]:
    """The weight shape of each named layer, for a log entry."""
    shapes = {}
    for name in names:
        weight = getattr(*holder_of(model, name))
        assert isinstance(weight, Tensor)
        shapes[name] = list(weight.shape)
    return shapes


def check_shapes(model: nn.Module, shapes: dict[str, list[int]], verb: str) -> None:
    """Refuse a base model that is not the one a log entry was written for.

    Raises ModelError that names the first layer which is missing or has another shape.
    """
    for name, shape in shapes.items():
        weight = getattr(*holder_of(model, name), None)
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

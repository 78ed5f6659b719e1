"""Follow a model by parts: what has a graph gets one, what has none stays whole and is quantized layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress_aug.quantization.attention import open_attention, use_products_for_attention
from compress_aug.quantization.functional_layers import use_layers_for_calls
from compress_aug.quantization.graph import (
    QUANTIZABLE,
    QuantizedModel,
    Untraceable,
    outermost,
    traced,
)
from compress_aug.quantization.layerwise import why_float
from compress_aug.quantization.rewriting import use_products_for_silu
from compress_aug.quantization.scale_groups import Flow
from compress_aug.quantization.split_norms import split_norms
from compress_aug.surgery import copy_model, without_fast_attention

_NO_LAYER = (
    "it does not run as a layer on the example: it lies in a branch that this input does not take, or what holds it "
    "reads its weight itself or calls it by keyword"
)

# How far a graph's values may lie from the model's, as a share of the largest one: they differ by rounding only.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Followed:
    """A model that was followed as far as it could be.

    model: a graph of the model; or the model itself, if its own forward has none
    kept:  name -> why, of the modules without a graph, quantized layer by layer; "" is the whole model
    notes: one sentence for each thing that is quantized in another way than the rest
    """

    model: nn.Module
    kept: dict[str, str]
    notes: list[str] = field(default_factory=list)


def follow(model: nn.Module, example: Tensor, kept: Mapping[str, str] | None = None) -> Followed:
    """A copy of the model in evaluation mode as a graph, in which some modules may be kept whole.

    example: float (1, C, H, W)
    kept:    what a former call found. Else, what cannot be followed is found out, also by comparing what the
             graph and the model make of the example: a write into a part of a tensor leaves no trace in a graph
    """
    found = dict(kept or {})
    while True:
        copied = copy_model(model).eval()
        with without_fast_attention():
            notes = [*split_norms(copied), *open_attention(copied, example)]
        if "" in found:
            return Followed(copied, found, notes)
        try:
            graph_model, found = traced(copied, found)
        except Untraceable as reason:
            found = {"": str(reason)}
            continue
        notes += use_layers_for_calls(graph_model)
        notes += use_products_for_attention(graph_model, Flow(graph_model, example).shapes)
        use_products_for_silu(graph_model)
        notes += _left_out(copied, graph_model, found)
        wrong = None if kept is not None else _first_difference(model, graph_model, example)
        if wrong is None:
            return Followed(graph_model, found, notes)
        reason_why = "its graph computes something else; it may write into a tensor that has two names"
        while wrong in found:
            # Kept whole, it is still wrong: so is what it was given.
            wrong = wrong.rpartition(".")[0]
        found = outermost({**found, wrong: reason_why}) if wrong else {"": reason_why}


def _left_out(model: nn.Module, graph_model: QuantizedModel, kept: Mapping[str, str]) -> list[str]:
    present = {id(parameter) for parameter in graph_model.parameters()}
    gone = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, QUANTIZABLE) and not any(id(p) in present for p in layer.parameters())
    ]
    if not gone:
        return []
    shown = ", ".join(f'"{name}"' for name in gone[:3]) + (f" and {len(gone) - 3} more" if gone[3:] else "")
    return [f"left out, because evaluation does not run them: {shown}"]


@torch.no_grad()
def _first_difference(model: nn.Module, graph_model: QuantizedModel, example: Tensor) -> str | None:
    """The first module whose value the graph gets wrong; "" if only the end shows it, None if all are right."""
    names = [str(node.target) for node in graph_model.graph.nodes if node.op == "call_module"]
    expected = _values(copy_model(model).eval(), names, example)
    found = _values(graph_model, names, example)
    if not _differ(found[""], expected[""]):
        return None
    return next((name for name in found if name in expected and _differ(found[name], expected[name])), "")


def _values(model: nn.Module, names: list[str], example: Tensor) -> dict[str, Any]:
    """What each named module makes of the example at its first call, in the order of their ends; "" is the model."""
    values: dict[str, Any] = {}
    modules = dict(model.named_modules())

    def keep(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                # A copy, because the next operation may write into it.
                values.setdefault(name, output.clone())

        return note

    handles = [modules[name].register_forward_hook(keep(name)) for name in names if name in modules]
    try:
        with without_fast_attention():
            values[""] = model(example)
    finally:
        for handle in handles:
            handle.remove()
    return values


def _differ(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is not type(other)
    if one.shape != other.shape:
        return True
    if not bool(torch.isfinite(other).all()):
        # Nothing can be told from values that are no numbers.
        return False
    difference, largest = float((one - other).abs().max()), float(other.abs().max())
    return not difference <= _TOLERANCE * largest + 1e-6


def kept_notes(flow: Flow, kept: Mapping[str, str]) -> list[str]:
    """For each module that is kept whole: how its layers are quantized and why so; then the layers left float."""
    notes = []
    for name, reason in kept.items():
        part = f'module "{name}"' if name else type(flow.model).__name__
        layers = flow.inner.get(name, [])
        if layers:
            shown = ", ".join(f'"{layer}"' for layer in layers)
            notes.append(f"{part} is quantized layer by layer ({shown}): {reason}")
        else:
            notes.append(f"{part} is kept as it is: {reason}")
    for name, layer in flow.modules.items():
        if isinstance(layer, QUANTIZABLE) and name not in flow.layers:
            why = why_float(layer) or _NO_LAYER
            notes.append(f'layer "{name}" stays float: {why}')
    return notes

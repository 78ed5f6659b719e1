"""Attention as projections, products and a softmax, each of which can be quantized by itself."""

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import prune

from compress_aug.quantization.ops import MULTIPLY, PRODUCTS
from compress_aug.surgery import attention_projections

Shapes = dict[fx.Node, torch.Size]


class Attention(nn.Module):
    """`nn.MultiheadAttention` in plain layers, with its very parameters; the projections in are one layer if it can be.

    The scores are scaled after the product and not before it [our decision: queries then reach the product
    on the grid that their projection left them on; equal but for the rounding of floats].
    """

    # torch's transformer layers ask for these two to find out that their own fast path is not for us.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, whole: nn.MultiheadAttention, of_itself: bool) -> None:
        """of_itself: queries, keys and values are always one and the same tensor."""
        super().__init__()
        self.num_heads, self.head_dim = whole.num_heads, whole.head_dim
        self.batch_first = whole.batch_first
        bias = whole.in_proj_bias
        projections = attention_projections(whole, "")
        if of_itself and "in_proj" in projections:
            self.in_proj = _linear(projections["in_proj"], bias)
        else:
            parts = _thirds(projections["in_proj"]) if "in_proj" in projections else projections.values()
            biases = (None, None, None) if bias is None else bias.chunk(3)
            self.q_proj, self.k_proj, self.v_proj = map(_linear, parts, biases)
        self.dropout = nn.Dropout(whole.dropout)
        self.out_proj = whole.out_proj
        self.train(whole.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query, key, value: (N, L, E) or, without `batch_first`, (L, N, E). As in `nn.MultiheadAttention`.

        `is_causal` is a hint there that comes with the mask, which is what counts here.
        """
        queries, keys, values = self._projected(query, key, value)
        scores = torch.matmul(self._heads(queries), self._heads(keys).transpose(-2, -1))
        scores = scores * (1 / math.sqrt(self.head_dim))
        if attn_mask is not None:
            # (L, S), or (N x heads, L, S)
            per_head = attn_mask.dim() == 3
            scores = _masked(
                scores, _unflattened(attn_mask, 0, (-1, self.num_heads)) if per_head else attn_mask
            )
        if key_padding_mask is not None:
            scores = _masked(scores, key_padding_mask[:, None, None, :])
        shares = self.dropout(functional.softmax(scores, dim=-1))
        mixed = torch.matmul(shares, self._heads(values)).transpose(1, 2).flatten(2)
        outputs = self.out_proj(mixed if self.batch_first else mixed.transpose(0, 1))
        if not need_weights:
            return outputs, None
        return outputs, shares.mean(dim=1) if average_attn_weights else shares

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if hasattr(self, "in_proj"):
            queries, keys, values = self.in_proj(query).chunk(3, dim=-1)
            return queries, keys, values
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)

    def _heads(self, projected: Tensor) -> Tensor:
        """(N, L, E) or (L, N, E) -> (N, heads, L, head size)"""
        batch_first = projected if self.batch_first else projected.transpose(0, 1)
        return _unflattened(batch_first, -1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _unflattened(values: Tensor, axis: int, sizes: tuple[int, int]) -> Tensor:
    # torch leaves this method without types.
    parts: Tensor = values.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return parts


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


def _thirds(packed: Any) -> list[Any]:
    """The projections of queries, keys and values, which share one weight (and mask)."""
    held = packed.weight_orig if hasattr(packed, "weight_mask") else packed.weight
    parts: list[Any] = []
    for place, weight in enumerate(held.chunk(3)):
        part: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        part.weight = _parameter(weight)
        if hasattr(packed, "weight_mask"):
            part.weight_orig, part.weight_mask = part.weight, packed.weight_mask.chunk(3)[place]
        parts.append(part)
    return parts


def _linear(projection: Any, bias: Tensor | None) -> nn.Linear:
    """A layer with the very weight of this one, under its mask if it has one."""
    masked = hasattr(projection, "weight_mask")
    weight = projection.weight_orig if masked else projection.weight
    made: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = _parameter(weight)
    if bias is not None:
        made.bias = _parameter(bias)
    if masked:
        prune.custom_from_mask(made, "weight", projection.weight_mask)  # type: ignore[no-untyped-call, unused-ignore]
    return made  # type: ignore[no-any-return]


def _parameter(tensor: Tensor) -> nn.Parameter:
    """The tensor if it is a parameter, else a copy of this part of one."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)


@torch.no_grad()
def open_attention(model: nn.Module, example: Tensor) -> list[str]:
    """Replace each `nn.MultiheadAttention` that the example runs through by an `Attention`; says what was done."""
    seen: dict[str, list[tuple[Tensor, ...]]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            handles.append(module.register_forward_pre_hook(_noting(seen, name), with_kwargs=True))
    if not handles:
        return []
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    opened, notes = [], []
    for name, calls in seen.items():
        whole = model.get_submodule(name)
        assert isinstance(whole, nn.MultiheadAttention)
        if reason := _why_closed(whole, calls):
            notes.append(f'attention "{name}" stays float: {reason}')
            continue
        of_itself = all(query is key is value for query, key, value in calls)
        model.set_submodule(name, Attention(whole, of_itself))
        opened.append(name)
    if opened:
        places = _listed(opened)
        notes.append(f"attention is quantized as projections, products and a softmax: {places}")
    return notes


def _noting(seen: dict[str, list[tuple[Tensor, ...]]], name: str) -> Any:
    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        seen.setdefault(name, []).append((given["query"], given["key"], given["value"]))

    return note


def _why_closed(whole: nn.MultiheadAttention, calls: list[tuple[Tensor, ...]]) -> str:
    if type(whole).forward is not nn.MultiheadAttention.forward:
        return "it has a forward of its own"
    if whole.bias_k is not None or whole.add_zero_attn:
        return "it adds keys of its own (add_bias_kv, add_zero_attn)"
    if any(query.dim() != 3 for query, _, _ in calls):
        return "its inputs have no batch axis"
    return ""


def _listed(names: list[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


_FUSED = functional.scaled_dot_product_attention
_FUSED_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def use_products_for_attention(model: fx.GraphModule, shapes: Shapes) -> list[str]:
    """Write `scaled_dot_product_attention` as products and a softmax; says where it cannot be."""
    notes = []
    for node in list(model.graph.nodes):
        if node.op != "call_function" or node.target is not _FUSED:
            continue
        given = dict(zip(_FUSED_ARGUMENTS, node.args, strict=False)) | node.kwargs
        reason = _why_fused(model, given, shapes)
        if reason:
            notes.append(f'"{node.name}" (scaled_dot_product_attention) stays float: {reason}')
            continue
        with model.graph.inserting_before(node):
            made = _unfused(model, node, given, shapes)
        node.replace_all_uses_with(made)
        model.graph.erase_node(node)
    _scale_after_products(model)
    model.recompile()
    return notes


def _why_fused(model: fx.GraphModule, given: dict[str, Any], shapes: Shapes) -> str:
    if given.get("is_causal") or given.get("enable_gqa"):
        return "it is causal, or shares keys between heads"
    if given.get("attn_mask") is not None and not _is_float(model, given["attn_mask"], shapes):
        return "its mask is not of floats"
    return "" if given["query"] in shapes else "its queries are no tensor of floats"


def _is_float(model: fx.GraphModule, node: fx.Node, shapes: Shapes) -> bool:
    if node.op == "get_attr":
        return bool(operator.attrgetter(str(node.target))(model).is_floating_point())
    return node in shapes


def _unfused(model: fx.GraphModule, node: fx.Node, given: dict[str, Any], shapes: Shapes) -> fx.Node:
    graph = model.graph
    factor = given.get("scale") or 1 / math.sqrt(shapes[given["query"]][-1])
    keys = graph.call_function(torch.transpose, (given["key"], -2, -1))
    scores = graph.call_function(torch.matmul, (given["query"], keys))
    scores = graph.call_function(operator.mul, (scores, factor))
    if given.get("attn_mask") is not None:
        scores = graph.call_function(operator.add, (scores, given["attn_mask"]))
    shares = graph.call_function(functional.softmax, (scores,), {"dim": -1})
    if given.get("dropout_p"):
        shares = graph.call_function(functional.dropout, (shares, given["dropout_p"], True))
    return graph.call_function(torch.matmul, (shares, given["value"]))


def _scale_after_products(model: fx.GraphModule) -> None:
    """Write (q x number) @ k as (q @ k) x number, so that the product reads q on the grid it lies on."""
    for product in [node for node in model.graph.nodes if node.target in PRODUCTS]:
        for place, factor, scaled in list(_scaled_inputs(product)):
            product.update_arg(place, factor.all_input_nodes[0])
            with model.graph.inserting_after(product):
                made = model.graph.call_function(operator.mul, (product, scaled))
            product.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)
            model.graph.erase_node(factor)


def _scaled_inputs(product: fx.Node) -> Iterator[tuple[int, fx.Node, float]]:
    for place, source in enumerate(product.args[:2]):
        if not isinstance(source, fx.Node) or len(source.users) != 1 or source.target not in MULTIPLY:
            continue
        numbers = [value for value in source.args if isinstance(value, int | float)]
        if len(numbers) == 1 and len(source.all_input_nodes) == 1:
            yield place, source, float(numbers[0])

"""Where quantizers go: values that only move share one scale, and each group of them gets one quantizer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from compress_aug.quantization.graph import QUANTIZABLE, QuantizedModel
from compress_aug.quantization.layerwise import in_order, why_float
from compress_aug.quantization.ops import (
    Scope,
    has_integer_kernel,
    moves,
    multiplies_matrices,
    never_negative,
    rectifies,
)


@dataclass(frozen=True)
class ScaleGroup:
    """Values that lie on one grid, because between them nothing computes.

    sites:        the nodes whose output is quantized, in the order of execution
    is_unsigned:  none of the values can be negative
    is_outermost: the network's input is among them, or a last layer reads them
    members:      all nodes whose values these are
    """

    sites: tuple[fx.Node, ...]
    is_unsigned: bool
    is_outermost: bool
    members: tuple[fx.Node, ...]

    @property
    def readers(self) -> set[fx.Node]:
        """The nodes that read any of the values."""
        return {user for node in self.members for user in node.users}


class Flow:
    """What flows between the nodes of a graph: which values are float tensors, which are only moved.

    shapes:   node -> shape of its float tensor, for the example given
    inner:    name of a module that is kept whole -> its Conv and Linear layers that can be quantized one by one, in
              the order in which they run. A model without a graph is kept whole itself, under the name ""
    constant: nodes whose float values depend on no image
    movers:   nodes that move values without computing
    absorbed: ReLU -> the node it rectifies, where it is the only reader; they are quantized as one. A batch norm
              that `norms` names -> the layer that it will be folded into, likewise
    """

    def __init__(
        self,
        graph_model: nn.Module,
        example: Tensor,
        norms: Iterable[str] = frozenset(),
        inner: Mapping[str, list[str]] | None = None,
    ) -> None:
        """inner: as an earlier flow found it; None to find it out with this example"""
        self.model = graph_model
        self.nodes: list[fx.Node] = []
        self.modules = dict(graph_model.named_modules())
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.tuples: set[fx.Node] = set()
        if isinstance(graph_model, QuantizedModel):
            self.nodes = list(graph_model.graph.nodes)
            recorder = _Recorder(graph_model)
            with torch.no_grad():
                recorder.run(example)
            self.shapes, self.tuples = recorder.shapes, recorder.tuples
        self.inner = self._inner_layers(graph_model, example) if inner is None else dict(inner)
        self.constant: set[fx.Node] = set()
        for node in self.nodes:
            if self._is_constant(node):
                self.constant.add(node)
        self.movers: set[fx.Node] = set()
        self.absorbed: dict[fx.Node, fx.Node] = {}
        folded = frozenset(norms)
        for node in self.nodes:
            if self._only_moves(node):
                self.movers.add(node)
            elif rectifies(node, self.modules) or node.target in folded:
                self._absorb(node)

    @property
    def layers(self) -> frozenset[str]:
        """The names of all Conv and Linear layers that run, those within modules that are kept whole included."""
        own = {name for name in map(self.layer, self.nodes) if name is not None}
        return frozenset(own.union(*self.inner.values()))

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose float values this one reads, constants left out."""
        return [source for source in node.all_input_nodes if source in self.shapes or source in self.tuples]

    def layer(self, node: fx.Node) -> str | None:
        """The name of the Conv or Linear layer that a node calls, if it calls one."""
        is_call = node.op == "call_module" and isinstance(self.modules[str(node.target)], QUANTIZABLE)
        return str(node.target) if is_call else None

    def computes_integers(self, node: fx.Node, kept_float: frozenset[str]) -> bool:
        """Whether runtimes have an integer kernel for a node, were its inputs and output quantized."""
        layer = self.layer(node)
        if layer is not None:
            return layer not in kept_float
        # With a constant that was never quantized, there is none.
        varying = self.constant.isdisjoint(node.all_input_nodes)
        return varying and has_integer_kernel(node, self.modules)

    def makes_integers(self, node: fx.Node, kept_float: frozenset[str]) -> bool:
        """Whether an integer kernel puts out integers; a product of matrices may as well put out floats.

        The scores of attention are such a product, and the softmax that reads them has no integer kernel: the
        rounding in between would cost resolution for nothing.
        """
        return self.computes_integers(node, kept_float) and not multiplies_matrices(node)

    def inner_of(self, node: fx.Node) -> list[str]:
        """The layers that a node quantizes one by one, if it calls a module that is kept whole."""
        return self.inner.get(str(node.target), []) if node.op == "call_module" else []

    def makes_tensor(self, node: fx.Node) -> bool:
        """Whether a node computes a float tensor of new values."""
        return node in self.shapes and node not in self.movers and node not in self.absorbed

    def _inner_layers(self, model: nn.Module, example: Tensor) -> dict[str, list[str]]:
        called = [str(node.target) for node in self.nodes if node.op == "call_module"] if self.nodes else [""]
        direct = {name for name in called if isinstance(self.modules[name], QUANTIZABLE)}
        if direct.issuperset(n for n, module in self.modules.items() if isinstance(module, QUANTIZABLE)):
            return {}
        inner: dict[str, list[str]] = {}
        for name in in_order(model, example):
            if name in direct or why_float(self.modules[name]):
                continue
            owner = next((o for o in called if o == "" or name.startswith(f"{o}.")), None)
            if owner is not None:
                inner.setdefault(owner, []).append(name)
        return inner

    def _is_constant(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return True
        if node.op == "placeholder" or node not in self.shapes:
            return False
        return self.constant.issuperset(self.sources(node))

    def _only_moves(self, node: fx.Node) -> bool:
        sources = self.sources(node)
        # An item of a tuple that some operation computed is a new value.
        computed = any(source in self.tuples and source not in self.movers for source in sources)
        is_value = node in self.shapes or node in self.tuples
        return is_value and bool(sources) and not computed and moves(node, self.modules)

    def _absorb(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        while len(source.users) == 1 and source in self.movers and self._is_scope(source):
            source = source.all_input_nodes[0]
        if len(source.users) == 1 and source not in self.movers and source.op != "placeholder":
            self.absorbed[node] = source

    def _is_scope(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], Scope)


class _Recorder(fx.Interpreter):
    """Runs the example and notes which nodes hold float tensors, alone or in a tuple."""

    def __init__(self, graph_model: QuantizedModel) -> None:
        super().__init__(graph_model)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.tuples: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.op in ("output", "get_attr"):
            return value
        if _is_float(value):
            self.shapes[n] = value.shape
        elif isinstance(value, tuple | list) and any(_is_float(part) for part in value):
            self.tuples.add(n)
        return value


def _is_float(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point()


def first_layers(flow: Flow) -> frozenset[str]:
    """The Conv and Linear layers that read the network's input with no such layer before them."""
    raw = {node for node in flow.nodes if node.op == "placeholder"}
    first = set()
    for node in flow.nodes:
        if raw.isdisjoint(flow.sources(node)):
            continue
        layer, inner = flow.layer(node), flow.inner_of(node)
        if layer is None and not inner:
            raw.add(node)
        else:
            first.add(inner[0] if layer is None else layer)
    return frozenset(first).union(flow.inner[""][:1] if "" in flow.inner else ())


def last_layers(flow: Flow) -> frozenset[str]:
    """The Conv and Linear layers whose values reach the network's output through no other such layer."""
    last: set[str] = set()
    reaching = [source for node in flow.nodes if node.op == "output" for source in flow.sources(node)]
    seen = set(reaching)
    while reaching:
        node = reaching.pop()
        layer, inner = flow.layer(node), flow.inner_of(node)
        if layer is not None or inner:
            last.add(inner[-1] if layer is None else layer)
            continue
        reaching += [source for source in flow.sources(node) if source not in seen]
        seen.update(reaching)
    return frozenset(last).union(flow.inner[""][-1:] if "" in flow.inner else ())


def scale_groups(flow: Flow, kept_float: frozenset[str]) -> list[ScaleGroup]:
    """The groups that need a quantizer, in the order of execution.

    kept_float: layers that compute in float, as if no integer kernel existed for them

    A group needs one if an operation with an integer kernel reads it, or makes it while another such
    operation comes later: what only leads to the output stays float. The two inputs of a sum keep
    their own scales [our decision: integer sums take two, and sharing would cost resolution].
    """
    last = last_layers(flow)
    nonnegative = _nonnegative(flow)
    leads = _leads_to_integers(flow, kept_float)
    rectified = {source: node for node, source in flow.absorbed.items()}
    groups = []
    for members in _moved_together(flow):
        made = [node for node in members if flow.makes_tensor(node)]
        readers = {user for node in members for user in node.users}
        is_read = any(flow.computes_integers(user, kept_float) for user in readers)
        is_made = any(flow.makes_integers(node, kept_float) for node in made)
        if not is_read and not (is_made and any(leads[node] for node in made)):
            continue
        sites = tuple(_end_of(node, rectified) for node in made)
        is_input = any(node.op == "placeholder" for node in made)
        is_outermost = is_input or any(flow.layer(user) in last for user in readers)
        is_unsigned = all(nonnegative[site] for site in sites)
        groups.append(ScaleGroup(sites, is_unsigned, is_outermost, tuple(members)))
    return groups


def _end_of(node: fx.Node, absorbing: dict[fx.Node, fx.Node]) -> fx.Node:
    """The last of the nodes that are quantized as one with this one."""
    while node in absorbing:
        node = absorbing[node]
    return node


def _nonnegative(flow: Flow) -> dict[fx.Node, bool]:
    known: dict[fx.Node, bool] = {}
    for node in flow.nodes:
        sources = [known[source] for source in flow.sources(node)]
        sources += [False for source in node.all_input_nodes if source.op == "get_attr"]
        known[node] = never_negative(node, sources, flow.modules)
    return known


def _leads_to_integers(flow: Flow, kept_float: frozenset[str]) -> dict[fx.Node, bool]:
    leads: dict[fx.Node, bool] = {}
    for node in reversed(flow.nodes):
        leads[node] = any(flow.computes_integers(user, kept_float) or leads[user] for user in node.users)
    return leads


def _moved_together(flow: Flow) -> list[list[fx.Node]]:
    """All float values, those linked by movement in one list (union-find), lists by their first node."""
    parent: dict[fx.Node, fx.Node] = {}
    parent |= {node: node for node in flow.nodes if node in flow.shapes or node in flow.tuples}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other in _links(flow):
        parent[find(other)] = find(one)
    lists: dict[fx.Node, list[fx.Node]] = {}
    for node in parent:
        lists.setdefault(find(node), []).append(node)
    return list(lists.values())


def _links(flow: Flow) -> Iterable[tuple[fx.Node, fx.Node]]:
    calls: dict[str, fx.Node] = {}
    for node in flow.nodes:
        if node in flow.movers or node in flow.absorbed:
            for source in flow.sources(node):
                yield source, node
        layer = flow.layer(node)
        if layer is not None and flow.sources(node):
            # A layer called twice has one bias, whose integer grid holds for one input scale only.
            first = calls.setdefault(layer, node)
            yield flow.sources(first)[0], flow.sources(node)[0]

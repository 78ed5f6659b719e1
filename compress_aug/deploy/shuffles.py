"""Channel shuffles folded into the weights that read them: pieces of channels go straight to where they are needed."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from compress_aug.deploy.graph import Array, Graph
from compress_aug.deploy.grid import DEQUANTIZE, grid_of

# A channel of the network, by the tensor that a layer gave it in and its place there.
_Channel = tuple[str, int]

# Behind how many pieces joined into one tensor the shuffle is cheaper.
_MOST_PIECES = 12


def fold_shuffles(graph: Graph) -> int:
    """Take out Reshape -> Transpose -> Reshape that shuffle channels, with the Split and Concat around them.

    What a shuffle does to channels, and splits and joins do, is to rename them. So each tensor behind is made of the
    pieces of earlier ones that it holds, in another order, and the convolutions that read it get the inputs of their
    weights in that order. For any other reader a Gather restores the order.

    Needs fixed sizes (`fixed_shapes`) and integers that are moved (`move_data_as_integers`). Left alone are shuffles
    that a piece of which would be wanted twice, or that would need more pieces or Gathers than they are worth.

    Exact: integer sums do not depend on the order. Returns how many shuffles are gone.
    """
    gone = 0
    done: set[int] = set()
    for end in graph.nodes("Reshape"):
        if id(end) in done or _groups(graph, end) is None:
            continue
        area = _Area(graph, end)
        done |= set(area.members)
        gone += area.fold()
    return gone


def _groups(graph: Graph, end: NodeProto) -> int | None:
    """Into how many groups a shuffle that ends with this Reshape parts the channels; None if it is none."""
    transpose = graph.maker(end.input[0], "Transpose")
    start = None if transpose is None else graph.maker(transpose.input[0], "Reshape")
    if transpose is None or start is None or _attribute(transpose, "perm") != [0, 2, 1, 3, 4]:
        return None
    parted, whole = graph.constant(start.input[1]), graph.constant(end.input[1])
    if parted is None or whole is None or (parted.size, whole.size) != (5, 4) or parted[0] or whole[0]:
        return None
    if min(*parted[1:], *whole[1:]) < 1 or whole[1] != parted[1] * parted[2] or any(parted[3:] != whole[2:]):
        return None
    inner = (transpose.output[0], start.output[0])
    if any(graph.is_output(name) or len(graph.readers(name)) != 1 for name in inner):
        return None
    return int(parted[1])


def _attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    found = [a for a in node.attribute if a.name == name]
    return helper.get_attribute_value(found[0]) if found else default


@dataclass
class _Demand:
    """A tensor behind shuffles that something other than a shuffle, a split or a join reads: its channels."""

    tensor: str
    channels: list[_Channel]
    readers: list[NodeProto]
    pieces: list[tuple[str, int, int]] = field(default_factory=list)


class _Area:
    """What hangs together around a shuffle through splits and joins of channels.

    members: by their ids, the nodes that only rename channels; a shuffle by its last one
    """

    def __init__(self, graph: Graph, end: NodeProto) -> None:
        self.graph = graph
        self.members: dict[int, NodeProto] = {}
        pending = [end]
        while pending:
            node = pending.pop()
            if id(node) in self.members or not self._renames(node):
                continue
            self.members[id(node)] = node
            for tensor in self._sources(node):
                maker = graph.maker(tensor)
                pending += [] if maker is None else [maker]
                pending += self._readers(tensor)
            for tensor in node.output:
                pending += self._readers(tensor)
        self._channels: dict[str, list[_Channel]] = {}
        self._roots: dict[str, int] = {}

    def fold(self) -> int:
        """Returns how many shuffles are gone."""
        graph = self.graph
        shuffles = [node for node in self.members.values() if node.op_type == "Reshape"]
        demands = self._demands()
        if not demands or not self._find_pieces(demands):
            return 0
        restored = [(demand, *self._parted(demand.readers)) for demand in demands]
        if sum(bool(others) for _, _, others in restored) >= len(shuffles):
            return 0
        pieces = self._split()
        for demand, layers, others in restored:
            joined = [pieces[piece] for piece in demand.pieces]
            made = joined[0]
            if len(joined) > 1:
                made = graph.add_node("Concat", joined, demand.tensor, axis=1)
            order = _order(demand)
            for dequantize, convolutions in layers:
                real = graph.add_node(DEQUANTIZE, [made, *dequantize.input[1:]], dequantize.output[0])
                for node in convolutions:
                    self._permute(node, order)
                    graph.rewire(node, 0, real)
            if others:
                back = graph.add_constant(np.argsort(order), demand.tensor)
                ordered = graph.add_node("Gather", [made, back], demand.tensor, axis=1)
                for node in others:
                    # A layer that reads through the same DequantizeLinear has another one by now.
                    graph.rewire(node, list(node.input).index(demand.tensor), ordered)
        return len(shuffles)

    def _renames(self, node: NodeProto) -> bool:
        graph = self.graph
        if any(graph.is_output(tensor) for tensor in node.output):
            return False
        if node.op_type == "Concat":
            return bool(_attribute(node, "axis") == 1)
        if node.op_type == "Split":
            sizes = graph.constant(node.input[1]) if len(node.input) > 1 else None
            return _attribute(node, "axis", 0) == 1 and sizes is not None
        return node.op_type == "Reshape" and _groups(graph, node) is not None

    def _sources(self, node: NodeProto) -> list[str]:
        if node.op_type == "Concat":
            return list(node.input)
        if node.op_type == "Split":
            return [node.input[0]]
        transpose = self.graph.maker(node.input[0])
        start = None if transpose is None else self.graph.maker(transpose.input[0])
        assert start is not None
        return [start.input[0]]

    def _readers(self, tensor: str) -> list[NodeProto]:
        """The readers, where a shuffle begins the node with which it ends."""
        found = []
        for node in self.graph.readers(tensor):
            last = node
            for kind in ("Transpose", "Reshape"):
                after = self.graph.readers(last.output[0])
                last = after[0] if len(after) == 1 and after[0].op_type == kind else node
            is_start = node.op_type == "Reshape" and last is not node and self._renames(last)
            found.append(last if is_start else node)
        return found

    def _of(self, tensor: str) -> list[_Channel] | None:
        """The channels of a tensor; None if it is not known how many there are."""
        if tensor in self._channels:
            return self._channels[tensor]
        maker = self.graph.maker(tensor)
        if maker is None or id(maker) not in self.members:
            number = _made_channels(self.graph, tensor)
            if number is None:
                return None
            self._roots[tensor] = number
            found: list[_Channel] | None = [(tensor, place) for place in range(number)]
        else:
            sources = [self._of(source) for source in self._sources(maker)]
            found = None if any(one is None for one in sources) else self._renamed(maker, tensor, sources)
        if found is not None:
            self._channels[tensor] = found
        return found

    def _renamed(self, node: NodeProto, tensor: str, sources: list[Any]) -> list[_Channel] | None:
        every = [channel for source in sources for channel in source]
        if node.op_type == "Concat":
            return every
        if node.op_type == "Split":
            sizes = self.graph.constant(node.input[1])
            assert sizes is not None
            place = list(node.output).index(tensor)
            start = int(sizes[:place].sum())
            return every[start : start + int(sizes[place])] if sizes.sum() == len(every) else None
        groups = _groups(self.graph, node)
        if groups is None or len(every) % groups:
            return None
        many = len(every) // groups
        return [every[group * many + place] for place in range(many) for group in range(groups)]

    def _demands(self) -> list[_Demand]:
        """What is read outside of the area; none if some of it cannot be followed."""
        tensors = dict.fromkeys(t for node in self.members.values() for t in self._sources(node))
        tensors |= dict.fromkeys(t for node in self.members.values() for t in node.output)
        found = []
        for tensor in tensors:
            channels = self._of(tensor)
            if channels is None:
                return []
            if tensor in self._roots:
                # Whoever else reads it whole goes on doing so.
                continue
            starts = zip(self.graph.readers(tensor), self._readers(tensor), strict=True)
            outside = [node for node, last in starts if id(last) not in self.members]
            if outside:
                found.append(_Demand(tensor, channels, outside))
        return found

    def _find_pieces(self, demands: list[_Demand]) -> bool:
        """Cut what enters the area where one channel goes elsewhere than the next; False if that is not worth it."""
        wanted: dict[_Channel, list[int]] = {}
        for number, demand in enumerate(demands):
            if len(set(demand.channels)) != len(demand.channels):
                return False
            for channel in demand.channels:
                wanted.setdefault(channel, []).append(number)
        self._pieces: dict[str, list[tuple[str, int, int]]] = {}
        for root, number in self._roots.items():
            goes = [wanted.get((root, place), []) for place in range(number)]
            starts = [place for place in range(number) if place == 0 or goes[place] != goes[place - 1]]
            ends = [*starts[1:], number]
            self._pieces[root] = [(root, *ends_) for ends_ in zip(starts, ends, strict=True)]
            for piece in self._pieces[root]:
                for one in goes[piece[1]]:
                    demands[one].pieces.append(piece)
        return all(0 < len(demand.pieces) <= _MOST_PIECES for demand in demands)

    def _split(self) -> dict[tuple[str, int, int], str]:
        """The tensor of each piece."""
        made: dict[tuple[str, int, int], str] = {}
        for root, pieces in self._pieces.items():
            if len(pieces) == 1:
                made[pieces[0]] = root
                continue
            sizes = np.array([end - start for _, start, end in pieces], np.int64)
            names = self.graph.add_split(root, self.graph.add_constant(sizes, root), len(pieces), axis=1)
            made |= dict(zip(pieces, names, strict=True))
        return made

    def _parted(
        self, readers: list[NodeProto]
    ) -> tuple[list[tuple[NodeProto, list[NodeProto]]], list[NodeProto]]:
        """The convolutions that can read in any order, with what they read through; and all other readers."""
        layers, others = [], []
        for node in readers:
            behind = self.graph.readers(node.output[0]) if node.op_type == DEQUANTIZE else []
            free = [layer for layer in behind if self._is_free(layer, node)]
            if free:
                layers.append((node, free))
            if len(free) < len(behind) or not behind or self.graph.is_output(node.output[0]):
                others.append(node)
        return layers, others

    def _is_free(self, layer: NodeProto, dequantize: NodeProto) -> bool:
        """Whether a layer is a convolution over all channels, whose weight is constant."""
        grid = grid_of(self.graph, dequantize)
        weight = self.graph.maker(layer.input[1], DEQUANTIZE) if len(layer.input) > 1 else None
        return (
            layer.op_type == "Conv"
            and _attribute(layer, "group", 1) == 1
            and layer.input[0] == dequantize.output[0]
            and (grid is not None and grid.scale.ndim == 0)
            and (weight is not None and self.graph.constant(weight.input[0]) is not None)
            and (weight is not None and _attribute(weight, "axis", 1) == 0)
        )

    def _permute(self, layer: NodeProto, order: Array) -> None:
        dequantize = self.graph.maker(layer.input[1])
        assert dequantize is not None
        weight = self.graph.constant(dequantize.input[0])
        assert weight is not None
        stored = self.graph.add_constant(np.ascontiguousarray(weight[:, order]), dequantize.input[0])
        real = self.graph.add_node(DEQUANTIZE, [stored, *dequantize.input[1:]], dequantize.output[0], axis=0)
        self.graph.rewire(layer, 1, real)


def _order(demand: _Demand) -> Array:
    """The place that each channel of the joined pieces had in the tensor."""
    places = {channel: place for place, channel in enumerate(demand.channels)}
    return np.array(
        [places[root, c] for root, start, end in demand.pieces for c in range(start, end)], np.int64
    )


def _made_channels(graph: Graph, tensor: str) -> int | None:
    """How many channels a tensor has that a convolution makes; None if it is not known."""
    maker = graph.maker(tensor)
    while maker is not None and maker.op_type in ("QuantizeLinear", "Clip", "Relu", "MaxPool"):
        maker = graph.maker(maker.input[0])
    if maker is None or maker.op_type != "Conv":
        return None
    stored = graph.maker(maker.input[1], DEQUANTIZE)
    weight = graph.constant(maker.input[1] if stored is None else stored.input[0])
    return None if weight is None else int(weight.shape[0])

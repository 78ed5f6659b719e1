"""An ONNX graph with its wires: which node makes a tensor, which ones read it, which tensors are constant."""

from itertools import count
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

Array = NDArray[Any]

# Inside quantizers and what unpacks weights: nobody looks for one of these by its name.
_NAMELESS = (
    *("DequantizeLinear", "Clip"),
    *("Cast", "Div", "Mod", "Gather", "Slice", "Reshape"),
)


class Graph:
    """The nodes of a model, their wires and constants, kept in step while nodes are rewired.

    Edits take effect in `model` with `finish`. A tensor is called by its name throughout.

    model:         the protobuf, which this graph owns from now on
    has_subgraphs: whether a node holds a graph of its own (If, Loop), whose wires are not seen here
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._nodes = list(model.graph.node)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {output.name for output in model.graph.output}
        self._made_by: dict[str, NodeProto] = {}
        self._read_by: dict[str, list[NodeProto]] = {}
        self._names = 0
        for node in self._nodes:
            self._connect(node)
        self.has_subgraphs = any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for node in self._nodes
            for attribute in node.attribute
        )

    def _connect(self, node: NodeProto) -> None:
        for tensor in node.output:
            self._made_by[tensor] = node
        # A node that reads a tensor twice (x + x) is listed once.
        for tensor in dict.fromkeys(node.input):
            self._read_by.setdefault(tensor, []).append(node)

    def _forget_reader(self, tensor: str, node: NodeProto) -> None:
        # Protobuf messages compare by value: two equal nodes must not be taken for one another.
        self._read_by[tensor] = [reader for reader in self._read_by.get(tensor, []) if reader is not node]

    def nodes(self, *kinds: str) -> list[NodeProto]:
        """The nodes of these operators as they stand now, in order; a list of its own, safe to edit along."""
        return [node for node in self._nodes if node.op_type in kinds]

    def maker(self, tensor: str, kind: str | None = None) -> NodeProto | None:
        """The node that computes the tensor, None for inputs and constants (or if not of this kind)."""
        node = self._made_by.get(tensor)
        return node if node is not None and kind in (None, node.op_type) else None

    def readers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read the tensor."""
        return list(self._read_by.get(tensor, []))

    def is_output(self, tensor: str) -> bool:
        """Whether the model hands the tensor to its caller."""
        return tensor in self._outputs

    def constant(self, tensor: str) -> Array | None:
        """The value of a constant tensor; None if it is computed."""
        found = self._constants.get(tensor)
        return None if found is None else numpy_helper.to_array(found)

    def new_name(self, near: str) -> str:
        """A tensor name that nothing bears yet, made from a name nearby."""
        taken = {*self._made_by, *self._constants}
        while True:
            self._names += 1
            name = f"{near}.{self._names}"
            if name not in taken:
                return name

    def add_constant(self, value: Array, near: str) -> str:
        """A constant with this value; returns its name. Constants are shared, so they are never edited."""
        return self.add_stored(numpy_helper.from_array(value), near)

    def add_stored(self, tensor: onnx.TensorProto, near: str) -> str:
        """A constant that is a tensor of ONNX already; returns its name."""
        tensor.name = self.new_name(near)
        self._constants[tensor.name] = tensor
        return tensor.name

    def add_node(self, kind: str, inputs: list[str], near: str, output: str = "", **attributes: Any) -> str:
        """A node with one output, called `output` or else by a new name; returns the output's name."""
        name = self.new_name(near)
        output = output or name
        node = helper.make_node(kind, inputs, [output], name=name, **attributes)
        self._nodes.append(node)
        self._connect(node)
        return output

    def add_split(self, tensor: str, sizes: str, number: int, axis: int) -> list[str]:
        """A Split into so many parts; returns their names."""
        names = [self.add_node("Split", [tensor, sizes], tensor, axis=axis)]
        node = self._made_by[names[0]]
        for _ in range(number - 1):
            names.append(self.new_name(tensor))
            node.output.append(names[-1])
            self._made_by[names[-1]] = node
        return names

    def rename_output(self, node: NodeProto, old: str, new: str) -> None:
        """Let the node make its output under another name; the old name waits for a new maker."""
        node.output[list(node.output).index(old)] = new
        self._made_by[new] = node
        del self._made_by[old]

    def rewire(self, node: NodeProto, place: int, tensor: str) -> None:
        """Let the node read another tensor at this place of its inputs."""
        old = node.input[place]
        node.input[place] = tensor
        if old not in node.input:
            self._forget_reader(old, node)
        if not any(reader is node for reader in self._read_by.get(tensor, [])):
            self._read_by.setdefault(tensor, []).append(node)

    def replace(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`. The tensor must not be an output of the model."""
        for node in self.readers(old):
            for place, tensor in enumerate(node.input):
                if tensor == old:
                    self.rewire(node, place, new)

    def shorten_names(self) -> None:
        """Call inner tensors t1, t2, ... and name only layers: names are a tenth of a small net's file."""
        fixed = {*self._outputs, *(entry.name for entry in self.model.graph.input), ""}
        numbered = (name for number in count(1) if (name := f"t{number}") not in fixed)
        short: dict[str, str] = {}
        for node in self._nodes:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name not in fixed:
                        names[place] = (
                            short[name] if name in short else short.setdefault(name, next(numbered))
                        )
            # Of the quantizers, those keep a name that bear the one of a module.
            if node.op_type in _NAMELESS or (node.op_type == "QuantizeLinear" and node.name.startswith("/")):
                node.name = ""
        constants = {short.get(name, name): tensor for name, tensor in self._constants.items()}
        for name, tensor in constants.items():
            tensor.name = name
        self._constants, self._made_by, self._read_by = constants, {}, {}
        for node in self._nodes:
            self._connect(node)

    def finish(self) -> onnx.ModelProto:
        """Drop what nothing reads, put the nodes in order, and write everything back into the model."""
        self._drop_unread()
        graph = self.model.graph
        ordered = self._in_order()
        read = {tensor for node in self._nodes for tensor in node.input} | self._outputs
        constants = [tensor for name, tensor in self._constants.items() if name in read]
        for kept, field in ((ordered, graph.node), (constants, graph.initializer)):
            kept = [type(item).FromString(item.SerializeToString()) for item in kept]
            del field[:]
            field.extend(kept)
        # Shapes and types noted by the exporter may be wrong now; the runtime infers them again.
        del graph.value_info[:]
        return self.model

    def _drop_unread(self) -> None:
        if self.has_subgraphs:
            return
        for node in reversed(self._in_order()):
            if not any(self.is_output(tensor) or self._read_by.get(tensor) for tensor in node.output):
                for tensor in dict.fromkeys(node.input):
                    self._forget_reader(tensor, node)
                self._nodes = [other for other in self._nodes if other is not node]

    def _in_order(self) -> list[NodeProto]:
        """The nodes with every maker before its readers, otherwise in the order they had."""
        ordered: list[NodeProto] = []
        done: set[int] = set()
        # A stack instead of recursion: a deep net is a long chain.
        pending = [(node, False) for node in reversed(self._nodes)]
        while pending:
            node, makers_done = pending.pop()
            if id(node) in done:
                continue
            if makers_done:
                done.add(id(node))
                ordered.append(node)
                continue
            pending.append((node, True))
            makers = [self._made_by[tensor] for tensor in node.input if tensor in self._made_by]
            pending.extend((maker, False) for maker in reversed(makers) if id(maker) not in done)
        return ordered


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn Constant nodes into initializers: one way to say "constant", which the rewrites then look for."""
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    kept = []
    for node in nodes:
        value = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if node.op_type == "Constant" and value:
            value[0].name = node.output[0]
            model.graph.initializer.append(value[0])
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model

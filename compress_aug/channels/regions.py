"""Parts of a model whose channels can be followed where the whole cannot: found in the graph of torch.fx."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from compress_aug.errors import PruneError

_CONVOLUTION = nn.modules.conv._ConvNd
_LEFT_OUTPUT = "its outputs are those of the model"

# In place of tensors in a list: kept, they would hold the memory of a whole pass.
_SEVERAL = object()


class Region(NamedTuple):
    """A layer, all that its channels hang together with, and the layers that read them.

    part:   runs just these; its layers are those of the model, not copies
    inputs: examples of what it runs on
    """

    part: fx.GraphModule
    inputs: list[Tensor]


def regions(model: nn.Module, image: Tensor) -> tuple[dict[str, Region], dict[str, str]]:
    """The region of each Conv and Linear layer by its name; the layers without one, with the reason.

    image: (N, C, H, W), in the number type of the model, which must be in eval mode

    A region goes on through what keeps channels apart (normalisation, activation, pooling, depthwise
    convolution, sums, concatenation) and ends where a layer reads them all. Where channels are split,
    shuffled or reshaped in between, the layer has none. Whether a region was followed rightly is for the
    caller to try.

    Raises PruneError if torch.fx cannot trace the model.
    """
    flow = _Flow(model, image)
    found, without = {}, {}
    for node in flow.graph.nodes:
        if flow.makes_channels(node):
            inside = _inside(node, flow)
            if isinstance(inside, str):
                without[str(node.target)] = inside
            else:
                found[str(node.target)] = _cut_out(flow, *inside)
    return found, without


class _Flow:
    """The traced model and what came out of each of its nodes: a shape, or the value if it is no tensor."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        try:
            self.traced = fx.GraphModule(model, fx.Tracer().trace(model))
            recorder = _Recorder(self.traced)
            with torch.no_grad():
                recorder.run(image)
        # Not narrower: tracing runs the model's own forward, which may raise anything.
        except Exception as error:
            raise PruneError(f"torch.fx cannot trace the model ({error})") from error
        self.graph = self.traced.graph
        self.seen = recorder.seen
        self.image = image
        self._modules = dict(self.traced.named_modules())
        self._calls = [str(node.target) for node in self.graph.nodes if node.op == "call_module"]

    def module(self, node: fx.Node) -> nn.Module | None:
        return self._modules.get(str(node.target)) if node.op == "call_module" else None

    def shape(self, node: fx.Node) -> torch.Size | None:
        seen = self.seen.get(node)
        return seen.shape if isinstance(seen, _Shape) else None

    def makes_channels(self, node: fx.Node) -> bool:
        """Whether a layer mixes all that it reads into channels of its own."""
        module = self.module(node)
        return isinstance(module, nn.Linear) or (isinstance(module, _CONVOLUTION) and module.groups == 1)

    def runs_once(self, node: fx.Node) -> bool:
        return self._calls.count(str(node.target)) == 1

    def what(self, node: fx.Node) -> str:
        module = self.module(node)
        if module is not None:
            return f'"{node.target}" ({type(module).__name__})'
        return getattr(node.target, "__name__", str(node.target))


class _Shape(NamedTuple):
    shape: torch.Size


class _Recorder(fx.Interpreter):
    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n] = _Shape(value.shape)
        else:
            self.seen[n] = _SEVERAL if _holds_tensors(value) else value
        return value


def _inside(start: fx.Node, flow: _Flow) -> tuple[set[fx.Node], set[fx.Node]] | str:
    """The nodes that hang together with the channels of `start`, and the layers that read them; or why not."""
    inside: set[fx.Node] = set()
    readers: set[fx.Node] = set()
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node in inside:
            continue
        problem = _problem(node, flow)
        if problem is not None:
            return problem
        inside.add(node)
        if not flow.makes_channels(node):
            waiting += _tied_inputs(node, flow)
        for user in node.users:
            if user.op == "output":
                return _LEFT_OUTPUT
            if flow.makes_channels(user):
                readers.add(user)
            # A number, such as x.size(0), is no channel.
            elif flow.shape(user) is not None or flow.seen[user] is _SEVERAL:
                waiting.append(user)
    return (inside, readers) if readers else "no layer reads its channels"


def _problem(node: fx.Node, flow: _Flow) -> str | None:
    """Why channels cannot be followed through this node; None if they can."""
    shape = flow.shape(node)
    if node.op in ("placeholder", "get_attr"):
        return f"its channels are tied to {node.target}, which no layer makes"
    lost = f"its channels go through {flow.what(node)}, which is not followed"
    if shape is None or len(shape) < 2:
        return lost
    if node.op == "call_module" and not flow.runs_once(node):
        return f"its channels go through {flow.what(node)}, which runs more than once"
    if flow.makes_channels(node):
        return None if len(shape) == 2 or isinstance(flow.module(node), _CONVOLUTION) else lost
    module = flow.module(node)
    if isinstance(module, _CONVOLUTION) and not module.groups == module.in_channels == module.out_channels:
        return lost
    return None if _keeps_apart(node, shape, flow) else lost


def _keeps_apart(node: fx.Node, shape: torch.Size, flow: _Flow) -> bool:
    """Whether the second axis still holds the channels, side by side: as they came, joined, or flattened."""
    inputs = [flow.shape(source) for source in node.all_input_nodes]
    sources = [source for source in inputs if source is not None]
    if any(len(source) < 2 or source[0] != shape[0] for source in sources):
        return False
    channels = [source[1] for source in sources]
    if node.target in (torch.cat, torch.concat):
        return sum(channels) == shape[1]
    if len(shape) == 2 and len(sources) == 1 and len(sources[0]) > 2:
        return shape[1] % channels[0] == 0
    return max(map(len, sources), default=0) == len(shape) and {shape[1]} <= set(channels) <= {1, shape[1]}


def _tied_inputs(node: fx.Node, flow: _Flow) -> Iterable[fx.Node]:
    """What a node reads channel by channel; a single channel that is spread over all others is not."""
    tensors = [(source, flow.shape(source)) for source in node.all_input_nodes]
    return [source for source, shape in tensors if shape is not None and shape[1] > 1]


def _holds_tensors(value: object) -> bool:
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return any(isinstance(item, Tensor) or _holds_tensors(item) for item in value)
    return isinstance(value, Mapping)


def _cut_out(flow: _Flow, inside: set[fx.Node], readers: set[fx.Node]) -> Region:
    """A module of these nodes; what they read from elsewhere becomes an input, numbers become constants."""
    graph, made, inputs = fx.Graph(), {}, []

    def source(node: fx.Node) -> Any:
        shape = flow.shape(node)
        if node not in made and shape is None:
            return flow.seen[node]
        if node not in made:
            assert shape is not None
            made[node] = graph.placeholder(node.name)
            inputs.append(torch.ones(shape, device=flow.image.device, dtype=flow.image.dtype))
        return made[node]

    chosen = [node for node in flow.graph.nodes if node in inside or node in readers]
    # All inputs first, because a graph's placeholders must come before anything else.
    for node in chosen:
        for read in node.all_input_nodes:
            if read not in inside and read not in readers:
                source(read)
    for node in chosen:
        made[node] = graph.node_copy(node, source)
    graph.output(tuple(made[node] for node in chosen if node in readers))
    return Region(fx.GraphModule(flow.traced, graph), inputs)

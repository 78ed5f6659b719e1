"""A model as a torch.fx graph: one for both modes, without in-place writes, names of containers kept."""

import copy
import inspect
import operator
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from torch import fx, nn
from torch.nn import functional

from compress_aug.errors import QuantizeError
from compress_aug.quantization.ops import RANDOM_DEPTH, Scope
from compress_aug.quantization.rewriting import use_module_dropout, write_out_of_place
from compress_aug.surgery import without_fast_attention

QUANTIZABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class QuantizedModel(fx.GraphModule):
    """The graph of a model, with the surgery log that its deep copies must not lose."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedModel":
        copied: Any = super().__deepcopy__(memo)
        # torch.fx keeps only what the graph refers to; the log is neither a module nor a tensor.
        for name, value in self.__dict__.items():
            if name not in copied.__dict__:
                copied.__dict__[name] = copy.deepcopy(value, memo)
        return copied  # type: ignore[no-any-return]


class Untraceable(Exception):
    """A part of the model has no graph that holds for both modes.

    part: its name, "" for the model's own forward; the message says why
    """

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(reason)
        self.part = part


class _Tracer(fx.Tracer):
    """Follows `forward` down to single layers, and keeps whole what it cannot follow.

    kept:  name -> why, of the parts that stay whole; grows by what turns out not to be followed
    steps: what happened in order: ("enter" or "exit", name of a container), or the node that was made
    """

    def __init__(self, kept: Mapping[str, str]) -> None:
        super().__init__()
        self.kept = dict(kept)
        self.steps: list[Any] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.kept:
            return True
        if isinstance(m, QUANTIZABLE):
            return computes_plainly(m)
        if type(m).__name__ in RANDOM_DEPTH:
            return True
        # Among torch's own modules are some made of layers, such as TransformerEncoderLayer.
        holds_layers = any(isinstance(part, QUANTIZABLE) for part in m.modules())
        return not holds_layers and super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.steps.append(node)
        return node

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        number, stack = len(self.steps), copy.copy(self.module_stack)
        self.steps.append(("enter", name))
        try:
            value = super().call_module(m, forward, args, kwargs)
        except Exception as reason:
            # Any error that the model's own code raises on a symbolic value ends here.
            self._forget_steps(number)
            self.module_stack = stack
            self.kept[name] = f"torch.fx cannot follow it ({_first_line(reason)})"
            return super().call_module(m, forward, args, kwargs)
        self.steps.append(("exit", name))
        if isinstance(value, fx.Proxy):
            value = self.create_proxy("call_module", name, (value,), {})
        return value

    def _forget_steps(self, number: int) -> None:
        for step in reversed(self.steps[number:]):
            if isinstance(step, fx.Node):
                self.graph.erase_node(step)
        del self.steps[number:]


def computes_plainly(layer: nn.Module) -> bool:
    """Whether a Conv or Linear layer (or a subclass) computes what torch.nn's own does."""
    base = next(kind for kind in QUANTIZABLE if isinstance(layer, kind))
    methods = ("forward", "_conv_forward")
    return all(getattr(type(layer), name, None) is getattr(base, name, None) for name in methods)


def traced(model: nn.Module, kept: Mapping[str, str] | None = None) -> tuple[QuantizedModel, dict[str, str]]:
    """The model as a graph of its layers and operations in the order of execution, and the parts kept whole.

    kept: names of modules that stay whole, each with the reason

    The graph holds for training and evaluation alike. Layers and parts kept whole are shared with `model`,
    which loses its forward hooks; other containers are not. In-place operations become their out-of-place
    forms, whose results later readers of the same value then read. A module that torch.fx cannot follow, or
    that takes another way in training than in evaluation, is kept whole: one node of the graph.

    Where the model itself returns more in training than in evaluation (auxiliary outputs), the graph is that
    of evaluation.

    Raises Untraceable with the part "" if what cannot be followed is the model's own forward.
    """
    if isinstance(model, QUANTIZABLE):
        raise QuantizeError(f"{type(model).__name__} is a layer and no model: give nn.Sequential(layer).")
    was_training, known = model.training, set(model.__dict__)
    for module in model.modules():
        # A hook would be traced like a part of the model, and see symbols where it expects values.
        module._forward_hooks.clear()
    try:
        graph, dropouts, kept = _one_graph(model, dict(kept or {}), known)
        roots = {node.target: _root_of(node, model, kept) for node in graph.nodes if node.op in _REFERRING}
    finally:
        _forget_constants(model, known)
        model.train(was_training)
    graph_model = QuantizedModel(roots, graph, class_name=type(model).__name__)
    for node in dropouts:
        use_module_dropout(graph_model, node)
    write_out_of_place(graph_model)
    graph_model.graph.eliminate_dead_code()
    graph_model.delete_all_unused_submodules()
    graph_model.recompile()
    graph_model.train(was_training)
    return graph_model, kept


_REFERRING = ("call_module", "get_attr")


def _one_graph(
    model: nn.Module, kept: dict[str, str], known: set[str]
) -> tuple[fx.Graph, list[fx.Node], dict[str, str]]:
    """A graph for both modes, its calls of `dropout` that follow the mode, and what had to be kept whole."""
    while True:
        evaluation = _trace(model.eval(), kept)
        # Constants made inside a forward are hung on the model; the next trace must find none.
        _forget_constants(model, known)
        training = _trace(model.train(), evaluation.kept)
        found = outermost(training.kept)
        if found != kept:
            # Once more from the start, so that names do not depend on what was tried in vain.
            _forget_constants(model, known)
            kept = found
            continue
        try:
            return training.graph, _mode_dropouts(training.steps, evaluation.steps), kept
        except Untraceable as difference:
            if not difference.part and _only_adds_outputs(training.graph, evaluation.graph):
                _forget_constants(model, known)
                evaluation = _trace(model.eval(), kept)
                return evaluation.graph, _idle_dropouts(evaluation.graph), kept
            if not difference.part:
                raise
            _forget_constants(model, known)
            kept = outermost({**kept, difference.part: str(difference)})


def outermost(kept: Mapping[str, str]) -> dict[str, str]:
    """The parts that lie in no other of them."""
    return {
        name: reason
        for name, reason in kept.items()
        if not any(name.startswith(f"{other}.") for other in kept if other)
    }


def _trace(model: nn.Module, kept: Mapping[str, str]) -> _Tracer:
    tracer = _Tracer(kept)
    try:
        with without_fast_attention():
            graph = tracer.trace(model, concrete_args=_defaults(model))
    except Exception as reason:
        raise Untraceable("", f"torch.fx cannot follow its own forward ({_first_line(reason)})") from reason
    _drop_arguments(graph)
    return tracer


def _first_line(reason: Exception) -> str:
    """The first sentence: torch.fx goes on for a paragraph."""
    return str(reason).splitlines()[0].split(". ")[0].rstrip(".") if str(reason) else type(reason).__name__


def _defaults(model: nn.Module) -> dict[str, Any]:
    """What `forward` assumes for whatever it takes beside the images."""
    arguments = list(inspect.signature(model.forward).parameters.values())[1:]
    return {
        argument.name: argument.default for argument in arguments if argument.default is not argument.empty
    }


def _drop_arguments(graph: fx.Graph) -> None:
    # torch.fx keeps the arguments that were given their defaults, and checks them at every call.
    dropped = {node for node in list(graph.nodes)[1:] if node.op == "placeholder"}
    for node in graph.nodes:
        if node.all_input_nodes and dropped.issuperset(node.all_input_nodes):
            dropped.add(node)
    for node in reversed(graph.nodes):
        if node in dropped:
            graph.erase_node(node)


def _root_of(node: fx.Node, model: nn.Module, kept: Mapping[str, str]) -> Any:
    """What a node of the graph refers to: a layer, a tensor, or a Scope in place of a container."""
    name = str(node.target)
    thing = operator.attrgetter(name)(model)
    is_container = isinstance(thing, nn.Module) and not _Tracer(kept).is_leaf_module(thing, name)
    return Scope() if is_container else thing


def _forget_constants(model: nn.Module, known: set[str]) -> None:
    for name in set(model.__dict__) - known:
        delattr(model, name)


def _mode_dropouts(training: list[Any], evaluation: list[Any]) -> list[fx.Node]:
    """The calls of `dropout` that follow the mode. Raises Untraceable at any other difference of the modes."""
    dropouts: list[fx.Node] = []
    inside: list[str] = []
    for step, other in zip_longest(training, evaluation):
        if isinstance(step, tuple) and step == other:
            inside = [*inside, step[1]] if step[0] == "enter" else inside[:-1]
            continue
        if isinstance(step, fx.Node) and isinstance(other, fx.Node):
            if _description(step) == _description(other):
                continue
            if step.target is functional.dropout and _description(step, False) == _description(other, False):
                dropouts.append(step)
                continue
        reason = "it computes something else in training than in evaluation"
        raise Untraceable(inside[-1] if inside else "", reason)
    return dropouts


def _description(node: fx.Node, with_mode: bool = True) -> tuple[str, Any, str, str]:
    kwargs = {name: value for name, value in node.kwargs.items() if with_mode or name != "training"}
    return node.op, node.target, str(node.args), str(kwargs)


def _only_adds_outputs(training: fx.Graph, evaluation: fx.Graph) -> bool:
    """Whether training returns several values and evaluation one."""
    return _returns_several(training) and not _returns_several(evaluation)


def _returns_several(graph: fx.Graph) -> bool:
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(result, fx.Node):
        return True
    # A named tuple is made by a call of its class.
    return isinstance(result.target, type) and issubclass(result.target, tuple)


def _idle_dropouts(graph: fx.Graph) -> list[fx.Node]:
    # Written as a call with `training=self.training`: nobody calls a dropout that never drops.
    return [
        node for node in graph.nodes if node.target is functional.dropout and not node.kwargs.get("training")
    ]


def scope_of(node: fx.Node) -> str:
    """The module that a node was traced in, for a sentence."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f'module "{stack[-1][0]}"' if stack else "the model's own forward"

"""A model as a torch.fx graph: one for both modes, without in-place writes, names of containers kept."""

import copy
import inspect
import operator
from itertools import zip_longest
from typing import Any

from torch import fx, nn
from torch.nn import functional

from compress_aug.errors import QuantizeError
from compress_aug.quantization.ops import FUNCTIONAL_WEIGHTS, RANDOM_DEPTH, Scope
from compress_aug.quantization.rewriting import use_module_dropout, write_out_of_place

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


class _Tracer(fx.Tracer):
    """Follows `forward` down to single layers and marks where each container hands out its value."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, QUANTIZABLE):
            return computes_plainly(m)
        return type(m).__name__ in RANDOM_DEPTH or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        # Not in a `finally`: after an error the last entry names where it happened.
        self.open.append(name)
        value = super().call_module(m, forward, args, kwargs)
        self.open.pop()
        if isinstance(value, fx.Proxy) and not self.is_leaf_module(m, name):
            value = self.create_proxy("call_module", name, (value,), {})
        return value


def computes_plainly(layer: nn.Module) -> bool:
    """Whether a Conv or Linear layer (or a subclass) computes what torch.nn's own does."""
    base = next(kind for kind in QUANTIZABLE if isinstance(layer, kind))
    methods = ("forward", "_conv_forward")
    return all(getattr(type(layer), name, None) is getattr(base, name, None) for name in methods)


def traced(model: nn.Module) -> QuantizedModel:
    """The model as a graph of its layers and operations, in the order of execution.

    The graph holds for training and evaluation alike. Layers are shared with `model`, which loses its
    forward hooks; containers are not. In-place operations become their out-of-place forms, whose results
    later readers of the same value then read.

    Raises QuantizeError, naming the module, if torch.fx cannot follow its `forward`, or if it takes
    another way in training than in evaluation.
    """
    if isinstance(model, QUANTIZABLE):
        raise QuantizeError(f"{type(model).__name__} is a layer and no model: give nn.Sequential(layer).")
    was_training, known = model.training, set(model.__dict__)
    for module in model.modules():
        # A hook would be traced like a part of the model, and see symbols where it expects values.
        module._forward_hooks.clear()
    try:
        evaluation = _trace(model.eval())
        # Constants made inside a forward are hung on the model; the second trace must find none.
        _forget_constants(model, known)
        graph = _trace(model.train())
        roots = {node.target: _root_of(node, model) for node in graph.nodes if node.op in _REFERRING}
    finally:
        _forget_constants(model, known)
        model.train(was_training)
    dropouts = _mode_dropouts(graph, evaluation)
    _refuse_functional_weights(graph)
    graph_model = QuantizedModel(roots, graph, class_name=type(model).__name__)
    for node in dropouts:
        use_module_dropout(graph_model, node)
    write_out_of_place(graph_model)
    graph_model.recompile()
    graph_model.train(was_training)
    return graph_model


_REFERRING = ("call_module", "get_attr")


def _trace(model: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        graph = tracer.trace(model, concrete_args=_defaults(model))
    except Exception as reason:
        # Any error that the model's own code raises on a symbolic value ends here.
        where = f'module "{tracer.open[-1]}"' if tracer.open else "its own forward"
        raise QuantizeError(
            f"{type(model).__name__} cannot be quantized, because torch.fx cannot follow {where}: "
            f"{str(reason).splitlines()[0] if str(reason) else type(reason).__name__}. "
            "What it can follow has no branches on values or shapes of tensors."
        ) from reason
    _drop_arguments(graph)
    return graph


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


def _root_of(node: fx.Node, model: nn.Module) -> Any:
    """What a node of the graph refers to: a layer, a tensor, or a Scope in place of a container."""
    thing = operator.attrgetter(str(node.target))(model)
    is_container = isinstance(thing, nn.Module) and not _Tracer().is_leaf_module(thing, "")
    return Scope() if is_container else thing


def _forget_constants(model: nn.Module, known: set[str]) -> None:
    for name in set(model.__dict__) - known:
        delattr(model, name)


def _mode_dropouts(training: fx.Graph, evaluation: fx.Graph) -> list[fx.Node]:
    """The calls of `dropout` that follow the mode; any other difference between the modes is refused."""
    dropouts = []
    for node, other in zip_longest(training.nodes, evaluation.nodes):
        if node is not None and other is not None:
            if _description(node) == _description(other):
                continue
            if node.target is functional.dropout and _description(node, False) == _description(other, False):
                dropouts.append(node)
                continue
        raise QuantizeError(
            f"{scope_of(node or other)} computes something else in training than in evaluation "
            f'(at "{(node or other).name}"), and a quantized model has one graph for both.'
        )
    return dropouts


def _description(node: fx.Node, with_mode: bool = True) -> tuple[str, Any, str, str]:
    kwargs = {name: value for name, value in node.kwargs.items() if with_mode or name != "training"}
    return node.op, node.target, str(node.args), str(kwargs)


def scope_of(node: fx.Node) -> str:
    """The module that a node was traced in, for a sentence."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f'Module "{stack[-1][0]}"' if stack else "The model's own forward"


def _refuse_functional_weights(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.target in FUNCTIONAL_WEIGHTS:
            raise QuantizeError(
                f"{scope_of(node)} calls {getattr(node.target, '__name__', node.target)} itself: only layers "
                "nn.Conv1d, nn.Conv2d, nn.Conv3d and nn.Linear that keep torch's own forward are quantized."
            )

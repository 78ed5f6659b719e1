"""Gates: sigmoids that scale other values. They cost little, lie in [0, 1], and get more bits than what they scale."""

from torch import fx, nn
from torch.nn import functional

from compress_aug.quantization.ops import MULTIPLY, Scope, combines, is_sigmoid
from compress_aug.quantization.scale_groups import Flow, ScaleGroup


def gate_modules(flow: Flow) -> dict[str, nn.Module]:
    """The gates of a model by the names that overrides may give them: of their module, or of the call."""
    return dict(
        _named(node, flow) for node in flow.nodes if is_sigmoid(node, flow.modules) and _scales(node, flow)
    )


def gates_of(group: ScaleGroup, flow: Flow) -> frozenset[str]:
    """The names of the gates that lie on this grid; none, unless everything on it is a gate.

    A sigmoid that a layer reads is no gate but an activation like any other.
    """
    if not all(is_sigmoid(node, flow.modules) for node in group.sites):
        return frozenset()
    if not all(_multiplies(user) for user in group.readers - set(group.members)):
        return frozenset()
    return frozenset(_named(node, flow)[0] for node in group.sites)


def _scales(node: fx.Node, flow: Flow) -> bool:
    """Whether nothing but products reads a value, be it moved before."""
    return bool(node.users) and all(
        _multiplies(user) or (user in flow.movers and _scales(user, flow)) for user in node.users
    )


def _multiplies(node: fx.Node) -> bool:
    return combines(node) and node.target in MULTIPLY


def _named(node: fx.Node, flow: Flow) -> tuple[str, nn.Module]:
    """The name of a gate and a module of its kind: SiLU is a product with its own sigmoid, under the name of it all."""
    if node.op == "call_module":
        return str(node.target), flow.modules[str(node.target)]
    for product in node.users:
        if set(product.all_input_nodes) == {node, *node.all_input_nodes}:
            names = [str(user.target) for user in product.users if _is_scope(user, flow)]
            return (names[0] if names else node.name), nn.SiLU()
    return node.name, nn.Hardsigmoid() if node.target is functional.hardsigmoid else nn.Sigmoid()


def _is_scope(node: fx.Node, flow: Flow) -> bool:
    return node.op == "call_module" and isinstance(flow.modules[str(node.target)], Scope)

"""Which bits each layer gets, and where quantizers go: the schemes, their ends, gates and overrides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compress_aug.errors import QuantizeError
from compress_aug.patterns import matched, no_match
from compress_aug.quantization import dorefa
from compress_aug.quantization.gates import gate_modules, gates_of
from compress_aug.quantization.scale_groups import Flow, ScaleGroup, first_layers, last_layers, scale_groups
from compress_aug.scheme import Bits, Scheme


@dataclass(frozen=True)
class Quantizer:
    """is_fixed: it has the levels of DoReFa, and nothing to calibrate."""

    bits: int
    is_unsigned: bool
    is_fixed: bool


Overrides = list[tuple[set[str], Mapping[str, Bits]]]


def picked(flow: Flow, choice: Scheme) -> Overrides:
    """The layers (if it picks none, the gates) that each pattern picks, and their bits, in the order given."""
    every = {name: layer for name, layer in flow.modules.items() if name in flow.layers}
    gates = gate_modules(flow)
    found = []
    for pattern, bits in choice.overrides.items():
        names = matched(every, pattern)
        if not names and (names := matched(gates, pattern)) and "weights" in bits:
            raise QuantizeError(
                f'overrides: "{pattern}" names a gate, which has no weights: give it activations alone.'
            )
        if not names:
            raise QuantizeError(f"overrides: {no_match({**every, **gates}, pattern)}")
        found.append((names, bits))
    return found


def wanted_bits(flow: Flow, choice: Scheme, overrides: Overrides) -> dict[str, tuple[int | None, int | None]]:
    """The bits of each layer's weights and, unless others read it as well, of what it reads; None for float."""
    ends = first_layers(flow) | last_layers(flow)
    found = {}
    for name in sorted(flow.layers):
        bits: dict[str, Bits | None] = {"weights": choice.weights, "activations": choice.activations}
        if name in ends:
            bits = {side: usual and choice.first_and_last for side, usual in bits.items()}
        for names, given in overrides:
            bits |= given if name in names else {}
        weights, activations = (None if side == "float" else side for side in bits.values())
        found[name] = (weights and min(weights, choice.most_weight_bits), activations)
    return found


def placed_groups(
    flow: Flow,
    choice: Scheme,
    overrides: Overrides,
    kept_float: frozenset[str],
    note: Callable[[str], None] | None,
) -> list[tuple[ScaleGroup, Quantizer]]:
    """The groups of values that get a quantizer, and which."""
    groups = scale_groups(flow, kept_float)
    if choice.is_dorefa:
        if note is not None and choice.signed == "float":
            dorefa.tell_signed(groups, flow, kept_float, note)
        groups = dorefa.placed(
            groups, flow, kept_float, with_signed=choice.signed != "float", with_pooled=choice.pooled
        )
    placed = []
    for group in groups:
        read_by = {flow.layer(reader) for reader in group.readers}
        is_fixed = choice.is_dorefa and group.is_unsigned and not read_by <= kept_float | {None}
        bits: Bits | None = choice.activations
        if choice.is_dorefa and not is_fixed:
            bits = bits and choice.signed
        elif group.is_outermost and choice.first_and_last != "float":
            bits = bits and choice.first_and_last
        gates = gates_of(group, flow)
        if gates and isinstance(bits, int):
            bits = max(bits, choice.least_gate_bits)
        for names, given in overrides:
            if "activations" in given and names & (read_by | gates):
                bits = given["activations"]
        if isinstance(bits, int):
            placed.append((group, Quantizer(bits, group.is_unsigned, is_fixed)))
    return placed

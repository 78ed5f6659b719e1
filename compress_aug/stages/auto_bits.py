"""bits: auto of the quantize stage: the bits of each layer from what they cost in loss, under a budget of bytes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from compress_aug.errors import QuantizeError
from compress_aug.stages.saturation import unsaturated

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_aug.sensitivity import Sensitivity
    from compress_aug.stages.base import Setup
    from compress_aug.stages.quantize import Quantize

Losses = Mapping[str, Mapping[int, float]]

CHOICES = [2, 4, 8]
"""Bits that an exported file packs without a gap: it stores 3 bits as 4, and 5 to 7 as 8."""


def _auto(given: Any) -> Any:
    if given in (None, "auto"):
        return given
    raise ValueError(f"expected auto, found {given!r}: the same bits for all layers are written weights: 4")


Auto = Annotated[Literal["auto"], BeforeValidator(_auto)]


def check_keys(stage: "Quantize") -> None:
    """Raises ValueError for keys of bits: auto that do not go together, in one sentence."""
    if stage.bits is None:
        for key in ("size_mb", "choices"):
            if getattr(stage, key) is not None:
                raise ValueError(f"{key}: only bits: auto picks bits; add it, or leave {key} out")
        if stage.first_and_last == "auto":
            raise ValueError("first_and_last: auto goes with bits: auto only; name their bits, such as 8")
        return
    if stage.scheme == "dorefa":
        raise ValueError(
            "bits: auto measures one layer at a time without training, and DoReFa's weights lose their size until "
            "batch norms are trained on them: choose scheme: integer, or give layers their bits by overrides"
        )
    if stage.size_mb is None:
        raise ValueError(
            "bits: auto needs size_mb, what the model may store in 10^6 bytes, such as size_mb: 0.12"
        )
    if stage.weights != 8:
        raise ValueError(
            f"weights: {stage.weights} and bits: auto: leave weights out; the bits to pick from are choices"
        )
    choices = possible_bits(stage)
    for bits in choices:
        if isinstance(bits, bool) or not 2 <= bits <= 8:
            raise ValueError(f"choices: expected 2..8 bits, found {bits!r}")
    if len(choices) < 2:
        raise ValueError(f"choices: expected two or more different bits to pick from, found {stage.choices}")


def possible_bits(stage: "Quantize") -> list[int]:
    """Those that bits: auto picks from, the most first."""
    return sorted(set(CHOICES if stage.choices is None else stage.choices), reverse=True)


@dataclass(frozen=True)
class Sizes:
    """What a model weighs by the bits of its layers, in bytes.

    layers: by name of each layer that bits are chosen for, then by bits
    counts: its weights, by name
    fixed:  all that has its bits already: other layers, biases and scales of theirs, what stays float
    """

    layers: dict[str, dict[int, int]]
    counts: dict[str, int]
    fixed: int

    def total(self, bits: Mapping[str, int]) -> int:
        return self.fixed + sum(self.layers[name][one] for name, one in bits.items())

    @property
    def smallest(self) -> int:
        return self.fixed + sum(min(one.values()) for one in self.layers.values())


def sizes_of(forms: "Mapping[int, nn.Module]") -> Sizes:
    """Which layers follow the bits that their model was quantized with, and what they weigh.

    forms: for each number of bits, two or more, the quantized model

    Raises QuantizeError if every layer has bits of its own.
    """
    from compress_aug.quantization.sizes import layer_bytes, quantized_layers, weight_bytes

    layers = {bits: quantized_layers(form) for bits, form in forms.items()}
    first = next(iter(layers.values()))
    free = [
        name
        for name in first
        if all(found.get(name, {}).get("bits") == bits for bits, found in layers.items())
    ]
    if not free:
        raise QuantizeError(
            "bits: auto has no layer to choose for: the first and the last one, and those of overrides, have their "
            "bits. Leave some layers out of overrides, or write first_and_last: auto."
        )
    sizes = {name: {bits: layer_bytes(**layers[bits][name]) for bits in forms} for name in free}
    bits, form = next(iter(forms.items()))
    fixed = weight_bytes(form) - sum(one[bits] for one in sizes.values())
    return Sizes(sizes, {name: first[name]["weights"] for name in free}, fixed)


def check_reachable(sizes: Sizes, budget: int, fewest: int, ends_take_part: bool) -> None:
    """Refuse, before anything is measured, a budget that the fewest bits miss. Raises QuantizeError."""
    if sizes.smallest <= budget:
        return
    steps = ["raise size_mb", "cut channels first (prune_channels)"]
    if fewest > 2:
        steps.insert(1, "name fewer bits in choices")
    if not ends_take_part:
        steps.insert(1, "let the first and the last layer take part (first_and_last: auto)")
    raise QuantizeError(
        f"bits: auto cannot reach size_mb {budget / 1e6:g}: with {fewest} bits wherever bits are chosen the weights "
        f"take {sizes.smallest / 1e6:.4g} MB, {sizes.fixed / 1e6:.4g} of them in what has its bits already (see "
        f"first_and_last and overrides) and stays float: {', '.join(steps[:-1])} or {steps[-1]}."
    )


def costs(found: "Sensitivity") -> dict[str, dict[int, float]]:
    """What each layer costs at each of its bits, in nats of loss: fewer bits never cost less than more of them.

    A layer whose loss falls with fewer bits, which is chance, counts as if it had not changed.

    Raises QuantizeError for a loss that is no number.
    """
    made: dict[str, dict[int, float]] = {}
    for name, grown in found.loss_increases().items():
        if not all(map(math.isfinite, grown)):
            raise QuantizeError(
                f'bits: auto cannot tell what the bits of layer "{name}" cost: the loss on training images is no '
                "finite number, with the model as it is or with that layer at few bits. Train the model first."
            )
        highest = -math.inf
        made[name] = {}
        for bits, loss in zip(found.amounts, grown, strict=True):
            highest = max(highest, loss)
            made[name][int(bits)] = highest
    return made


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from what.

    bits:   of the weights of each layer that bits were chosen for
    costs:  by name of the layer, then by bits: how much the loss grows with that layer alone at these bits, in nats
    raised: in how many of these places the measured loss was lower than with more bits, and counts as with those
    sizes:  what they weigh
    budget: in bytes
    images: that the loss was measured on
    """

    bits: dict[str, int]
    costs: Losses
    raised: int
    sizes: Sizes
    budget: int
    images: int

    def table(self) -> list[str]:
        """Lines of even width: layer, weights, bits, growth of the loss."""
        rows = [("layer", "weights", "bits", "loss grows by")]
        for layer, bits in self.bits.items():
            rows.append(
                (layer, f"{self.sizes.counts[layer]:,}", str(bits), f"{self.costs[layer][bits]:+.4f}")
            )
        name, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        return [
            "  ".join(
                [first.ljust(name), *(cell.rjust(wide) for cell, wide in zip(rest, others, strict=True))]
            )
            for first, *rest in rows
        ]

    def summary(self, reached: int) -> str:
        """One sentence: how many layers got which bits, what the model weighs with them in bytes, what they cost."""
        used = sorted(set(self.bits.values()), reverse=True)
        layers = [sum(one == bits for one in self.bits.values()) for bits in used]
        many = [
            f"{bits} bits in {count} layer{'s' * (count > 1)}"
            for bits, count in zip(used, layers, strict=True)
        ]
        grown = sum(self.costs[name][bits] for name, bits in self.bits.items())
        return (
            f"bits: auto chose {', '.join(many)}: {reached / 1e6:.4g} of {self.budget / 1e6:g} MB; "
            f"with one layer at a time so, the loss on {self.images:,} training images grows by {grown:+.3g} in sum"
            f"{self._told_raised()}"
        )

    def _told_raised(self) -> str:
        if not self.raised:
            return ""
        places = sum(map(len, self.costs.values()))
        return (
            f" ({self.raised} of {places} measured losses were lower than with more bits, which is chance, and count "
            "as with those, here and in loss_increases)"
        )


def choose(
    stage: "Quantize", model: "nn.Module", options: Mapping[str, Any], images: "list[Tensor]", setup: "Setup"
) -> Choice:
    """The bits of the weights of each layer that the stage leaves open.

    model:   the float model, which stays as it is
    options: what `quantize` is called with otherwise
    images:  normalised float batches (N, C, H, W) to calibrate on

    Raises QuantizeError where there is nothing to choose or no choice is small enough.
    """
    from compress_aug.quantization import quantize
    from compress_aug.surgery import copy_model

    takes_part = stage.first_and_last == "auto"
    # The grids between the layers are counted only, so rough ones do; the statistics of kept batch norms matter.
    images = images if options["batch_norm"] == "keep" else images[:1]
    saturates = setup.target.int8_saturates
    forms = {}
    for bits in sorted({unsaturated(bits, saturates) for bits in possible_bits(stage)}, reverse=True):
        chosen = {**options, "weights": bits}
        if takes_part:
            chosen["first_and_last"] = bits
        forms[bits] = quantize(copy_model(model), setup.example(), **chosen, calibration=images)
    assert stage.size_mb is not None
    return choice(forms, stage.size_mb, stage.calibrate, setup, ends_take_part=takes_part)


def choice(
    forms: "Mapping[int, nn.Module]", size_mb: float, images: int, setup: "Setup", *, ends_take_part: bool
) -> Choice:
    """The bits of the weights of each layer that is free to choose.

    forms:   for each of the choices the model quantized with these bits
    size_mb: what the whole model may store, in 10^6 bytes, k bits for a weight of k bits
    images:  training images that the loss is measured on, those that calibrate

    Raises QuantizeError where there is nothing to choose or no choice is small enough.
    """
    from compress_aug.quantization import without_quantizers
    from compress_aug.sensitivity import choose_bits, scan_bits
    from compress_aug.training import mixed_seed

    sizes, budget = sizes_of(forms), int(size_mb * 1e6)
    check_reachable(sizes, budget, min(forms), ends_take_part)
    images = min(images, 64) if setup.rehearsal else images
    size = min(images, 128)
    batches = setup.data.train.batches(size, order_seed=mixed_seed(setup.seed, "calibrate"))
    with setup.counting("measuring one layer at a time") as counted:
        found = scan_bits(
            without_quantizers(forms[max(forms)]),
            islice(batches, -(-images // size)),
            setup.data.normalise,
            list(forms),
            list(sizes.layers),
            counted,
            forms=forms,
        )
    grown = costs(found)
    bits = choose_bits(grown, sizes.layers, budget - sizes.fixed)
    measured = found.loss_increases()
    raised = sum(
        counted > loss
        for name, one in grown.items()
        for counted, loss in zip(one.values(), measured[name], strict=True)
    )
    return Choice(bits, grown, raised, sizes, budget, found.images)


def tell(chosen: Choice, model: "nn.Module", setup: "Setup") -> None:
    """The choice as a table and in a sentence, and all of it for the report.

    model: quantized with these bits
    """
    from compress_aug.quantization import weight_bits
    from compress_aug.quantization.sizes import weight_bytes

    reached = weight_bytes(model)
    for line in chosen.table():
        setup.show(line)
    setup.note(chosen.summary(reached))
    packs = setup.target.form != "tensorrt"
    packed = packed_bytes(model, packs=packs)
    how = (
        "of 2 bits five to a byte, of 3 and 4 bits two, of 5 to 8 bits and of layers too small to be packed one"
        if packs
        else f"each a byte, because nothing is packed for {setup.target.name}"
    )
    beyond = f", which is MORE than size_mb {chosen.budget / 1e6:g}" if packed > chosen.budget else ""
    setup.note(
        f"as `export` writes them the weights take {packed / 1e6:.4g} MB{beyond} ({how}); the file adds its graph"
    )
    setup.record("layer_bits", weight_bits(model))
    setup.record(
        "loss_increases",
        {name: {str(bits): loss for bits, loss in grown.items()} for name, grown in chosen.costs.items()},
    )
    setup.record("reached", {"size_mb": reached / 1e6, "packed_mb": packed / 1e6})


def packed_bytes(model: "nn.Module", *, packs: bool = True) -> int:
    """What the weights of a quantized model take in an exported file, without its graph.

    packs: whether the file's form packs weights of few bits; each takes a byte otherwise
    """
    from compress_aug.deploy.packing import digits_a_byte
    from compress_aug.quantization.sizes import float_bytes, quantized_layers

    total = float_bytes(model)
    for layer in quantized_layers(model).values():
        weights, bits = layer["weights"], layer["bits"]
        # Grids are symmetric, so that one of the 2^k integers is left out.
        together = digits_a_byte(weights, 2**bits - 1) if packs else 1
        total += -(-weights // together) + 4 * (layer["scales"] + layer["biases"])
    return total

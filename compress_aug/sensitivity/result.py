"""What a scan found: accuracy and loss with each layer changed alone, and how much of the change each layer bears."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from compress_aug.quantization.bits import FLOAT_BITS


@dataclass(frozen=True)
class LayerScan:
    """One layer, changed alone.

    name:       its path in the model
    parameters: weights of the layer, without biases
    macs:       multiply-accumulates of the layer for one image; None if it is never called by itself, as the last
                layer of torch's attention
    sparsity:   share of its weights that was zero before, in [0, 1]
    accuracies: in [0, 1], one for each amount of the scan
    already:    how many of the first amounts the layer had before the scan; their accuracy is that of the model
    cross_entropies: the mean loss of an image in nats, one for each amount: it tells apart what the accuracy of few
                images does not
    """

    name: str
    parameters: int
    macs: int | None
    sparsity: float
    accuracies: tuple[float, ...]
    already: int = 0
    cross_entropies: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sensitivity:
    """All layers of a scan.

    kind:    of the change: "prune", "bits" (of the layer's weights), "bits with inputs" (and of what the layer reads)
    amounts: how much was changed, the mildest first: sparsities in [0, 1) of kind "prune", else bits, 8 before 2
    base:    accuracy in [0, 1] with nothing changed
    images:  how many the accuracies are of
    macs:    multiply-accumulates of all convolution and linear layers for one image, scanned or not
    layers:  in the model's own order
    base_cross_entropy: the mean loss of an image in nats with nothing changed

    >>> layers = (LayerScan("stem", 100, 900, 0.0, (0.91, 0.62)), LayerScan("head", 300, 300, 0.0, (0.9, 0.893)))
    >>> found = Sensitivity("prune", (0.5, 0.9), 0.9, 1000, 1200, layers)
    >>> found.losses()["head"]
    (0.0, 0.7)
    >>> found.bearable(1.0)
    {'stem': 0.5, 'head': 0.9}
    >>> found.together(1.0)
    0.8
    """

    kind: str
    amounts: tuple[float, ...]
    base: float
    images: int
    macs: int
    layers: tuple[LayerScan, ...]
    base_cross_entropy: float = math.nan

    def heads(self) -> tuple[str, ...]:
        """Each amount as it stands above its column: "0.5", or "4 bits"."""
        return tuple(f"{amount:g}" if self.kind == "prune" else f"{amount:g} bits" for amount in self.amounts)

    def losses(self) -> dict[str, tuple[float, ...]]:
        """Accuracy lost at each amount by name of the layer, in points (0..100); below 0 where it rose."""
        # Rounded, because 0.90 - 0.89 is a little more than one point.
        return {
            layer.name: tuple(round(100 * (self.base - accuracy), 6) for accuracy in layer.accuracies)
            for layer in self.layers
        }

    def loss_increases(self) -> dict[str, tuple[float, ...]]:
        """How much the cross-entropy grows at each amount by name of the layer, in nats; below 0 where it fell."""
        return {
            layer.name: tuple(loss - self.base_cross_entropy for loss in layer.cross_entropies)
            for layer in self.layers
        }

    def bearable(self, tolerance: float) -> dict[str, float | None]:
        """The harshest amount that loses at most so many points, by name of the layer; None if every one loses more.

        A layer may lose more at a milder amount: accuracies of few images are not smooth.
        """
        # Amounts come with the mildest first, so the last that fits is the harshest.
        fitting = {
            name: [amount for amount, loss in zip(self.amounts, losses, strict=True) if loss <= tolerance]
            for name, losses in self.losses().items()
        }
        return {name: amounts[-1] if amounts else None for name, amounts in fitting.items()}

    def bears(self, tolerance: float) -> dict[str, str]:
        """`bearable` in words, by name of the layer: "0.7", "none", or "as it is" where nothing new is borne."""
        words = {}
        for layer in self.layers:
            most = self.bearable(tolerance)[layer.name]
            old = most is not None and self.amounts.index(most) < layer.already
            words[layer.name] = "as it is" if old else "none" if most is None else f"{most:g}"
        return words

    def together(self, tolerance: float) -> float:
        """What all layers together come to if each had what it bears: a sparsity in [0, 1], or mean bits of a weight.

        A layer that bears no bits of the scan counts as float.
        """
        bearable = self.bearable(tolerance)
        if self.kind == "prune":
            each = {one.name: max(bearable[one.name] or 0.0, one.sparsity) for one in self.layers}
        else:
            each = {name: bits or FLOAT_BITS for name, bits in bearable.items()}
        total = sum(each[one.name] * one.parameters for one in self.layers)
        return total / sum(one.parameters for one in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for a file that other programs read; a loss that is no number is null."""
        found = asdict(self)
        found["base_cross_entropy"] = _finite(self.base_cross_entropy)
        for layer in found["layers"]:
            layer["cross_entropies"] = [_finite(loss) for loss in layer["cross_entropies"]]
        return found


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None

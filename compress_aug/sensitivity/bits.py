"""Fewer bits for one layer alone: its weights, or what it reads as well, lie on a coarse grid within a context."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compress_aug.batch import Batch
from compress_aug.errors import QuantizeError
from compress_aug.measure import effective_weight, prunable_layers
from compress_aug.quantization import is_quantized
from compress_aug.quantization.calibrate import Magnitudes
from compress_aug.sensitivity.result import Sensitivity
from compress_aug.sensitivity.scan import Change, Progress, other_weight, scan
from compress_aug.surgery import copy_model, device_of

BITS = (8, 6, 4, 3, 2)


def scan_bits(
    model: nn.Module,
    batches: Iterable[Batch],
    normalise: Callable[[Tensor], Tensor],
    bits: Sequence[int] = BITS,
    layers: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    activations: bool = False,
    forms: Mapping[int, nn.Module] | None = None,
) -> Sensitivity:
    """Accuracy and loss with the weights of one layer alone at few bits, for each layer and each number of bits.

    batches:     raw images on the model's device, never of the test split, because what is chosen by a scan is chosen
                 by its images
    normalise:   uint8 images (N, C, H, W) -> float inputs of the model
    bits:        2..8; scanned in falling order, each once
    layers:      names, globs ("*.conv2") or types ("Linear"); None for every convolution and linear layer
    progress:    told (passes done, all passes)
    activations: what the layer reads gets the same bits, on a grid that the same images set. A layer that torch never
                 calls by itself, such as the last one of attention, or calls by keyword has its weights alone changed
    forms:       for each number of bits what `quantize` makes of the model with them, of which the weights are taken;
                 None for the grids that it chooses by default

    Those grids, one for each output channel of the weights and one for the inputs, are the ones that training would
    start from. Folding a batch norm scales an output channel and its grid alike, so that the float model as it is
    tells what its folded form would. With forms, give the folded model: `without_quantizers` of one of them. All
    other layers stay float; nothing is trained; masked weights stay zero. The model is not changed.

    Raises QuantizeError for bits outside 2..8, for a model that is quantized already, that has no convolution or
    linear layer or whose layers share or compute their weights; PruneError for a pattern that no layer matches;
    DataError without images.

    >>> found = scan_bits(model, data.validation.batches(64), data.normalise, (8, 2), layers=["0"])
    >>> found.kind, found.amounts, [layer.name for layer in found.layers]
    ('bits', (8, 2), ['0'])

    Source: each layer alone, without training, as in the sensitivity analysis of arXiv 2004.09602. The tolerance that
    a layer is judged by, and the loss beside the accuracy, are ours.
    """
    _check_bits(bits)
    _check_model(model)
    grids = _Grids(forms)
    change = Change("bits", grids.of_weights, _never, grids.named)
    if activations:
        change = Change("bits with inputs", grids.of_both, _never, grids.counted)
    falling = sorted(set(bits), reverse=True)
    return scan(model, batches, normalise, change, falling, layers=layers, progress=progress)


def rounded_weight(layer: nn.Module, bits: int) -> Tensor:
    """The weight that the layer would compute with if `quantize` gave it so many bits, (output channels, ...).

    layer: a convolution or linear layer, which may carry a mask

    >>> sorted(set(rounded_weight(nn.Linear(1000, 1), 2).sign().flatten().tolist()))
    [-1.0, 0.0, 1.0]
    """
    from compress_aug.quantization.layers import quantized_layer

    # It draws first weights of its own, which nobody must notice.
    device = device_of(layer)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return _computed_with(quantized_layer(copy_model(layer), bits))


@torch.no_grad()
def _computed_with(quantized: Any) -> Tensor:
    rounded: Tensor = quantized.weight_quant.tensor_quant(effective_weight(quantized))[0]
    return rounded.detach()


def _never(layer: nn.Module, bits: float) -> bool:
    """A float layer has more bits than any that are scanned."""
    return False


class _Grids:
    """Puts weights, and what a layer reads, on grids of few bits.

    names: of the layers that are scanned
    seen:  what each of them reads, counted in the pass over the unchanged model;  signed: those that read below zero
    """

    def __init__(self, forms: Mapping[int, nn.Module] | None) -> None:
        self._forms = forms
        self.names: dict[nn.Module, str] = {}
        self.seen: dict[nn.Module, Magnitudes] = {}
        self.signed: set[nn.Module] = set()

    @contextmanager
    def named(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        self.names = {layer: name for name, layer in layers.items()}
        yield

    @contextmanager
    def counted(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        hooks = [layer.register_forward_pre_hook(self._count) for layer in layers.values()]
        try:
            with self.named(layers):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not given:
            # Called by keyword, which these hooks do not see.
            return
        self.seen.setdefault(layer, Magnitudes()).add(given[0])
        if float(given[0].min()) < 0:
            self.signed.add(layer)

    @contextmanager
    def of_weights(self, layer: nn.Module, bits: float) -> Iterator[None]:
        if self._forms is None:
            weight = rounded_weight(layer, int(bits))
        else:
            weight = _computed_with(self._forms[int(bits)].get_submodule(self.names[layer]))
        with other_weight(layer, weight):
            yield

    @contextmanager
    def of_both(self, layer: nn.Module, bits: float) -> Iterator[None]:
        from compress_aug.quantization.layers import quantizer

        unsigned = layer not in self.signed
        with self.of_weights(layer, bits):
            if layer not in self.seen:
                yield
                return
            end = self.seen[layer].best_end(int(bits), unsigned)
            grid = quantizer(int(bits), end, unsigned).to(device_of(layer)).eval()
            hook = layer.register_forward_pre_hook(lambda layer, given: (grid(given[0]), *given[1:]))
            try:
                yield
            finally:
                hook.remove()


def _check_bits(bits: Sequence[int]) -> None:
    if not bits:
        raise QuantizeError("No bits are given: name one or more numbers from 2 to 8, such as 8, 4 and 2.")
    for one in bits:
        if isinstance(one, bool) or not isinstance(one, int) or not 2 <= one <= 8:
            raise QuantizeError(f"Bits of a layer's weights are whole numbers from 2 to 8; found {one!r}.")


def _check_model(model: nn.Module) -> None:
    """Refuse, before any pass, layers whose weight cannot be changed alone."""
    if is_quantized(model):
        raise QuantizeError(
            "The model is quantized already, so its layers have their bits. Bits are scanned on the float model that "
            "it was made from, such as that of a stage before quantize."
        )
    layers = prunable_layers(model)
    if not layers:
        raise QuantizeError("The model has no convolution or linear layer, so there are no bits to scan.")
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        held = layer._parameters.get("weight_orig" if hasattr(layer, "weight_mask") else "weight")
        if held is None:
            raise QuantizeError(
                f'The weight of layer "{name}" is computed by something other than a mask of torch.nn.utils.prune '
                "(weight norm, a parametrization, ...): make it a plain parameter first."
            )
        other = owners.setdefault(id(held), name)
        if other != name:
            raise QuantizeError(
                f'Layers "{other}" and "{name}" share one weight, so neither can be changed alone: give each its own.'
            )

"""N:M masks: of every M consecutive input channels the N largest weights stay."""

import re

import torch
from torch import Tensor, nn

from compress_aug.errors import PruneError
from compress_aug.measure import effective_weight
from compress_aug.pruning.choice import Patterns, check_layers, chosen_layers
from compress_aug.pruning.masks import check_numbers, magnitudes, put_masks
from compress_aug.surgery import layer_shapes, record


@torch.no_grad()
def mask_pattern(
    model: nn.Module, pattern: str = "2:4", layers: Patterns = None, exclude: Patterns = None
) -> nn.Module:
    """Keep the N largest of every M consecutive input weights of each output: the zeros that hardware can skip.

    pattern: "N:M", N of M stay, 0 < N < M: "2:4" leaves two of four, which is a sparsity of 1 - N/M = 0.5.
    layers, exclude: names, globs or types of layers; see `chosen_layers`. All take part by default.

    Consecutive means along the input channels, for each output channel and each position of the kernel: of a
    weight (O, I, kH, kW) the entries [o, 0:4, y, x], [o, 4:8, y, x] and so on; of a linear layer (O, I) those
    of a row. This is how sparse tensor cores want it. Flattened with the channels last, as such kernels read a
    convolution, these groups lie one behind the other.

    A layer whose input channels (of one group of the convolution) are no multiple of M stays as it is: the
    first layer of three colours, say, and every depthwise one. The log entry names them under "dense".

    Changes the model and returns it. Masks only grow: where more than M - N of a group are masked already, all
    of them stay masked. Of equal weights the earlier go first. Zeros that no mask holds are ranked like any
    other weight.

    These zeros pay on a GPU with sparse tensor cores and a runtime that looks for them (TensorRT). ONNX
    Runtime's CPU kernels gain nothing from them.

    Raises PruneError for a pattern that is none, if it fits no layer, and as `mask_smallest` does.

    >>> layer = nn.Linear(4, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.1, -3.0, 2.0, 0.5]]))
    >>> mask_pattern(layer, "2:4").weight_mask
    tensor([[0., 1., 1., 0.]])

    Source: arXiv 2104.08378 (2:4, by magnitude, weights trained on under a fixed mask). Ours: no search for a
    better order of the channels, and that layers which do not fit stay dense.
    """
    stay, size = _read(pattern)
    chosen = chosen_layers(model, layers, exclude)
    check_layers(model, chosen)
    weights = {name: effective_weight(layer) for name, layer in chosen.items()}
    fit = {name: weight for name, weight in weights.items() if weight.shape[1] % size == 0}
    if not fit:
        raise PruneError(
            f'No layer fits the pattern "{pattern}": the input channels of {", ".join(weights)} '
            f"are no multiples of {size}."
        )
    check_numbers(fit, "The model")
    put_masks(model, {name: _mask(chosen[name], weight, stay, size) for name, weight in fit.items()})
    dense = [name for name in weights if name not in fit]
    shapes = layer_shapes(model, list(fit))
    record(model, "mask", method="pattern", pattern=pattern, dense=dense, layers=shapes)
    return model


def _read(pattern: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", str(pattern))
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise PruneError(f'pattern is N:M, N of M weights stay, 0 < N < M, such as "2:4"; found "{pattern}".')
    return int(found[1]), int(found[2])


def _mask(layer: nn.Module, weight: Tensor, stay: int, size: int) -> Tensor:
    """The mask (bool) in the shape of `weight`, (outputs, inputs, kernel ...)."""
    # Channels last, so that each row of `groups` is a group.
    ranks = magnitudes(layer, weight).movedim(1, -1)
    groups = ranks.reshape(-1, size)
    lowest = groups.argsort(dim=1, stable=True)[:, : size - stay]
    keep = torch.ones_like(groups, dtype=torch.bool).scatter(1, lowest, False) & (groups >= 0)
    return keep.reshape(ranks.shape).movedim(-1, 1)

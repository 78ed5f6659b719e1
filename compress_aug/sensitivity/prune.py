"""Pruning one layer alone: its smallest weights are zero within a context, and back behind it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from compress_aug.batch import Batch
from compress_aug.errors import PruneError
from compress_aug.measure import effective_weight
from compress_aug.pruning import mask_smallest
from compress_aug.sensitivity.result import Sensitivity
from compress_aug.sensitivity.scan import Change, Progress, other_weight, scan
from compress_aug.surgery import copy_model

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


def scan_pruning(
    model: nn.Module,
    batches: Iterable[Batch],
    normalise: Callable[[Tensor], Tensor],
    sparsities: Sequence[float] = SPARSITIES,
    layers: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Accuracy and loss with the smallest weights of one layer alone at zero, for each layer and each sparsity.

    batches:    raw images that the model was not trained on, on its device: of the validation split, never the test
                split, because what is chosen by a scan is chosen by its images
    normalise:  uint8 images (N, C, H, W) -> float inputs of the model
    sparsities: shares of the layer's weights that are zero, in [0, 1); scanned in rising order, each once
    layers:     names, globs ("*.conv2") or types ("Linear"); None for every convolution and linear layer
    progress:   told (passes done, all passes)

    The other layers stay as they are: dense, or with the zeros that they have. Nothing is trained. Where a layer has
    as many zeros already, its accuracy is the model's. Batch norms keep their statistics. The model is not changed.

    Raises PruneError for a sparsity outside [0, 1), a pattern that no layer matches, and a model that `mask_smallest`
    refuses; DataError without images.

    >>> found = scan_pruning(model, data.validation.batches(64), data.normalise, (0.5, 0.9), layers=["0"])
    >>> found.amounts, [layer.name for layer in found.layers]
    ((0.5, 0.9), ['0'])

    Source: each layer alone, without retraining, as in arXiv 1506.02626, and for whole filters in arXiv 1608.08710.
    The grid and the tolerance that a layer is judged by are ours.
    """
    for sparsity in sparsities:
        _check(sparsity)
    if not sparsities:
        raise PruneError("No sparsity is given: name one or more, from 0 to below 1, such as 0.5")
    # What cannot be masked is refused before any pass. All weights at once, because a sparsity below the present one
    # would be refused as well.
    mask_smallest(copy_model(model), math.nextafter(1, 0), layers=layers)
    change = Change("prune", masked, has_zeros)
    return scan(model, batches, normalise, change, sorted(set(sparsities)), layers=layers, progress=progress)


@contextmanager
def masked(layer: nn.Module, sparsity: float) -> Iterator[None]:
    """Within it, so many of the layer's weights are zero as `mask_smallest` picks them; behind it, none of that stays.

    layer: a convolution or linear layer, which may be quantized or carry a mask already

    >>> layer = nn.Linear(10, 10)
    >>> with masked(layer, 0.4):
    ...     int((layer.weight == 0).sum())
    40
    >>> int((layer.weight == 0).sum())
    0
    """
    with other_weight(layer, effective_weight(mask_smallest(copy_model(layer), sparsity))):
        yield


def has_zeros(layer: nn.Module, sparsity: float) -> bool:
    """Whether at least that share of the layer's weights is zero."""
    weight = effective_weight(layer)
    return round(sparsity * weight.numel()) <= int((weight == 0).sum())


def _check(sparsity: object) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise PruneError(
            f"sparsity is the share of a layer's weights that is zero, from 0 to below 1; found {sparsity!r}."
        )

"""How good a model is on the images that a search judges by: accuracy and cross entropy."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_aug.batch import Batch
from compress_aug.surgery import device_of


@torch.no_grad()
def judged(
    model: nn.Module,
    batches: Iterable[Batch],
    normalise: Callable[[Tensor], Tensor],
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[float, float]:
    """(accuracy in [0, 1], mean cross entropy) in eval mode; the model's mode is the same afterwards.

    batches: raw images uint8 (N, C, H, W)
    change:  done to each batch first: for judging on augmented images, as arXiv 2305.13232, Eq. 3, is written

    Raises ValueError if there are no images.
    """
    was_training = model.training
    model.eval()
    right = total = 0
    loss = 0.0
    for batch in batches:
        batch = change(batch.to(device_of(model)))
        logits = model(normalise(batch.images)).float()
        right += int((logits.argmax(1) == batch.targets).sum())
        loss += float(functional.cross_entropy(logits, batch.targets, reduction="sum"))
        total += len(batch.targets)
    model.train(was_training)
    if not total:
        raise ValueError("there are no images to judge by")
    return right / total, loss / total

"""How much a channel matters: by its weights, its batch normalisation, its part in the loss, or by chance."""

import zlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import Tensor, nn

from compress_aug.errors import PruneError
from compress_aug.surgery import copy_model, device_of

Importance = Literal["l1", "l2", "bn_scale", "taylor", "random"]
Batches = Iterable[tuple[Tensor, Tensor]] | Callable[[nn.Module], object]
"""What `taylor` takes gradients from: (inputs, targets), or a function that runs the model and calls backward."""


def score_channels(group: Any, name: str, importance: Importance) -> Tensor | None:
    """A number for each channel of a group of torch-pruning, on the CPU; None if it cannot be ranked this way.

    name: of the layer that the group is cut by. "taylor" expects a model of `weighted_by_gradients`.
    """
    if importance == "random":
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.rand(len(group[0].idxs), generator=generator)
    # Not normalised: channels are only compared with others of their layer, and a layer of zeros has no mean.
    if importance == "bn_scale":
        found: Tensor | None = tp.importance.BNScaleImportance(normalizer=None)(group)
    else:
        power = 2 if importance == "l2" else 1
        found = tp.importance.MagnitudeImportance(p=power, normalizer=None)(group)
    return None if found is None else found.cpu()


def weighted_by_gradients(model: nn.Module, batches: Batches) -> nn.Module:
    """A copy whose parameters are |weight x gradient|, summed over the batches: what the loss gains without each.

    batches: inputs (N, C, H, W) and targets, classes (N,) or shares of classes (N, K), for cross entropy; or
             a function that leaves gradients in the parameters of the model it is given, called once

    The l1 norm of a channel of this copy is its first-order Taylor importance. The model stays as it is; it
    runs in the mode it is in.

    Raises PruneError without batches, and if the loss has no finite gradient.
    """
    probe = copy_model(model).requires_grad_(True)
    sums = {name: torch.zeros_like(parameter) for name, parameter in probe.named_parameters()}
    with torch.enable_grad():
        for backward in _backwards(batches, device_of(model)):
            probe.zero_grad()
            backward(probe)
            _add_products(probe, sums)
    if not any(bool(total.any()) for total in sums.values()):
        raise PruneError("importance taylor needs gradients: batches held none, or the loss is flat.")
    weighted = copy_model(model)
    with torch.no_grad():
        for name, parameter in weighted.named_parameters():
            parameter.copy_(sums[name])
    return weighted


def _backwards(batches: Batches, device: torch.device) -> Iterable[Callable[[nn.Module], object]]:
    if callable(batches):
        return [batches]

    def backward_on(inputs: Tensor, targets: Tensor) -> Callable[[nn.Module], object]:
        return lambda model: torch.autograd.backward(
            F.cross_entropy(model(inputs.to(device)), targets.to(device))
        )

    return (backward_on(inputs, targets) for inputs, targets in batches)


@torch.no_grad()
def _add_products(model: nn.Module, sums: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        product = (parameter * parameter.grad).abs()
        if not product.isfinite().all():
            raise PruneError(
                f'importance taylor: the gradient of "{name}" is not finite. Does the model still learn?'
            )
        sums[name] += product

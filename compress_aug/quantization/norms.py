"""Batch-norm statistics measured anew, for when something before them has changed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress_aug.errors import QuantizeError
from compress_aug.surgery import device_of


@torch.no_grad()
def reestimate_batch_norms(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Replace the running mean and variance of every batch norm by those of these batches, and nothing else.

    batches: float input batches (N, C, H, W), normalised as in training; 20 to 50 of the training batch size do

    Each batch runs forward once, without gradient, with the batch norms in training mode (so that a norm sees
    what the norms before it make of the same batch) and all else in evaluation mode: dropout would shift what
    is measured, and no random number is drawn. The result is the average over the batches, weighted by their
    images. Modes are then as before, also those of norms that were frozen by `eval()`. Changes the model and
    returns it; without a batch norm that keeps statistics, it does nothing and reads no batch.

    Raises QuantizeError if there is no batch, if a batch has one value per channel only, or if statistics are
    not finite; the statistics are then as they were.

    >>> net = nn.Sequential(nn.BatchNorm2d(3))
    >>> images = torch.rand(64, 3, 8, 8) + 5
    >>> bool((reestimate_batch_norms(net, [images])[0].running_mean - images.mean((0, 2, 3))).abs().max() < 1e-5)
    True

    Source: "precise batch norm" (arXiv 2105.07576, section 3), which averages over batches of equal size.
    """
    norms = {name: module for name, module in model.named_modules() if _keeps_statistics(module)}
    if not norms:
        return model
    kept = {name: [value.clone() for value in _statistics(norm)] for name, norm in norms.items()}
    try:
        with _measuring(model, list(norms.values())):
            _run(model, batches)
        _check_finite(norms)
    except BaseException:
        for name, values in kept.items():
            for value, old in zip(_statistics(norms[name]), values, strict=True):
                value.copy_(old)
        raise
    return model


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _statistics(norm: Any) -> list[Tensor]:
    return [norm.running_mean, norm.running_var, norm.num_batches_tracked]


def _run(model: nn.Module, batches: Iterable[Tensor]) -> None:
    number = 0
    for number, batch in enumerate(batches, start=1):
        try:
            model(batch.to(device_of(model)))
        except ValueError as reason:
            if "more than 1 value per channel" not in str(reason):
                raise
            raise QuantizeError(
                f"Batch {number} {list(batch.shape)} leaves one value per channel at a batch norm, which has no "
                "variance: give batches of several images."
            ) from reason
    if number == 0:
        raise QuantizeError(
            "There is no batch to measure batch-norm statistics on: give float input batches (N, C, H, W), "
            "normalised as in training."
        )


@contextmanager
def _measuring(model: nn.Module, norms: list[Any]) -> Iterator[None]:
    """Batch norms average over all they see, weighted by images; all else is in evaluation mode."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    handles = []
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            handles.append(norm.register_forward_pre_hook(_Average()))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


class _Average:
    """Sets a norm's momentum so that its running statistics are the mean over all images of all its calls."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, norm: Any, inputs: tuple[Tensor, ...]) -> None:
        self.seen += len(inputs[0])
        norm.momentum = len(inputs[0]) / self.seen


def _check_finite(norms: dict[str, Any]) -> None:
    for name, norm in norms.items():
        if not bool(torch.isfinite(norm.running_mean).all() & torch.isfinite(norm.running_var).all()):
            raise QuantizeError(f'The values at batch norm "{name}" are not finite for these batches.')

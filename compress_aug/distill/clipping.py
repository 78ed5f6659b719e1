"""A teacher's gradient that never outweighs the task's, clipped for each parameter tensor on its own."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

LambdaMode = Literal["post_clip", "pre_clip", "off"]


def clip_to_task(taught: Tensor, task: Tensor, epoch: int) -> Tensor:
    """The teacher's gradient of a tensor, scaled down where it is longer than the task's times 1 / (1 + exp(-epoch)).

    taught, task: of the same shape
    epoch:        from 0, where the share is a half; from 5 on it is nearly 1

    >>> clip_to_task(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), epoch=0)
    tensor([0.6000, 0.8000])

    Source: the code of arXiv 2004.08861, after KD-SVD (arXiv 1807.06819).
    """
    allowed: Tensor = task.norm() / (1 + math.exp(-epoch))
    length: Tensor = taught.norm().clamp_min(torch.finfo(taught.dtype).tiny)
    return taught * (allowed / length).clamp(max=1)


def backward_clipped(
    task: Tensor,
    taught: Tensor,
    parameters: Iterable[nn.Parameter],
    *,
    epoch: int,
    weight: float = 1.0,
    lambda_mode: LambdaMode = "post_clip",
    unclipped: Iterable[nn.Parameter] = (),
    backward: Callable[[Tensor], object] = Tensor.backward,
    averaged: Callable[[Sequence[Tensor]], Sequence[Tensor]] = lambda gradients: gradients,
) -> None:
    """Put into each parameter's `grad` that of the task, and that of the teacher as far as it is not longer.

    task, taught: losses, scalars of one graph; `taught` without its weight
    parameters:   of the student. What the task does not reach gets nothing from the teacher either
    epoch:        see `clip_to_task`
    weight:       of the teacher's gradient, at least 0
    lambda_mode:  "post_clip": task + weight * clip(taught). "pre_clip": task + clip(weight * taught).
                  "off": task + clip(taught)
    unclipped:    what is trained beside the student (adapters), which the task does not reach: gets the teacher's
                  gradient whole
    backward, averaged: how the task's loss goes backward, and what the teacher's gradients become, where several
                  processes must agree

    >>> layer = nn.Linear(2, 1)
    >>> out = layer(torch.ones(3, 2)).sum()
    >>> backward_clipped(out, 100 * out, layer.parameters(), epoch=9)
    >>> bool((layer.bias.grad < 2 * 3 + 1e-3).all())
    True

    Source: as `clip_to_task`. There weight does nothing (lambda_mode "off"); the other two are ours.
    """
    clipped, whole = ([p for p in group if p.requires_grad] for group in (parameters, unclipped))
    scale = 1.0 if lambda_mode == "off" else weight
    loss = scale * taught if lambda_mode == "pre_clip" else taught
    found = torch.autograd.grad(loss, [*clipped, *whole], retain_graph=True, allow_unused=True)
    # All of them, so that every process has the same ones to average.
    filled = [
        torch.zeros_like(p) if gradient is None else gradient
        for p, gradient in zip([*clipped, *whole], found, strict=True)
    ]
    gradients = list(averaged(filled))
    backward(task)
    behind = scale if lambda_mode == "post_clip" else 1.0
    for parameter, gradient in zip(clipped, gradients, strict=False):
        if parameter.grad is not None:
            parameter.grad.add_(clip_to_task(gradient, parameter.grad, epoch), alpha=behind)
    for parameter, gradient in zip(whole, gradients[len(clipped) :], strict=True):
        parameter.grad = behind * gradient

"""What objectives with a teacher share: asking it, checking what it says, gradients that all processes agree on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress_aug.batch import Batch
from compress_aug.errors import ModelError


def asked(teacher: nn.Module, batch: Batch) -> Tensor:
    """The teacher's logits for a batch, (N, K), without gradients. Raises ValueError if the batch has no inputs."""
    if batch.inputs is None:
        raise ValueError("a teacher needs batch.inputs, the normalised images, to be asked")
    with torch.no_grad():
        answer: Tensor = teacher(batch.inputs)
    return answer


def check_classes(teacher: Tensor, student: Tensor) -> None:
    """Raises ModelError unless both nets have the same classes."""
    if not isinstance(teacher, Tensor) or teacher.shape != student.shape:
        shape = list(teacher.shape) if isinstance(teacher, Tensor) else type(teacher).__name__
        raise ModelError(
            f"The teacher's output is {shape} where the student's is {list(student.shape)} (images, classes): both "
            "must know the same classes."
        )


def averaged(gradients: Sequence[Any], fabric: Any) -> Sequence[Any]:
    """The mean over all processes of gradients that DistributedDataParallel does not know of."""
    if fabric.world_size == 1 or not gradients:
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = fabric.all_reduce(flat, reduce_op="mean")
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]

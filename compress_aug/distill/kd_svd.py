"""KD-SVD: the student copies how the main direction of a map goes over into that of the next."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["batchmean", "sum"]


def kd_svd_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], reduction: Reduction = "batchmean"
) -> Tensor:
    """Squared differences of exp(-(v[i] - u[j])^2 / 8), with v, u singular vectors of consecutive maps.

    student, teacher: for each of at least two levels the vectors (N, D) of `aligned_vectors`; D is the same for both,
                      and may differ between levels. The teacher's get no gradient
    reduction:        over images: "batchmean", or "sum" as in the reference; over channels and levels it is the sum

    >>> levels = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8, 0.0]])]
    >>> float(kd_svd_loss(levels, levels))
    0.0

    Returns a scalar. Raises ValueError for fewer than two levels.

    Source: arXiv 1807.06819; with one vector of each map its singular value is 1.
    """
    check_levels(student, teacher)
    loss = torch.zeros((), device=student[0].device)
    for place in range(1, len(student)):
        ours = _relations(student[place], student[place - 1])
        theirs = _relations(teacher[place].detach(), teacher[place - 1].detach())
        loss = loss + (ours - theirs).square().sum()
    return loss / len(student[0]) if reduction == "batchmean" else loss


def _relations(level: Tensor, earlier: Tensor) -> Tensor:
    """(N, D of the level, D of the earlier one)."""
    return torch.exp((level[:, :, None] - earlier[:, None, :]).square() / -8)


def check_levels(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """Raises ValueError unless both have the same levels, two or more."""
    ours, theirs = ([tuple(level.shape) for level in side] for side in (student, teacher))
    if ours != theirs or len(ours) < 2:
        raise ValueError(
            f"expected vectors of at least two levels, of the same shapes for both, found {ours} of the student and "
            f"{theirs} of the teacher"
        )

"""Relational knowledge distillation: the student copies distances and angles between the images of a batch."""

import torch
from torch import Tensor
from torch.nn import functional

# Below this distance two rows are the same: the direction from one to the other means nothing.
_LEAST_DISTANCE = 1e-6


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the distances of each two rows, which are first divided by their mean.

    student, teacher: (N, D), of which D may differ; the teacher's get no gradient
    Returns a scalar in float32, the mean over N * N pairs. Rows that are equal give no gradient.

    >>> rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    >>> float(rkd_distance_loss(2 * rows, rows))
    0.0

    Source: arXiv 1904.05068, equations 5-7.
    """
    ours, theirs = _distances(_differences(student)), _distances(_differences(teacher.detach()))
    return functional.smooth_l1_loss(_of_mean(ours), _of_mean(theirs))


def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles that each three rows form.

    student, teacher: (N, D), of which D may differ; the teacher's get no gradient
    Returns a scalar in float32, the mean over N * N * N triples: it takes 4 N^3 bytes a few times, 8 MB for N = 128
    and 0.5 GB for N = 512. Rows that are equal give no gradient.

    >>> rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    >>> float(rkd_angle_loss(2 * rows + 1, rows))
    0.0

    Source: arXiv 1904.05068, equations 8-10.
    """
    ours, theirs = _cosines(_differences(student)), _cosines(_differences(teacher.detach()))
    return functional.smooth_l1_loss(ours, theirs)


def rkd_loss(
    student: Tensor, teacher: Tensor, *, distance: float = 50.0, angle: float = 100.0, normalise: bool = True
) -> Tensor:
    """distance * `rkd_distance_loss` + angle * `rkd_angle_loss`.

    student, teacher: logits (N, K), or any other embedding (N, D)
    distance, angle:  weights, at least 0
    normalise:        divide each row by its length first

    >>> rows = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    >>> float(rkd_loss(2 * rows, rows))
    0.0

    The loss does not see how large the rows are, so its gradient is the longer the closer they lie: with these weights
    hundreds of times that of the cross entropy in a fresh net, whose answers hardly differ, and tens of times later.
    Added up as it is, it breaks many a training from scratch; `backward_clipped`, or `clip` of `Distillation`, bounds
    it.

    Source: arXiv 1904.05068. Normalised logits with 50 and 100, not clipped, are those of the code of arXiv 2004.08861;
    the authors of the method take embeddings as they are, with weights of 1:2 in other sizes.
    """
    pair = (student.float(), teacher.detach().float())
    if normalise:
        student, teacher = (functional.normalize(rows, dim=1) for rows in pair)
    loss = torch.zeros((), device=student.device)
    if distance:
        loss = loss + distance * rkd_distance_loss(student, teacher)
    if angle:
        loss = loss + angle * rkd_angle_loss(student, teacher)
    return loss


def _differences(rows: Tensor) -> Tensor:
    """From row i to row j, (N, N, D). By subtraction: a product of matrices would cancel where rows are close."""
    rows = rows.float()
    return rows[None] - rows[:, None]


def _distances(differences: Tensor) -> Tensor:
    """(N, N), zero on the diagonal."""
    squared = differences.square().sum(2).clamp_min(_LEAST_DISTANCE**2)
    diagonal = torch.eye(len(squared), dtype=torch.bool, device=squared.device)
    return squared.sqrt().masked_fill(diagonal, 0.0)


def _of_mean(distances: Tensor) -> Tensor:
    """Divided by the mean of those that are not zero."""
    pairs = (distances > 0).sum().clamp_min(1)
    return distances * (pairs / distances.sum().clamp_min(_LEAST_DISTANCE))


def _cosines(differences: Tensor) -> Tensor:
    """(N, N, N): at i the cosine between the ways to j and to k; 0 where there is no way."""
    squared = differences.square().sum(2, keepdim=True)
    near = squared <= _LEAST_DISTANCE**2
    ways = differences * squared.masked_fill(near, 1.0).rsqrt().masked_fill(near, 0.0)
    return ways @ ways.transpose(1, 2)

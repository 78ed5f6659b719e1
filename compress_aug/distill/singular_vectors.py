"""Singular vectors of feature maps, with a gradient that stays finite where that of torch.linalg.svd does not."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Relative to the largest singular value, to the fourth and second power: how near two may be before the gradient of
# their vectors stops growing.
_EPSILON = 1e-6

# How many vectors of the student may be meant by one of the teacher.
_CANDIDATES = 4


def singular_vectors(maps: Tensor, number: int = 1, epsilon: float = _EPSILON) -> Tensor:
    """The first right singular vectors of each map: the directions of channels that say most of it.

    maps:    (N, P, D), positions and channels, float32 or float64
    number:  how many, at most min(P, D)
    epsilon: 0 gives the exact gradient, which is infinite where singular values are equal

    Returns (N, D, number), columns of length 1, the largest singular value first. The sign of a vector is free; here
    its entries have a sum of at least 0. Where maps are all zero, or not finite, vectors are constant and the
    gradient is 0.

    >>> singular_vectors(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]))[0, :, 0]
    tensor([1., 0.])

    Source: KD-SVD (arXiv 1807.06819) takes them from an SVD, whose gradient divides by differences of singular values
    and often is not a number where channels are zero, as dead ReLUs make them. The eigenvectors of the smaller Gram
    matrix and a gradient with bounded denominators are ours.
    """
    vectors: Tensor = _SingularVectors.apply(maps, number, epsilon)
    return vectors


class _SingularVectors(torch.autograd.Function):
    """Forward by eigenvectors of X'X or XX'; backward with Delta / (Delta^2 + epsilon s1^4) for 1 / Delta.

    The vectors do not depend on the size of a map, so all is computed as if X were divided by its norm: numbers near 1
    bear the fourth power. The maps themselves are not copied.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, number: int, epsilon: float) -> Tensor:
        is_tall = maps.shape[1] >= maps.shape[2]
        gram = maps.mT @ maps if is_tall else maps @ maps.mT
        size = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        lost = ~gram.isfinite().all(2).all(1)[:, None, None] | (size == 0)
        size = size.masked_fill(lost, 1.0)
        squared, vectors = torch.linalg.eigh(gram.masked_fill(lost, 0.0) / size)
        squared, vectors = squared.flip(1).clamp_min(0), vectors.flip(2)
        right = vectors if is_tall else _other_side(maps, squared, vectors, size, lost)
        right = right * torch.where(right.sum(1, keepdim=True) < 0, -1.0, 1.0).to(right.dtype)
        ctx.save_for_backward(maps, size, lost, squared, right)
        ctx.number, ctx.epsilon = number, epsilon
        return right[:, :, :number].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        maps, size, lost, squared, right = ctx.saved_tensors
        number = ctx.number
        tiny = torch.finfo(maps.dtype).tiny
        largest = squared[:, :1, None]
        # V'g has columns for the vectors asked for alone; what is antisymmetric in it turns them within the space.
        inner = torch.zeros_like(squared)[:, :, None].expand(-1, -1, squared.shape[1]).clone()
        inner[:, :, :number] = right.mT @ gradient
        apart = squared[:, None, :] - squared[:, :, None]
        bounded = apart / (apart.square() + ctx.epsilon * largest.square() + tiny)
        turned = bounded * (inner - inner.mT) / size
        if right.shape[1] == right.shape[2]:
            result = maps @ (right @ turned @ right.mT)
        else:
            # More channels than positions: there is also what leads out of the space.
            outside = gradient - right @ (right.mT @ gradient)
            least = ctx.epsilon * largest + tiny
            first = right[:, :, :number] / (squared[:, None, :number] + least) / size
            result = (maps @ right) @ turned @ right.mT + (maps @ first) @ outside.mT
        return result.masked_fill_(lost, 0.0), None, None


def _other_side(maps: Tensor, squared: Tensor, left: Tensor, size: Tensor, lost: Tensor) -> Tensor:
    """The right vectors, (N, D, P), that belong to left ones."""
    # A vector whose singular value is lost in rounding has no direction: it becomes zero.
    none = squared <= torch.finfo(maps.dtype).eps * maps.shape[2] * squared[:, :1]
    scale = squared.clamp_min(torch.finfo(maps.dtype).tiny).rsqrt().masked_fill(none, 0.0)
    return (maps.mT @ (left * scale[:, None, :] * size.rsqrt())).masked_fill(lost, 0.0)


def aligned_vectors(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The first singular vector of the teacher's map, and that of the student's first four which is most like it.

    student, teacher: maps (N, P, D); P may differ, the teacher's get no gradient
    Returns both, (N, D) each, in float32; the student's has the sign that makes it like the teacher's.

    >>> student, teacher = aligned_vectors(torch.rand(2, 9, 3), torch.rand(2, 4, 3))
    >>> student.shape, bool((student * teacher).sum(1).min() >= 0)
    (torch.Size([2, 3]), True)

    Source: KD-SVD (arXiv 1807.06819), in the form with one vector (K = 1) of the code of arXiv 2004.08861. Of equals
    the first is taken, where that code takes their sum.
    """
    theirs = singular_vectors(teacher.detach(), 1)
    ours = singular_vectors(student, min(_CANDIDATES, *student.shape[1:]))
    likeness = (ours.mT @ theirs)[:, :, 0]
    best = likeness.detach().abs().argmax(1, keepdim=True)
    chosen = ours.gather(2, best[:, None, :].expand(-1, ours.shape[1], -1))[:, :, 0]
    sign = torch.where(likeness.detach().gather(1, best) < 0, -1.0, 1.0)
    return chosen * sign, theirs[:, :, 0]

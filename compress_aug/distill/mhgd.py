"""MHGD: the student copies how images relate from one map to the next, as heads trained on the teacher see it."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_aug.distill.kd_svd import Reduction, check_levels

# What holds the weights of the heads small while they are trained, times the sum of their squares.
_DECAY = 5e-4


class AttentionHeads(nn.Module):
    """Heads that attend, for the image of each row, from a level of the network to the images at the level before.

    widths: channels of each level, two levels or more
    heads:  of each pair of consecutive levels
    seed:   of the first weights

    >>> attention = AttentionHeads([4, 6], heads=2)
    >>> [tuple(graph.shape) for graph in attention([torch.rand(5, 4), torch.rand(5, 6)])]
    [(2, 5, 5)]

    Source: MHGD (arXiv 1907.02226), with 8 heads; the code of arXiv 2004.08861 has 4. Ours: first weights after Glorot,
    no biases.
    """

    def __init__(self, widths: Sequence[int], heads: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(_Pair(earlier, level, heads) for earlier, level in pairwise(widths))
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)

    def _pairs(self) -> Iterator["_Pair"]:
        return (pair for pair in self.pairs if isinstance(pair, _Pair))

    def forward(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Vectors (N, D) of each level -> for each pair of levels what softmax makes attention of, (heads, N, N)."""
        return [
            pair.graph(level, earlier)
            for pair, (earlier, level) in zip(self._pairs(), pairwise(vectors), strict=True)
        ]

    def estimation_loss(self, vectors: Sequence[Tensor], noise: torch.Generator | None = None) -> Tensor:
        """How badly each level's vectors are guessed from those before, through the attention; what trains the heads.

        vectors: of the teacher, (N, D) for each level
        noise:   draws, on the CPU, which heads are left out in each row

        Returns a scalar: the mean of 1 - cosine, summed over pairs of levels, and 5e-4 times all squared weights.
        """
        missed = torch.zeros((), device=vectors[0].device)
        for pair, (earlier, level) in zip(self._pairs(), pairwise(vectors), strict=True):
            guessed = pair.guess(level, earlier, noise)
            missed = missed + (1 - functional.cosine_similarity(guessed, level, dim=1)).mean()
        squares = torch.stack([p.square().sum() for p in self.parameters() if p.ndim == 2]).sum()
        return missed + _DECAY * squares


class _Pair(nn.Module):
    """The heads between a level and the one before."""

    def __init__(self, earlier: int, level: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        width = (earlier + level) // 2
        self.sender = nn.Linear(level, width * heads, bias=False)
        self.sender_norm = nn.BatchNorm1d(width * heads)
        self.receiver = nn.Linear(earlier, width * heads, bias=False)
        self.receiver_norm = nn.BatchNorm1d(width * heads)
        self.values = nn.Linear(earlier, width, bias=False)
        self.values_norm = nn.BatchNorm1d(width)
        self.guessed = nn.Linear(width * heads, level, bias=False)

    def graph(self, level: Tensor, earlier: Tensor) -> Tensor:
        """(N, D) and (N, D of before) -> (heads, N, N), a row for each image at the level."""
        sent = self.sender_norm(self.sender(level)).unflatten(1, (-1, self.heads))
        received = self.receiver_norm(self.receiver(earlier)).unflatten(1, (-1, self.heads))
        product: Tensor = sent.permute(2, 0, 1) @ received.permute(2, 1, 0)
        return product

    def guess(self, level: Tensor, earlier: Tensor, noise: torch.Generator | None) -> Tensor:
        """The level's vectors, (N, D), out of those before, by the heads that are not left out."""
        attention = self.graph(level, earlier).softmax(2)
        drawn = torch.randn(self.heads, len(level), 1, generator=noise).to(attention.device)
        attention = attention * (drawn > drawn.mean(0))
        values = self.values_norm(self.values(earlier)).relu()
        joined = (attention @ values).permute(1, 0, 2).flatten(1)
        guessed: Tensor = self.guessed(joined)
        return guessed


def mhgd_loss(
    heads: AttentionHeads,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    reduction: Reduction = "batchmean",
) -> Tensor:
    """KL(student || teacher) of the attention that the heads find in the vectors, summed over heads and levels.

    heads:            trained by their `estimation_loss`, in eval mode
    student, teacher: for each of at least two levels the vectors (N, D) of `aligned_vectors`; D is the same for both,
                      and may differ between levels. The teacher's get no gradient
    reduction:        over images, which are the rows: "batchmean", or "sum" as in the reference

    >>> levels = [torch.rand(5, 4), torch.rand(5, 6)]
    >>> float(mhgd_loss(AttentionHeads([4, 6]).eval().requires_grad_(False), levels, levels))
    0.0

    Returns a scalar. Raises ValueError for fewer than two levels.

    Source: arXiv 1907.02226, through the code of arXiv 2004.08861.
    """
    check_levels(student, teacher)
    with torch.no_grad():
        theirs = heads(teacher)
    loss = torch.zeros((), device=student[0].device)
    for ours, graph in zip(heads(student), theirs, strict=True):
        log_student, log_teacher = ours.tanh().log_softmax(2), graph.tanh().log_softmax(2)
        loss = loss + (log_student.exp() * (log_student - log_teacher)).sum()
    return loss / len(student[0]) if reduction == "batchmean" else loss

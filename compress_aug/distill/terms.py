"""What a student can be asked to imitate: each loss of this folder as a part of an objective."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from compress_aug.distill.dml import mutual_loss
from compress_aug.distill.features import Seen
from compress_aug.distill.kd_svd import Reduction, kd_svd_loss
from compress_aug.distill.rkd import rkd_loss

Embedding = Literal["logits", "pooled"]


class Term(Protocol):
    """A part of what `Distillation` minimises.

    name:   in the history;  levels: how many feature maps it needs at least, 0 for none

    Optional: prepare(widths, device, seed), begin(training, maps_of, each_step), state_dict(), load_state_dict(state),
    as `Attention` has them.
    """

    @property
    def name(self) -> str: ...

    @property
    def levels(self) -> int: ...

    def loss(self, seen: Seen) -> Tensor:
        """A scalar in float32, without its weight."""
        ...


@dataclass(frozen=True)
class Mutual:
    """`mutual_loss` with a fixed teacher."""

    name: ClassVar[str] = "dml"
    levels: ClassVar[int] = 0

    def loss(self, seen: Seen) -> Tensor:
        """See `mutual_loss`."""
        return mutual_loss(seen.student, seen.teacher)


@dataclass(frozen=True)
class Relations:
    """`rkd_loss` of logits, or of the last maps' means over positions (embedding "pooled").

    Give `Distillation` a `clip` with it, as recipes do: see `rkd_loss` for why.
    """

    distance: float = 50.0
    angle: float = 100.0
    normalise: bool = True
    embedding: Embedding = "logits"
    name: ClassVar[str] = "rkd"

    @property
    def levels(self) -> int:
        return 0 if self.embedding == "logits" else 1

    def loss(self, seen: Seen) -> Tensor:
        """See `rkd_loss`."""
        pair = (seen.student, seen.teacher)
        if self.embedding == "pooled":
            pair = (seen.maps[-1][0].mean(1), seen.maps[-1][1].mean(1))
        return rkd_loss(*pair, distance=self.distance, angle=self.angle, normalise=self.normalise)


@dataclass(frozen=True)
class Directions:
    """`kd_svd_loss` of consecutive maps."""

    reduction: Reduction = "batchmean"
    name: ClassVar[str] = "kd_svd"
    levels: ClassVar[int] = 2

    def loss(self, seen: Seen) -> Tensor:
        """See `kd_svd_loss`."""
        return kd_svd_loss(*seen.vectors, reduction=self.reduction)

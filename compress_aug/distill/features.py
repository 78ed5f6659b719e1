"""The maps of teacher and student side by side, with adapters where the student has other channels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_aug.distill.singular_vectors import aligned_vectors
from compress_aug.distill.taps import Taps, Wanted, positions
from compress_aug.errors import ModelError, RecipeError


@dataclass(frozen=True)
class TapNames:
    """Taps of teacher and student where they are not called the same; see `Taps`."""

    teacher: Wanted = "auto"
    student: Wanted = "auto"


@dataclass(frozen=True)
class Seen:
    """What both nets made of a batch.

    student, teacher: logits (N, K)
    maps:             of each level the student's and the teacher's, (N, P, D), D the same for both
    """

    student: Tensor
    teacher: Tensor
    maps: Sequence[tuple[Tensor, Tensor]] = field(default_factory=tuple)

    @cached_property
    def vectors(self) -> tuple[list[Tensor], list[Tensor]]:
        """`aligned_vectors` of each level: the student's and the teacher's, (N, D). Computed once."""
        pairs = [aligned_vectors(ours, theirs) for ours, theirs in self.maps]
        return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


class Features:
    """Taps in teacher and student, and a learned 1x1 convolution wherever the student's channels are not as many.

    student, teacher: hooks hang on both until `close`
    example:          float (N, C, H, W)
    taps:             for both, or `TapNames`
    least:            how many levels the loss needs
    adapt:            False if the loss bears other channels
    seed:             of the adapters' first weights
    note:             is told, in a line each, where the taps are, and what adapters there are

    Resolutions may differ: losses here compare directions of channels, or means over positions.

    Raises RecipeError if the two have not the same number of taps, or fewer than the loss needs.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        example: Tensor,
        taps: Wanted | TapNames = "auto",
        *,
        least: int = 1,
        adapt: bool = True,
        seed: int = 0,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        names = taps if isinstance(taps, TapNames) else TapNames(taps, taps)
        self.teacher = _found("teacher", lambda: Taps(teacher, example, names.teacher))
        try:
            self.student = _found(
                "student", lambda: Taps(student, example, names.student, with_gradients_only=True)
            )
            self._check(least)
        except Exception:
            self.close()
            raise
        widths = list(zip(self.student.widths, self.teacher.widths, strict=True))
        self.adapters = nn.ModuleList(
            _Adapter(ours, theirs, seed + place) if adapt and ours != theirs else nn.Identity()
            for place, (ours, theirs) in enumerate(widths)
        ).to(example.device)
        note(
            f"taps: {', '.join(self.teacher.names)} of the teacher, {', '.join(self.student.names)} of the student"
        )
        adapted = [f"{ours} → {theirs}" for ours, theirs in widths if adapt and ours != theirs]
        if adapted:
            note(
                f"learned 1x1 adapters on the student's taps, for the loss alone: {', '.join(adapted)} channels"
            )

    def _check(self, least: int) -> None:
        ours, theirs = self.student.names, self.teacher.names
        if len(ours) != len(theirs):
            raise RecipeError(
                f"the student has {len(ours)} taps ({', '.join(ours)}), the teacher {len(theirs)} "
                f"({', '.join(theirs)}): they must be as many; name them, taps: {{teacher: [...], student: [...]}}"
            )
        if len(ours) < least:
            raise RecipeError(
                f"found {len(ours)} tap ({', '.join(ours)}), but the loss compares consecutive maps: name at least "
                f"{least}, taps: [...]"
            )

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """The maps of the last pass of both, (N, P, D) each, float32; the teacher's without gradients."""
        both = zip(self.student.take(), self.teacher.take(), self.adapters, strict=True)
        return [(adapter(positions(ours)), positions(theirs.detach())) for ours, theirs, adapter in both]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of the adapters."""
        return self.adapters.parameters()

    def close(self) -> None:
        """Remove the hooks from both."""
        for side in ("student", "teacher"):
            if side in self.__dict__:
                self.__dict__[side].close()


class _Adapter(nn.Module):
    """A 1x1 convolution without bias, on maps (N, P, D)."""

    def __init__(self, channels: int, wanted: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(wanted, channels))
        # Keeps the lengths of what it maps, as far as the widths allow: the map's main directions stay the main ones.
        nn.init.orthogonal_(self.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, maps: Tensor) -> Tensor:
        return functional.linear(maps, self.weight)


def _found(who: Literal["student", "teacher"], taps: Callable[[], Taps]) -> Taps:
    try:
        return taps()
    except (RecipeError, ModelError) as error:
        raise type(error)(f"taps of the {who}: {error}") from None

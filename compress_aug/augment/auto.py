"""`magnitude: auto`: M follows what a larger net's loss says of how hard augmentation is for the one that trains."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_aug import measure
from compress_aug.augment.filter import evaluating
from compress_aug.augment.operations import check_magnitude
from compress_aug.augment.randaugment import RandAugment
from compress_aug.batch import Batch
from compress_aug.errors import ModelError, RecipeError

# What the student must know of plain images, as a share of what the reference knows, before M moves: a net at chance
# knows as little of augmented images as of others, and would seem to bear anything.
_KNOWS_ENOUGH = 0.5
# Of a batch, how much a probe looks at. Small and often beats large and seldom at the same cost: M moves by one.
_SHARE_OF_BATCH = 4
# Of a probe at the same M, what counts beside the next one: it was about weights that have changed since.
_FADES = 0.97


@dataclass(frozen=True)
class Difficulty:
    """How hard augmented images are for a student, beside a larger net.

    What a net knows of images is ln(classes) less its cross entropy, 0 for one that guesses.

    student, reference: share of what the net knows of plain images that it still knows of augmented ones: 1 for
                        no difference, below 0 for worse than guessing. What the student knows of plain images beyond
                        the reference is left out: it comes of training on them, not of room that is wanting
    gap:                reference less student: by how much more of its knowledge the student loses
    gap_error, reference_error: their standard errors
    """

    student: float
    reference: float
    gap: float
    gap_error: float
    reference_error: float


def difficulty(sums: Tensor) -> Difficulty | None:
    """What `knowledge_sums` come to; None while the student knows less than half of what the reference knows.

    >>> sure, unsure = torch.tensor([[4.0, 0.0]]).repeat(8, 1), torch.tensor([[1.0, 0.0]]).repeat(8, 1)
    >>> found = difficulty(knowledge_sums((sure, unsure), (sure, sure), torch.zeros(8, dtype=torch.int64)))
    >>> round(found.student, 2), round(found.reference, 2), round(found.gap, 2)
    (0.56, 1.0, 0.44)

    Standard errors are those of a ratio of means (delta method), of images that are drawn independently.
    """
    count = float(sums[0])
    if count < 2:
        return None
    mean = sums[1:5] / count
    student, student_changed, reference, reference_changed = mean.tolist()
    if reference <= 0 or student < _KNOWS_ENOUGH * reference:
        return None
    base = min(student, reference)
    shares = student_changed / base, reference_changed / reference
    of_reference = torch.tensor([0, 0, -shares[1] / reference, 1 / reference], dtype=torch.float64)
    of_student = torch.tensor([0, 1 / base, 0, 0], dtype=torch.float64)
    of_student[0 if student < reference else 2] -= shares[0] / base
    of_gap = of_reference - of_student
    spread = sums[5:].view(4, 4) / count - torch.outer(mean, mean)

    def error(slope: Tensor) -> float:
        return math.sqrt(max(0.0, float(slope @ spread @ slope)) / (count - 1))

    return Difficulty(*shares, shares[1] - shares[0], error(of_gap), error(of_reference))


def knowledge_sums(
    student: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor], targets: Tensor
) -> Tensor:
    """Sums over images of what both nets know of them, from which `difficulty` is told; they may be added up.

    student, reference: logits (N, K) of the plain images and of the augmented ones
    targets:            int64 (N,)

    Returns float64 (21,): how many images count, then the sums of ln K - CE of the student (plain, augmented) and the
    reference (plain, augmented), then of the products of these four. An image whose losses are not all numbers does
    not count.
    """
    known = torch.stack(
        [
            math.log(logits.shape[1]) - functional.cross_entropy(logits.float(), targets, reduction="none")
            for logits in (*student, *reference)
        ],
        1,
    ).double()
    counts = known.isfinite().all(1)
    known = known[counts]
    return torch.cat([counts.sum().double()[None], known.sum(0), (known.T @ known).flatten()])


def next_magnitude(
    magnitude: int | None, found: Difficulty | None, *, gap: float, known: float, most: int
) -> int | None:
    """M after a probe: one less where augmentation is too hard, one more where it is easy, else the same.

    magnitude:  1..30, or None for no RandAugment
    found:      of a probe at this magnitude, or at 1 if it is None; None leaves it as it is
    gap, known: too hard is what costs the student more than the reference by over `gap`, or leaves the reference
                less than `known`; see `Difficulty`. It counts if it is further off than its standard error
    most:       the largest M

    >>> easy = Difficulty(student=0.9, reference=0.92, gap=0.02, gap_error=0.01, reference_error=0.01)
    >>> next_magnitude(4, easy, gap=0.1, known=0.5, most=30), next_magnitude(1, easy, gap=0.0, known=0.5, most=30)
    (5, None)
    """
    if found is None:
        return magnitude
    room, error = min((gap - found.gap, found.gap_error), (found.reference - known, found.reference_error))
    level = magnitude or 0
    if room > error:
        level = min(level + 1, most)
    elif room < -error:
        level -= 1
    return level if level >= 1 else None


def probe_interval(
    student_macs: int, reference_macs: int, *, images: int, batch_size: int, cost: float
) -> int:
    """Steps from one probe to the next, so that probes cost at most `cost` of the training.

    A probe is two forward passes of both nets with `images`; a step counts as three of the student with `batch_size`,
    as if it had no teacher and augmentation cost nothing.

    >>> probe_interval(40_000_000, 40_000_000, images=32, batch_size=128, cost=0.1)
    4
    """
    probe = 2 * images * (student_macs + reference_macs)
    return max(1, math.ceil(probe / (cost * 3 * batch_size * student_macs)))


class AutoMagnitude:
    """RandAugment at a magnitude that is found, and adapts, while a net trains.

    Every few steps both nets look at a quarter of the batch, with and without its operations. M rises by one where
    these cost the student little more of what it knows than they cost the larger `reference`, and falls by one where
    they cost it clearly more: what is hard for the small net alone, it has no room to learn.

    augment:    with one magnitude for all images
    reference:  asked in eval mode, never changed: the teacher, or the net before it was pruned
    student:    the net that trains, asked in eval mode, so that its batch norms see no image twice; that of the
                training, if a `Training` uses this
    normalise:  raw uint8 (N, C, H, W) to what both nets take; that of the training's data by default
    gap:        how much more of its knowledge than the reference the student may lose, above 0; see `Difficulty`
    start:      M of the first step, 1..`most`, or None for no RandAugment
    most:       the largest M, 1..30
    known:      what the reference must still know of augmented images, a share in [0, 1); 0 for no such bound
    cost:       of probes, as a share of a training step, above 0: `interval` follows from it and the nets' MACs

    Call it as `augment`, with (batch, magnitude, epoch, seed): its own `magnitude` takes the place of the one given.
    Batches must be shuffled. As long as the student knows less than half of what the reference knows of plain images
    (early in a training from scratch), M stays. Below 1 it is None. Nothing here has a gradient, or draws from
    torch's random numbers. Several processes agree on M.

    Raises RecipeError for settings outside their ranges, ModelError for nets that do not fit each other.

    In a loop of one's own:
    >>> auto = AutoMagnitude(RandAugment(), model, student=model, normalise=data.normalise, start=4)
    >>> batch = next(iter(data.train.batches(16)))
    >>> for step in range(4):
    ...     changed = auto(batch, None, epoch=0, seed=0)
    >>> auto.interval, auto.magnitude  # the reference is the net itself: nothing is harder for it
    (4, 4)

    Source: this project. That with capacity the best gain at strong magnitudes exceeds that at weak ones, and that
    the best magnitude falls as a net is pruned, is found in arXiv 2305.13232, section IV; it has no such rule.
    """

    def __init__(
        self,
        augment: RandAugment,
        reference: nn.Module,
        *,
        student: nn.Module | None = None,
        normalise: Callable[[Tensor], Tensor] | None = None,
        gap: float = 0.01,
        start: int | None = 4,
        most: int = 30,
        known: float = 0.5,
        cost: float = 0.1,
    ) -> None:
        _check_settings(augment, gap, start, most, known, cost)
        self.augment = augment
        self.reference = reference
        self.student = student
        self.magnitude = start
        self.interval: int | None = None
        self._rule = {"gap": gap, "known": known, "most": most}
        self._cost = cost
        self._normalise = normalise
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._fabric: Any = None
        self._calls = 0
        self._here = _nothing()
        self._epoch, self._steps, self._levels = _nothing(), 0, 0

    def prepare(self, training: Any) -> None:
        """Called by `Training` before the first step: its model is the student, its data normalise."""
        self.student, self._fabric = training.model, training.fabric
        self._normalise, self._autocast = training.inputs_of, training.autocast
        self.reference.to(training.fabric.device).to(memory_format=training.layout)
        batch_size = training.settings.batch_size // training.fabric.world_size
        self._choose_interval(training.data.image_shape, batch_size)
        steps = training.steps_per_epoch * training.settings.epochs
        training.note(
            f"magnitude auto: a probe of {self._images(batch_size)} images every {self.interval} steps, "
            f"{steps // (self.interval or 1)} in all; M moves by at most one at each"
        )

    def strength(self, progress: float) -> int | None:
        """M of the next step: what a `Training` that uses this takes as its magnitude."""
        return self.magnitude

    def __call__(self, batch: Batch, magnitude: int | None, epoch: int, seed: int) -> Batch:
        """The batch with new images, at the magnitude in force. See the class."""
        changed = self.augment(batch, self.magnitude, epoch, seed)
        self._steps, self._levels = self._steps + 1, self._levels + (self.magnitude or 0)
        self._calls += 1
        if self.interval is None:
            self._choose_interval(tuple(batch.images.shape[1:]), len(batch))
        if self._calls % (self.interval or 1) == 0:
            self._probe(batch, changed, epoch, seed)
        return changed

    def _choose_interval(self, image_shape: tuple[int, ...], batch_size: int) -> None:
        student, reference = (measure.macs(net, image_shape) for net in self._nets())
        self.interval = probe_interval(
            student, reference, images=self._images(batch_size), batch_size=batch_size, cost=self._cost
        )

    @staticmethod
    def _images(batch_size: int) -> int:
        return max(1, batch_size // _SHARE_OF_BATCH)

    def _nets(self) -> tuple[nn.Module, nn.Module]:
        if self.student is None or self._normalise is None:
            raise RecipeError(
                "magnitude auto needs the student and normalise: give both, or let a Training use it"
            )
        return self.student, self.reference

    @torch.no_grad()
    def _probe(self, batch: Batch, changed: Batch, epoch: int, seed: int) -> None:
        """Look at some images of the batch, and move M by what is seen."""
        few = slice(0, self._images(len(batch)))
        part = Batch(batch.images[few], batch.targets[few], batch.index[few])
        # The same crop and flip in both: they differ by the operations alone.
        plain = self.augment(part, None, epoch, seed).images
        # Without RandAugment it is asked whether the weakest would do.
        hard = changed.images[few] if self.magnitude else self.augment(part, 1, epoch, seed).images
        student, reference = (self._ask(net, plain, hard) for net in self._nets())
        if student[0].shape != reference[0].shape:
            raise ModelError(
                f"The reference of magnitude auto knows {reference[0].shape[1]} classes and the student "
                f"{student[0].shape[1]}: they must be the same."
            )
        sums = knowledge_sums(student, reference, part.targets)
        if self._fabric is not None:
            sums = self._fabric.all_reduce(sums, reduce_op="sum")
        sums = sums.cpu()
        self._epoch = self._epoch + sums
        self._here = _FADES * self._here + sums
        moved = next_magnitude(self.magnitude, difficulty(self._here), **self._rule)  # type: ignore[arg-type]
        if moved != self.magnitude:
            self.magnitude, self._here = moved, _nothing()

    def _ask(self, net: nn.Module, plain: Tensor, hard: Tensor) -> tuple[Tensor, Tensor]:
        assert self._normalise is not None
        with self._autocast(), evaluating(net):
            first, second = net(self._normalise(plain)), net(self._normalise(hard))
        if not isinstance(first, Tensor) or first.ndim != 2:
            shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ModelError(
                f"For magnitude auto nets must give logits (images, classes), but one gives {shape}."
            )
        return first, second

    def close_epoch(self) -> dict[str, float]:
        """Of the epoch that ends here: mean M, none as 0; over its probes the gap and what the reference still knew."""
        row = {"mean_magnitude": self._levels / self._steps} if self._steps else {}
        found = difficulty(self._epoch)
        if found is not None:
            row |= {"magnitude_gap": found.gap, "reference_knows": found.reference}
        self._epoch, self._steps, self._levels = _nothing(), 0, 0
        return row

    def state_dict(self) -> dict[str, Any]:
        """M, and what the probes have told so far."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for name in _STATE:
            value = state[name]
            setattr(self, name, value.cpu() if isinstance(value, Tensor) else value)


_STATE = ("magnitude", "_calls", "_here", "_epoch", "_steps", "_levels")


def _nothing() -> Tensor:
    """Sums of no image."""
    return torch.zeros(21, dtype=torch.float64)


def _check_settings(
    augment: object, gap: float, start: int | None, most: int, known: float, cost: float
) -> None:
    if not isinstance(augment, RandAugment) or augment.random_magnitude:
        kind = (
            "one with random_magnitude" if isinstance(augment, RandAugment) else f"a {type(augment).__name__}"
        )
        raise RecipeError(
            f"magnitude auto is for a RandAugment with one magnitude for all images, not for {kind}."
        )
    if check_magnitude(most) < 1 or not (start is None or 1 <= check_magnitude(start) <= most):
        raise RecipeError(
            f"most must be in 1..30, and start in 1..most or None, but they are {most} and {start}."
        )
    for name, value, right, words in (
        ("gap", gap, gap > 0 and math.isfinite(gap), "above 0"),
        ("known", known, 0 <= known < 1, "in [0, 1)"),
        ("cost", cost, 0 < cost <= 1, "above 0, at most 1"),
    ):
        if not right:
            raise RecipeError(f"{name} must be {words}, but it is {value:g}.")

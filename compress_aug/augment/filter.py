"""The teacher's filter: of several augmentations of an image, the one from which the student learns most is kept."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_aug.augment.pipeline import Augmentation, host_index
from compress_aug.augment.plan import draw_magnitudes
from compress_aug.augment.randaugment import RandAugment
from compress_aug.augment.rows import check_images
from compress_aug.batch import Batch
from compress_aug.errors import ModelError, RecipeError

Net = Callable[[Tensor], Tensor]
Divergence = Literal["kl", "ce"]

# On a GPU, candidates are scored together up to this many pixels at a time (4096 images of 32x32, or one candidate of
# a batch at 224x224); on a CPU one candidate of the whole batch at a time is as fast, and stays in its cache.
_PIXELS_AT_ONCE = 1 << 22


def filter_scores(
    teacher: Tensor,
    student: Tensor | None,
    targets: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.5,
    temperature: float = 4.0,
    kl_form: Divergence = "kl",
) -> Tensor:
    """alpha * CE(teacher, target) - beta * KL(teacher || student), for each image: low is good to learn from.

    teacher, student: logits (N, K); the student's may be None if beta is 0
    targets:          int64 (N,)
    temperature:      of both outputs in the second term, which is multiplied by its square; the first has 1
    kl_form:          "kl", or "ce": the cross entropy in place of the divergence

    Returns float32 (N,); infinity where the score is not a finite number.

    >>> sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> bool(filter_scores(sure, unsure, torch.tensor([0])) < filter_scores(sure, sure, torch.tensor([0])))
    True

    Source: arXiv 2305.13232, Eq. 6. Its Eq. 4 writes a cross entropy where the text says KL: gradients are the
    same, but the order of candidates is not, because the teacher's entropy differs between them. The true KL
    is the default here, with temperature and its square as in distillation, which the paper does not say.
    """
    hard = functional.cross_entropy(teacher.float(), targets, reduction="none")
    score = alpha * hard
    if beta:
        assert student is not None
        log_teacher = functional.log_softmax(teacher.float() / temperature, dim=1)
        log_student = functional.log_softmax(student.float() / temperature, dim=1)
        difference = log_teacher - log_student if kl_form == "kl" else -log_student
        score = score - beta * temperature**2 * (log_teacher.exp() * difference).sum(1)
    return score.masked_fill(~score.isfinite(), torch.inf)


class TeacherFilter:
    """Draws several augmentations of each image and hands on the one with the lowest `filter_scores`.

    augment:     what draws and makes the candidates; with `RandAugment(random_magnitude=True)` each has its own
                 magnitude, as in the paper
    teacher:     asked in eval mode, never changed; its logits for the chosen images go on in the batch, unless there
                 is but one candidate, which nobody has to judge
    student:     scored in eval mode, so that batch norm statistics see no discarded image; the model that is
                 trained, if a `Training` uses the filter
    normalise:   raw uint8 (N, C, H, W) to what both nets take; that of the training's data by default
    candidates:  1..65536 for each image; 1 is `augment` itself, bit for bit
    alpha, beta: weights of the two terms, at least 0, not both 0. With beta 0 the student is not asked.
    temperature, kl_form: see `filter_scores`

    Call it as `augment`, with (batch, magnitude, epoch, seed). Nothing here has a gradient. An image none of whose
    candidates has a finite score gets its first one, and is counted.
    Raises RecipeError for settings outside their ranges.

    In a loop of one's own:
    >>> images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    >>> batch = Batch(images, torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6))
    >>> choose = TeacherFilter(
    ...     RandAugment(random_magnitude=True), teacher=model, student=model, normalise=data.normalise
    ... )
    >>> choose(batch, 30, epoch=0, seed=0).teacher_logits.shape
    torch.Size([6, 4])

    Source: arXiv 2305.13232, section IV-D and Eq. 6, which gives no values: four candidates, alpha 1, beta 0.5, and
    that each candidate has its own crop and flip, are this project's choice.
    """

    def __init__(
        self,
        augment: Augmentation,
        teacher: Net,
        *,
        student: Net | None = None,
        normalise: Callable[[Tensor], Tensor] | None = None,
        candidates: int = 4,
        alpha: float = 1.0,
        beta: float = 0.5,
        temperature: float = 4.0,
        kl_form: Divergence = "kl",
    ) -> None:
        if not isinstance(augment, Augmentation):
            raise RecipeError(
                "the filter draws its candidates from an Augmentation, such as RandAugment, not from a "
                f"{type(augment).__name__}."
            )
        _check_settings(candidates, alpha, beta, temperature, kl_form)
        self.augment = augment
        self.teacher = teacher
        self.student = student
        self.candidates = candidates
        self._normalise = normalise
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._score = {"alpha": alpha, "beta": beta, "temperature": temperature, "kl_form": kl_form}
        self._hand_on = True
        self._chosen = _Chosen()

    def prepare(self, training: Any) -> None:
        """Called by `Training` before the first step: its model is the student, its data normalise.

        The teacher's logits are handed on only to an objective with the very same teacher.
        """
        self._hand_on = getattr(training.objective, "teacher", None) is self.teacher
        self.student = training.model
        self._normalise, self._autocast = training.inputs_of, training.autocast
        if isinstance(self.teacher, nn.Module):
            self.teacher.to(training.fabric.device).to(memory_format=training.layout)

    def __call__(self, batch: Batch, magnitude: int | None, epoch: int, seed: int) -> Batch:
        """The batch with the chosen images and the teacher's logits for them. See the class."""
        if self.candidates == 1:
            return self.augment(batch, magnitude, epoch, seed)
        check_images(batch.images)
        at_once = _candidates_at_once(batch.images)
        best: _Best | None = None
        for first in range(0, self.candidates, at_once):
            numbers = range(first, min(first + at_once, self.candidates))
            found = self._best_of(batch, numbers, magnitude, epoch, seed)
            best = found if best is None else best.or_better(found)
        assert best is not None
        self._chosen.add(best, self._magnitudes(batch, magnitude, epoch, seed))
        logits = best.logits if self._hand_on else None
        return replace(batch, images=best.images, teacher_logits=logits)

    @torch.no_grad()
    def _best_of(self, batch: Batch, numbers: range, magnitude: int | None, epoch: int, seed: int) -> "_Best":
        many, count = len(numbers), len(batch)
        images, targets, index = batch.images, batch.targets, batch.index
        rows = (
            Batch(images.repeat(many, 1, 1, 1), targets.repeat(many), index.repeat(many))
            if many > 1
            else batch
        )
        rows = self.augment(rows, magnitude, epoch, seed, np.repeat(np.array(numbers), count))
        teacher, student = self._ask(rows.images)
        scores = filter_scores(teacher, student, rows.targets, **self._score)  # type: ignore[arg-type]
        if many == 1:
            return _Best(scores, torch.full_like(targets, numbers.start), rows.images, teacher)
        score, place = scores.view(many, count).min(0)
        chosen = place * count + torch.arange(count, device=place.device)
        return _Best(score, place + numbers.start, rows.images[chosen], teacher[chosen])

    def _ask(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._normalise is None or (self.student is None and self._score["beta"]):
            raise RecipeError(
                "the filter needs normalise and, unless beta is 0, the student: give both, or let a Training use it"
            )
        inputs = self._normalise(images)
        with self._autocast(), evaluating(self.teacher):
            teacher = _logits(self.teacher(inputs), "teacher")
            if not self._score["beta"]:
                return teacher, None
            assert self.student is not None
            with evaluating(self.student):
                student = _logits(self.student(inputs), "student")
        if student.shape != teacher.shape:
            raise ModelError(
                f"The filter's teacher knows {teacher.shape[1]} classes and its student {student.shape[1]}: they must "
                "be the same."
            )
        return teacher, student

    def _magnitudes(self, batch: Batch, magnitude: int | None, epoch: int, seed: int) -> Tensor | None:
        """The magnitude of each candidate, (candidates, N), if each was drawn."""
        if (
            magnitude is None
            or not isinstance(self.augment, RandAugment)
            or not self.augment.random_magnitude
        ):
            return None
        index = host_index(batch.index, len(batch))
        drawn = [
            draw_magnitudes(index, magnitude, epoch=epoch, seed=seed, candidate=number)
            for number in range(self.candidates)
        ]
        return torch.from_numpy(np.stack(drawn)).to(batch.images.device, non_blocking=True)

    def close_epoch(self) -> dict[str, float]:
        """Of the epoch that ends here: mean magnitude that was chosen, share of images without a finite score."""
        row = self._chosen.row()
        self._chosen = _Chosen()
        return row

    def state_dict(self) -> dict[str, Any]:
        """What `close_epoch` has counted so far."""
        return dict(self._chosen.__dict__)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from `state_dict()`."""
        self._chosen.__dict__.update(state)


class _Best:
    """The best candidate so far of each image: score (N,), number (N,), images and the teacher's logits."""

    def __init__(self, score: Tensor, number: Tensor, images: Tensor, logits: Tensor) -> None:
        self.score, self.number, self.images, self.logits = score, number, images, logits

    def or_better(self, other: "_Best") -> "_Best":
        """The better one of each image; this one if both are as good."""
        takes = other.score < self.score
        return _Best(
            torch.where(takes, other.score, self.score),
            torch.where(takes, other.number, self.number),
            torch.where(takes.view(-1, 1, 1, 1), other.images, self.images),
            torch.where(takes.view(-1, 1), other.logits, self.logits),
        )


class _Chosen:
    """Sums over an epoch, kept as tensors so that a GPU need not wait in each step."""

    def __init__(self) -> None:
        self.images: int = 0
        self.drawn: int = 0
        self.unscored: Tensor | int = 0
        self.magnitude: Tensor | float | None = None

    def add(self, best: _Best, magnitudes: Tensor | None) -> None:
        self.images += len(best.score)
        self.unscored = self.unscored + (~best.score.isfinite()).sum()
        if magnitudes is not None:
            self.drawn += len(best.score)
            drawn = magnitudes.gather(0, best.number[None]).sum()
            self.magnitude = drawn if self.magnitude is None else self.magnitude + drawn

    def row(self) -> dict[str, float]:
        if not self.images:
            return {}
        row = {"unscored_share": float(self.unscored) / self.images}
        if self.magnitude is not None:
            row["chosen_magnitude"] = float(self.magnitude) / self.drawn
        return row


def _candidates_at_once(images: Tensor) -> int:
    """How many candidates of a batch are scored in one pass."""
    pixels = len(images) * images.shape[2] * images.shape[3]
    return max(1, _PIXELS_AT_ONCE // max(pixels, 1)) if images.is_cuda else 1


def _logits(output: object, who: str) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"The filter's {who} must give logits (images, classes), but it gives {shape}.")
    return output


@contextmanager
def evaluating(net: Net) -> Iterator[None]:
    """The net in eval mode, and each of its modules back in its own mode behind it."""
    modes = [(module, module.training) for module in net.modules()] if isinstance(net, nn.Module) else []
    if modes and isinstance(net, nn.Module):
        net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check_settings(candidates: int, alpha: float, beta: float, temperature: float, kl_form: str) -> None:
    if not isinstance(candidates, int) or isinstance(candidates, bool) or not 1 <= candidates <= 2**16:
        raise RecipeError(f"candidates must be a whole number in 1..65536, but it is {candidates!r}.")
    for name, value in (("alpha", alpha), ("beta", beta), ("temperature", temperature)):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise RecipeError(f"{name} must be a number, but it is {value!r}.")
    if not (alpha >= 0 and beta >= 0 and alpha + beta > 0 and np.isfinite(alpha + beta)):
        raise RecipeError(
            f"alpha and beta must be at least 0, and not both 0, but they are {alpha:g} and {beta:g}."
        )
    if not (temperature > 0 and np.isfinite(temperature)):
        raise RecipeError(f"temperature must be above 0, but it is {temperature:g}.")
    if kl_form not in get_args(Divergence):
        raise RecipeError(f'kl_form must be kl or ce, but it is "{kl_form}".')

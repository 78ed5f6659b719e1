"""An objective that learns from a frozen teacher: cross entropy + weight * (one or several losses of this folder)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_aug.batch import Batch
from compress_aug.distill.attention import Attention
from compress_aug.distill.clipping import LambdaMode, backward_clipped
from compress_aug.distill.features import Features, Seen, TapNames
from compress_aug.distill.taps import Wanted, positions
from compress_aug.distill.teacher import asked, averaged, check_classes
from compress_aug.distill.terms import Directions, Relations, Term
from compress_aug.surgery import freeze


class Distillation:
    """The objective cross entropy + weight * the sum of `terms`.

    teacher: frozen here, asked in eval mode on the very images that the student sees
    terms:   `Mutual`, `Relations`, `Directions`, `Attention`, or of your own; `ii_kd_terms` for three at once
    weight:  at least 0, as a function of the stage's progress in [0, 1]; 1, halved after each 30 % by default
    clip:    None adds up the gradients. A `LambdaMode` clips the teacher's, parameter by parameter, so that it is not
             longer than the task's; see `backward_clipped`. With "off", weight is not used at all
    taps:    where feature maps are read, for terms that need them; see `Taps`. `TapNames` if they are called
             differently in teacher and student
    seed:    of adapters and attention heads
    note:    is told, in a line each, where taps are and what is trained beside the student

    Raises ValueError without terms, and if two have the same name.

    `Training` calls what else must be called. In a loop of your own:

    >>> def net(width):
    ...     layers = nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU()
    ...     return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 4))
    >>> images, student = torch.rand(5, 3, 8, 8), net(4)
    >>> objective = Distillation(net(6), [Relations(), Directions()], weight=lambda progress: 1.0)
    >>> objective.bind(student, images[:1])
    >>> [tuple(adapter.shape) for adapter in objective.parameters()]
    [(6, 4), (6, 4)]
    >>> batch = Batch(images.byte(), torch.tensor([0, 1, 2, 3, 0]), torch.arange(5), inputs=images)
    >>> list(objective.loss(batch, student(images)))
    ['cross_entropy', 'rkd', 'kd_svd']
    >>> objective.close()

    Source: arXiv 2004.08861, section 4, for the sum and the weight's schedule.
    """

    def __init__(
        self,
        teacher: nn.Module,
        terms: Sequence[Term],
        weight: Callable[[float], float] = lambda progress: 0.5 ** int(progress / 0.3 + 1e-9),
        *,
        clip: LambdaMode | None = None,
        label_smoothing: float = 0.0,
        taps: Wanted | TapNames = "auto",
        seed: int = 0,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.teacher = freeze(teacher)
        self.terms = list(terms)
        names = [term.name for term in self.terms]
        if not names or len({*names, "cross_entropy"}) <= len(names):
            found = ", ".join(names) or "none"
            raise ValueError(
                f"expected terms, each with a name of its own that is not cross_entropy, found {found}"
            )
        self._weight, self._clip = weight, clip
        self._label_smoothing = label_smoothing
        self._taps, self._seed, self._note = taps, seed, note
        self._features: Features | None = None
        self.advance(0.0)

    def prepare(self, training: Any) -> None:
        """Called by `Training` before the first step: its model is the student."""
        shape = training.data.image_shape
        self.bind(training.model, torch.zeros(1, *shape, device=training.fabric.device))

    def bind(self, student: nn.Module, example: Tensor) -> None:
        """Look for the taps in both nets, and make what is trained beside the student.

        example: float (1, C, H, W), on the device of both
        """
        levels = max((term.levels for term in self.terms), default=0)
        if not levels:
            return
        self.close()
        self._features = Features(
            student,
            self.teacher,
            example,
            self._taps,
            least=levels,
            adapt=levels > 1,
            seed=self._seed,
            note=self._note,
        )
        for term in self._with("prepare"):
            term.prepare(self._features.teacher.widths, example.device, self._seed)

    def _with(self, method: str) -> list[Any]:
        return [term for term in self.terms if hasattr(term, method)]

    def begin(self, training: Any, each_step: Callable[[Any], bool]) -> bool:
        """Called by `Training` before each epoch: trains what must be trained before the student is."""
        return all(term.begin(training, self._maps_of, each_step) for term in self._with("begin"))

    @torch.no_grad()
    def _maps_of(self, inputs: Tensor) -> list[Tensor]:
        assert self._features is not None
        self.teacher(inputs)
        return [positions(features) for features in self._features.teacher.take()]

    def advance(self, progress: float) -> None:
        """Move the weight's schedule on."""
        self._share = 1.0 if self._clip == "off" else self._weight(progress)

    def loss(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """{"cross_entropy": ..., a part for each term, already weighted}, in float32 outside of autocast."""
        seen = self._seen(batch, logits)
        with torch.autocast(logits.device.type, enabled=False):
            task = functional.cross_entropy(
                logits.float(), batch.targets, label_smoothing=self._label_smoothing
            )
            return {"cross_entropy": task} | {term.name: self._share * term.loss(seen) for term in self.terms}

    def _seen(self, batch: Batch, logits: Tensor) -> Seen:
        answer = batch.teacher_logits
        if answer is None or self._features is not None:
            answer = asked(self.teacher, batch)
        check_classes(answer, logits)
        with torch.autocast(logits.device.type, enabled=False):
            return Seen(logits, answer, self._features.take() if self._features else ())

    def backward(self, losses: dict[str, Tensor], training: Any) -> None:
        """Called by `Training`: the gradients of student and adapters, averaged over all processes."""
        fabric, own = training.fabric, list(self.parameters())
        taught = [part for name, part in losses.items() if name != "cross_entropy"]
        if self._clip is None or self._share == 0:
            fabric.backward(torch.stack([losses["cross_entropy"], *taught]).sum())
            for parameter, gradient in zip(own, averaged([p.grad for p in own], fabric), strict=True):
                parameter.grad = gradient
            return
        backward_clipped(
            losses["cross_entropy"],
            torch.stack(taught).sum() / self._share,
            training.model.parameters(),
            epoch=training.epochs_done,
            weight=self._share,
            lambda_mode=self._clip,
            unclipped=own,
            backward=fabric.backward,
            averaged=lambda gradients: averaged(gradients, fabric),
        )

    def parameters(self) -> Iterable[nn.Parameter]:
        """Of the adapters, which are trained with the student."""
        return self._features.parameters() if self._features else ()

    def state_dict(self) -> dict[str, Any]:
        """Adapters, and the state of terms that have one, by their names."""
        adapters = self._features.adapters.state_dict() if self._features else {}
        return {
            "adapters": adapters,
            "terms": {term.name: term.state_dict() for term in self._with("state_dict")},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        if self._features:
            self._features.adapters.load_state_dict(state["adapters"])
        for term in self._with("load_state_dict"):
            term.load_state_dict(state["terms"][term.name])

    def close(self) -> None:
        """Remove the hooks from teacher and student."""
        if self._features:
            self._features.close()


def ii_kd_terms(relations: Relations, attention: Attention, directions: Directions) -> list[Term]:
    """Intra-image and inter-image knowledge at once: `rkd_loss` + `mhgd_loss` + `kd_svd_loss`, with equal weights.

    Source: II-KD of arXiv 2004.08861, whose code also clips the gradient of the sum (`clip` of `Distillation`).
    """
    return [relations, attention, directions]

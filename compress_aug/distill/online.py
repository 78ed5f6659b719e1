"""Mutual learning online: a copy of the teacher is trained along, a step of its own before each one of the student."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from compress_aug.batch import Batch
from compress_aug.distill.dml import mutual_loss
from compress_aug.distill.teacher import averaged, check_classes
from compress_aug.surgery import copy_model

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class OnlineMutualLearning:
    """The objective cross entropy + weight * `mutual_loss`, for the student and, first on each batch, for a teacher.

    teacher:   copied; the copy starts from its weights, is trained in training mode with an optimizer of its own, and
               is gone when the training ends
    optimizer: makes one for the copy's parameters. Within a `Training` it follows the student's learning rate
    weight:    at least 0, as a function of the stage's progress in [0, 1]; 1, halved after each 30 % by default

    The student is shown what the copy says after its step. Its batch norms see each batch once.

    >>> import torch
    >>> objective = OnlineMutualLearning(model, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    >>> images = torch.rand(6, 3, 8, 8)
    >>> batch = Batch(images.byte(), torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6), inputs=images)
    >>> list(objective.loss(batch, model(images)))
    ['cross_entropy', 'dml']

    Source: arXiv 1706.00384, in the order of the code of arXiv 2004.08861, where the teacher starts from scratch; that
    it starts from a trained one is ours.
    """

    def __init__(
        self,
        teacher: nn.Module,
        optimizer: MakeOptimizer,
        weight: Callable[[float], float] = lambda progress: 0.5 ** int(progress / 0.3 + 1e-9),
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        self.teacher = copy_model(teacher)
        for parameter in self.teacher.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self._optimizer = optimizer(self.teacher.parameters())
        self._weight, self._label_smoothing = weight, label_smoothing
        self._training: Any = None
        self.advance(0.0)

    def prepare(self, training: Any) -> None:
        """Called by `Training` before the first step."""
        self._training = training

    def advance(self, progress: float) -> None:
        """Move the weight's schedule on."""
        self._share = self._weight(progress)

    def loss(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """{"cross_entropy": ..., "dml": ...} of the student, already weighted, after a step of the teacher."""
        if batch.inputs is None:
            raise ValueError("a teacher needs batch.inputs, the normalised images, to be trained")
        self._step(batch, batch.inputs, logits.detach())
        with torch.no_grad():
            answer = self._answer(batch.inputs)
        return self._losses(batch, logits, answer)

    def _losses(self, batch: Batch, logits: Tensor, other: Tensor) -> dict[str, Tensor]:
        with torch.autocast(logits.device.type, enabled=False):
            task = functional.cross_entropy(
                logits.float(), batch.targets, label_smoothing=self._label_smoothing
            )
            return {"cross_entropy": task, "dml": self._share * mutual_loss(logits, other)}

    def _step(self, batch: Batch, inputs: Tensor, student: Tensor) -> None:
        answer = self.teacher.train()(inputs)
        check_classes(answer, student)
        losses = self._losses(batch, answer, student)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        if self._training is not None:
            self._follow(self._training)
        self._optimizer.step()

    def _follow(self, training: Any) -> None:
        """Do as the student's training does: its learning rate, its clipping, one gradient for all processes."""
        trained = [parameter for parameter in self.teacher.parameters() if parameter.grad is not None]
        gradients = averaged([parameter.grad for parameter in trained], training.fabric)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        if training.settings.clip_norm is not None:
            clip_grad_norm_(trained, training.settings.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = training.optimizer.param_groups[0]["lr"]

    def _answer(self, inputs: Tensor) -> Tensor:
        # Batch norms would count this batch a second time: they write into copies.
        spare = {name: buffer.clone() for name, buffer in self.teacher.named_buffers()}
        answer: Tensor = torch.func.functional_call(self.teacher, spare, (inputs,))
        return answer

    def state_dict(self) -> dict[str, Any]:
        """The teacher's copy as it is by now, and its optimizer."""
        return {"teacher": self.teacher.state_dict(), "optimizer": self._optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        own = self.teacher.state_dict(keep_vars=True)
        if own.keys() != state["teacher"].keys():
            raise KeyError(*sorted(own.keys() ^ state["teacher"].keys())[:1])
        # Into the tensors that the optimizer holds; some quantizers would make new ones in load_state_dict.
        for name, value in own.items():
            value.copy_(state["teacher"][name])
        self._optimizer.load_state_dict(state["optimizer"])

"""Soft labels: the student imitates the teacher's softened output."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn import functional

from compress_aug.batch import Batch
from compress_aug.distill.teacher import asked, check_classes
from compress_aug.surgery import freeze


def soft_label_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, squared: bool = True
) -> Tensor:
    """KL divergence of the teacher's softened output from the student's, times the temperature squared.

    student, teacher: logits (N, K); the teacher's get no gradient
    temperature:      both are divided by it, above 0
    squared:          False leaves the last factor away
    Returns a scalar, the mean over the batch, computed in float32 whatever the logits are.

    >>> logits = Tensor([[2.0, 0.0]])
    >>> float(soft_label_loss(logits, logits))
    0.0

    Source: Hinton et al., arXiv 1503.02531. arXiv 2305.13232 (Eq. 4) prints the cross entropy and a sum over the
    batch where it says KL; the mean of the true KL is used here, which has the same gradient per image.
    """
    log_student = functional.log_softmax(student.float() / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher.detach().float() / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")
    return divergence * temperature**2 if squared else divergence


class SoftLabels:
    """The objective (1 - weight) * cross entropy + weight * `soft_label_loss`.

    teacher: frozen here, asked in eval mode on the very images the student sees
    weight:  share of the teacher's part in [0, 1], as a function of the stage's progress in [0, 1]

    squared: see `soft_label_loss`

    Defaults (weight 0.9, temperature 4) are ours: the paper gives no values. The code of arXiv 2004.08861 has weight
    0.3, temperature 3, and no square.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weight: Callable[[float], float] = lambda progress: 0.9,
        temperature: float = 4.0,
        label_smoothing: float = 0.0,
        *,
        squared: bool = True,
    ) -> None:
        self.teacher = freeze(teacher)
        self._weight = weight
        self._temperature, self._squared = temperature, squared
        self._label_smoothing = label_smoothing
        self._share = weight(0.0)

    def advance(self, progress: float) -> None:
        """Move the weight's schedule on."""
        self._share = self._weight(progress)

    def loss(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """{"cross_entropy": ..., "soft_labels": ...}, each already weighted; their sum is minimised."""
        teacher_logits = batch.teacher_logits
        if teacher_logits is None:
            teacher_logits = asked(self.teacher, batch)
        check_classes(teacher_logits, logits)
        hard = functional.cross_entropy(logits.float(), batch.targets, label_smoothing=self._label_smoothing)
        soft = soft_label_loss(logits, teacher_logits, self._temperature, self._squared)
        return {"cross_entropy": (1 - self._share) * hard, "soft_labels": self._share * soft}

    def parameters(self) -> Iterable[nn.Parameter]:
        """Nothing is trained beside the student."""
        return ()

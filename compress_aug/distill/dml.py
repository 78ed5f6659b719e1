"""Mutual learning: teacher and student imitate each other's output, or the student alone that of a fixed teacher."""

from torch import Tensor
from torch.nn import functional


def mutual_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half of KL(teacher || student) + KL(student || teacher), at temperature 1.

    student, teacher: logits (N, K); the second gets no gradient, so that the other net's turn is the call with both
                      exchanged
    Returns a scalar, the mean over the batch, in float32 whatever the logits are.

    >>> a, b = Tensor([[2.0, 0.0]]), Tensor([[0.0, 1.0]])
    >>> bool(mutual_loss(a, b) == mutual_loss(b, a)), float(mutual_loss(a, a))
    (True, 0.0)

    Source: deep mutual learning (arXiv 1706.00384) as in the code of arXiv 2004.08861, which takes both directions for
    each net.
    """
    log_student = functional.log_softmax(student.float(), dim=1)
    log_teacher = functional.log_softmax(teacher.detach().float(), dim=1)
    # Both sums at once: (p - q)(log p - log q) = p log(p/q) + q log(q/p).
    both = (log_teacher.exp() - log_student.exp()) * (log_teacher - log_student)
    return both.sum(1).mean() / 2

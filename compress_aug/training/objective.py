"""What training minimises: the form of an objective, and plain cross entropy."""

from typing import Protocol

from torch import Tensor
from torch.nn import functional

from compress_aug.batch import Batch


class Objective(Protocol):
    """What is minimised. Only `loss` must be there; the loop looks for the others by name.

    Optional: prepare(training) before the optimizer is made, parameters() trained beside the model,
    begin(training, each_step) before each epoch, which returns False if each_step(training) asked for a pause
    of what it does there, advance(progress) before each step, backward(losses, training) where the gradient is not
    that of the plain sum, state_dict(), load_state_dict(state), close(). A `teacher` that is a module is moved to the
    device of the training.
    """

    def loss(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """Named scalars, already weighted; their sum is minimised. batch.inputs holds the normalised images."""
        ...


class CrossEntropy:
    """The plain objective.

    label_smoothing: in [0, 1)
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def loss(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """{"cross_entropy": mean over the batch}, in float32 whatever the logits are."""
        smoothing = self._label_smoothing
        return {
            "cross_entropy": functional.cross_entropy(
                logits.float(), batch.targets, label_smoothing=smoothing
            )
        }

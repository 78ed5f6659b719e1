"""What data, augmentation, losses and the training loop hand to each other: a batch of raw images."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Letters used for shapes in the whole package:
#   N images in a batch, C colour channels, H height, W width, K classes.


@dataclass(frozen=True)
class Batch:
    """Raw images with their targets and their place in the data set.

    images:         uint8 (N, C, H, W), 0..255
    targets:        int64 (N,), class numbers
    index:          int64 (N,), position in the data set before any shuffle or split, so that random
                    draws can be keyed by the image and not by the batch it happens to be in; on the CPU,
                    where draws are made, so that no step has to wait for a GPU
    inputs:         float (N, C, H, W), the images normalised for the model; set by the training loop
    teacher_logits: float (N, K), set by an augmentation that asked the teacher already
    """

    images: Tensor
    targets: Tensor
    index: Tensor
    inputs: Tensor | None = None
    teacher_logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its images and targets on another device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
        )

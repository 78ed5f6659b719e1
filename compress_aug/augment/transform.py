"""AugmentTransform: augmentation in anybody's loop, as a module on raw images, in batches or one by one."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.tv_tensors import BoundingBoxes, KeyPoints, Mask

from compress_aug.augment.operations import check_magnitude
from compress_aug.augment.pillow import to_picture, to_tensor
from compress_aug.augment.pipeline import Augmentation
from compress_aug.augment.randaugment import RandAugment
from compress_aug.augment.rows import check_whole
from compress_aug.batch import Batch
from compress_aug.errors import DataError, RecipeError


class AugmentTransform(nn.Module):
    """Raw images in, raw images out: on a batch, on a GPU, in a collate function, or in a torchvision v2 pipeline.

    augment:   RandAugment with crop and flip by default; or a LearnedAugment, or one of your own
    magnitude: 0..30, or None for crop and flip only; may be changed at any time (not in the workers of a
               DataLoader that are already at work, though)
    seed:      with an index, the same seed gives the same images
    epoch:     counted from 0; a LearnedAugment looks up its policy there. An attribute too: set it before each epoch,
               where none can be given in the call.

    Call it with one of these, and get the same kind back:
    - a batch, uint8 (N, C, H, W), on any device
    - one image, uint8 (C, H, W), as tensor or torchvision's tv_tensors.Image, or a Pillow image of mode RGB or L
    Whatever else is given behind it (labels, say) comes back untouched; boxes and masks, which would have to move
    with the image, are refused.

    index: int64 (N,), position of each image in the data set: then an image's draw depends on seed, index and
           epoch only. Without it, draws come from torch's random numbers: `torch.manual_seed` repeats them, and
           each worker of a DataLoader has its own.

    Raises DataError for other images, RecipeError for a magnitude outside 0..30.

    >>> augment = AugmentTransform(magnitude=9)
    >>> images, labels = augment(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))
    >>> images.shape, augment(images[0]).shape
    (torch.Size([4, 3, 32, 32]), torch.Size([3, 32, 32]))
    """

    def __init__(
        self,
        augment: Augmentation | None = None,
        magnitude: int | None = 14,
        *,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        super().__init__()
        if augment is not None and not isinstance(augment, Augmentation):
            raise RecipeError(
                f"augment must be an Augmentation, such as RandAugment(), but it is {augment!r}; a magnitude is given "
                "by name: AugmentTransform(magnitude=9)."
            )
        check_whole("seed", seed)
        self.augment = RandAugment() if augment is None else augment
        self.magnitude = None if magnitude is None else check_magnitude(magnitude)
        self.seed = seed
        self.epoch = epoch

    def forward(self, images: Any, *others: Any, index: Any = None, epoch: int | None = None) -> Any:
        """The images changed, and the others as they are. See the class."""
        if index is not None:
            # One image has one number; whatever holds whole numbers will do.
            index = torch.as_tensor(index).reshape(-1)
        now = self.epoch if epoch is None else epoch
        check_whole("epoch", now)
        if any(isinstance(item, BoundingBoxes | Mask | KeyPoints) for item in tree_leaves(others)):
            raise DataError(
                "AugmentTransform moves images only: boxes, masks and key points would stay where they were."
            )
        changed = self._any(images, index, now)
        return (changed, *others) if others else changed

    def _any(self, images: Any, index: Tensor | None, epoch: int) -> Any:
        if isinstance(images, Image.Image):
            if images.mode not in ("RGB", "L"):
                raise DataError(
                    f'augmentation works on Pillow images of mode RGB or L, but this one is "{images.mode}": '
                    'convert("RGB") it before.'
                )
            return to_picture(self._batch(to_tensor(images)[None], index, epoch)[0])
        if not isinstance(images, Tensor):
            hint = ": torch.from_numpy makes one of it" if isinstance(images, np.ndarray) else ""
            raise DataError(
                f"augmentation works on uint8 tensors and Pillow images, but this is a {type(images).__name__}{hint}."
            )
        plain = images.as_subclass(Tensor)
        changed = (
            self._batch(plain[None], index, epoch)[0] if plain.ndim == 3 else self._batch(plain, index, epoch)
        )
        # A tv_tensors.Image stays one, so that the transforms behind this one know what it is.
        return changed if type(images) is Tensor else type(images)(changed)

    def _batch(self, images: Tensor, index: Tensor | None, epoch: int) -> Tensor:
        place = torch.randint(0, 2**62, (len(images),)) if index is None else index
        batch = Batch(images, place, place)
        return self.augment(batch, self.magnitude, epoch, self.seed).images

    def extra_repr(self) -> str:
        """What `print` shows in the parentheses."""
        return f"{type(self.augment).__name__}, magnitude={self.magnitude}, seed={self.seed}"

"""Data sets of the user's own in Python: anything that gives (image, class number) by position."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compress_aug.data.assemble import assemble
from compress_aug.data.dataset import Data, Options
from compress_aug.data.images import Progress, Shape, size_of, to_uint8
from compress_aug.errors import DataError


class OwnImages:
    """A user's map-style data set, each item checked: uint8 (C, H, W), class number 0..K-1.

    part: "training image" or "test image", for the sentences of errors.
    """

    def __init__(self, dataset: Any, classes: int, part: str, image_shape: Shape | None = None) -> None:
        self.dataset = dataset
        self.classes = classes
        self.part = part
        if image_shape is None:
            shape = to_uint8(dataset[0][0], f"{part} 0").shape
            image_shape = (shape[0], shape[1], shape[2])
        self.image_shape: Shape = image_shape

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        name = f"{self.part} {item}"
        pair = self.dataset[item]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"{name} is not a pair of an image and a class number.")
        image, target = to_uint8(pair[0], name), int(pair[1])
        if image.shape != self.image_shape:
            raise DataError(
                f"training image 0 has {size_of(self.image_shape)}, {name} has {size_of(image.shape)}: "
                "all must have one size; with an image folder, `image_size:` sees to it."
            )
        if not 0 <= target < self.classes:
            raise DataError(f"{name} has class number {target}: expected 0..{self.classes - 1}.")
        return image, target


def data_from(
    train: Any,
    test: Any,
    *,
    classes: int | Sequence[str] | None = None,
    name: str = "own data",
    validation: float = 0.1,
    crop_padding: int | None = None,
    flip: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_memory: bool | None = None,
    workers: int | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Data:
    """Data from two map-style torch data sets of (image, class number).

    train, test: items are PIL images or uint8 tensors (C, H, W), all of one size, without any augmentation
    classes:     their number or their names; None = the `classes` attribute of `train`, as torchvision's have
    validation:  share of the training images that is held out, in [0, 1)
    crop_padding: pixels a random crop may use on each side; None = an eighth of the height
    flip:        whether mirrored images are still of the same class
    mean, std:   per channel, of pixels in 0..1; None = measured on training images
    in_memory:   hold all decoded images in memory; None = if they take less than 1 GiB
    workers:     processes that decode what is not held in memory; None = one a core, at most 8
    seed:        which images are held out for validation

    Raises DataError if an item is not such a pair, is a float image, or has another size than the first.

    >>> import torch
    >>> images = [(torch.full((3, 8, 8), 60 * k, dtype=torch.uint8), k) for k in range(4)] * 10
    >>> data = data_from(images, images[:8], classes=4, flip=False)
    >>> data.image_shape, len(data.train), len(data.validation), len(data.test)
    ((3, 8, 8), 36, 4, 8)
    """
    if not 0 <= validation < 1:
        raise DataError(f"validation is {validation}: expected a share from 0 to below 1.")
    names = _class_names(train, classes)
    for dataset, part in ((train, "training"), (test, "test")):
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise DataError(
                f"The {part} set is a {type(dataset).__name__}: expected a map-style torch data set."
            )
        if len(dataset) == 0:
            raise DataError(f"The {part} set is empty.")
    ours = OwnImages(train, len(names), "training image")
    return assemble(
        name,
        names,
        train=ours,
        test=OwnImages(test, len(names), "test image", ours.image_shape),
        options=Options(validation=validation, crop_padding=crop_padding, flip=flip),
        mean=mean,
        std=std,
        in_memory=in_memory,
        workers=workers,
        # Nothing says that a user's data set may be read by several threads at once.
        threads=1,
        seed=seed,
        on_progress=on_progress,
    )


def _class_names(train: Any, classes: int | Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        classes = getattr(train, "classes", None)
    if classes is None:
        raise DataError(
            "The training set has no attribute `classes`: give `classes=`, their number or their names."
        )
    names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
    if len(names) < 2:
        raise DataError(f"{len(names)} class is too few: expected two or more.")
    return names

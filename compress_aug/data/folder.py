"""A folder of images as a data set: one subfolder a class, with or without train/ and test/ above."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from compress_aug.data.dataset import stratified_split
from compress_aug.data.images import Shape, decode_file, size_of
from compress_aug.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")

_TEST_NAMES = ("test", "val", "valid", "validation")

# The share and seed of the split of a folder that has none: the same for every run.
_TEST_SHARE, _TEST_SEED = 0.2, 0


@dataclass(frozen=True)
class Listing:
    """The images of one part: its classes by name, its files, and their class numbers."""

    folder: Path
    classes: tuple[str, ...]
    files: list[Path]
    targets: list[int]


class ImageFiles:
    """Image files with their class numbers; items are uint8 (3, H, W) and the class number.

    image_size: pixels; every image is resized and cropped to this square
    model:      the file whose size all must have

    `threads` is how many should decode side by side; None = one a core.
    """

    def __init__(
        self, files: Sequence[Path], targets: Sequence[int], image_size: int | None, model: Path
    ) -> None:
        self.files = list(files)
        self.targets = list(targets)
        self.image_size = image_size
        self.model = model
        shape = decode_file(model, image_size).shape
        self.image_shape: Shape = (shape[0], shape[1], shape[2])
        # Below this, threads mostly wait for the interpreter: of 32x32 pixels, one thread reads 6 800 files a
        # second and two together read 4 600.
        with Image.open(model) as image:
            self.threads = 1 if image.width * image.height < 128 * 128 else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        image = decode_file(self.files[item], self.image_size)
        if image.shape != self.image_shape:
            raise DataError(
                f'"{self.model}" has {size_of(self.image_shape)}, "{self.files[item]}" has '
                f"{size_of(image.shape)}: give `image_size:` to bring all images to one size "
                "(data: {folder: ..., image_size: 64}, or the same behind --data)."
            )
        return image, self.targets[item]


def read_folder(
    folder: Path, image_size: int | None = None
) -> tuple[tuple[str, ...], ImageFiles, ImageFiles, ImageFiles | None]:
    """The classes, and the files to train on, to test on, and (only if the folder has them) to validate on.

    Raises DataError if the folder is missing or holds no images, one class only, or parts of unlike classes.
    """
    _check_exists(folder)
    parts = _parts(folder) if _has_parts(folder) else _split(folder)
    first = parts[0].files[0]
    sets = [ImageFiles(part.files, part.targets, image_size, first) for part in parts]
    return parts[0].classes, sets[0], sets[1], sets[2] if len(sets) > 2 else None


def _split(folder: Path) -> list[Listing]:
    """A folder of classes, divided into images to train on and to test on."""
    whole = _list_images(folder)
    parts = stratified_split(torch.tensor(whole.targets), _TEST_SHARE, _TEST_SEED)
    if not len(parts[1]):
        raise DataError(f'"{folder}" holds one image of each class: too few to train and to test on.')
    return [
        Listing(folder, whole.classes, [whole.files[i] for i in rows], [whole.targets[i] for i in rows])
        for rows in (part.tolist() for part in parts)
    ]


def _parts(folder: Path) -> list[Listing]:
    """The parts that a folder comes with: to train on, to test on, and maybe to validate on."""
    found = [folder / name for name in _TEST_NAMES if (folder / name).is_dir()]
    if not found:
        raise DataError(f'"{folder}" has train/ but neither test/ nor val/: add one, or name train/ itself.')
    train = _list_images(folder / "train")
    # With both test/ and val/, the second is for validation.
    others = [_list_images(part) for part in found[:2]]
    for other in others:
        _check_same_classes(train, other)
    return [train, *others]


def _has_parts(folder: Path) -> bool:
    """Whether this folder has a train/ that holds classes, and is not one whose class is named train."""
    train = folder / "train"
    return train.is_dir() and any(_class_folders(train))


def _class_folders(folder: Path) -> Iterator[Path]:
    return (
        path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))
    )


def _list_images(folder: Path) -> Listing:
    """The classes below a folder by name, and their files, sorted."""
    found = {path: sorted(filter(_is_image, path.rglob("*"))) for path in _class_folders(folder)}
    if not found:
        loose = "images but no folder of a class" if any(map(_is_image, folder.iterdir())) else "no images"
        raise DataError(f'"{folder}" holds {loose}: expected one subfolder of images for each class.')
    for path, files in found.items():
        if not files:
            raise DataError(f'"{path}" holds no images ({", ".join(SUFFIXES)}): fill or remove it.')
    if len(found) == 1:
        raise DataError(
            f'"{folder}" holds one class only ("{next(iter(found)).name}"): expected two or more.'
        )
    targets = [number for number, files in enumerate(found.values()) for _ in files]
    every_file = [file for files in found.values() for file in files]
    return Listing(folder, tuple(path.name for path in found), every_file, targets)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _check_exists(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise DataError(f'"{folder}" is a file: expected a folder of images.')
    siblings = (
        [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    )
    close = difflib.get_close_matches(folder.name, siblings, n=1)
    hint = f'; did you mean "{folder.parent / close[0]}"?' if close else "."
    raise DataError(f'There is no folder "{folder}"{hint}')


def _check_same_classes(train: Listing, other: Listing) -> None:
    for name in sorted(set(train.classes) ^ set(other.classes)):
        has, lacks = (train, other) if name in train.classes else (other, train)
        raise DataError(
            f'Class "{name}" is in "{has.folder}" but not in "{lacks.folder}": both need the same classes.'
        )

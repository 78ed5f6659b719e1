"""The images that a grid is made of: a few training images, spread over the classes."""

from collections import Counter
from dataclasses import dataclass

import torch

from compress_aug.batch import Batch
from compress_aug.data import Data
from compress_aug.errors import DataError

# The training images lie in a random order, so these are a fair sample; a streamed set is not read to its end.
LOOKED_AT = 1000


@dataclass(frozen=True)
class Samples:
    """Raw images in the order of their classes.

    batch:   N of them, with their place in the data set, which the draws belong to
    names:   the class of each
    classes: how many classes the data set has
    mean:    colour of the data set, a share in [0, 1] for each channel
    data:    what the data set is called
    """

    batch: Batch
    names: tuple[str, ...]
    classes: int
    mean: tuple[float, ...]
    data: str

    def describe(self) -> str:
        """How many images of how many classes, in words: "8 training images of 8 of the 10 classes of digits"."""
        count, shown = len(self.batch), len(set(self.batch.targets.tolist()))
        of = f"all {self.classes}" if shown == self.classes else f"{shown} of the {self.classes}"
        return f"{count} training image{'s' * (count != 1)} of {of} classes of {self.data}"


def pick_samples(data: Data, count: int = 8) -> Samples:
    """So many training images of as many classes as possible, the same number of each as far as that goes.

    count: 1 or more; the same images for every call

    Raises DataError if there are fewer training images.

    >>> pick_samples(data, 6).names
    ('a', 'a', 'b', 'b', 'c', 'd')
    """
    available = len(data.train)
    if not 1 <= count <= available:
        raise DataError(
            f"{data.name} has {available} training image{'s' * (available != 1)}: "
            f"expected samples in 1..{available}, found {count}."
        )
    found = _found(data, count)
    # The first image of every class comes before the second of any.
    chosen = sorted(sorted(found, key=lambda one: one[:2])[:count], key=lambda one: (one[2], one[0]))
    _, _, targets, images, index = zip(*chosen, strict=True)
    batch = Batch(torch.stack(images), torch.tensor(targets), torch.tensor(index))
    names = tuple(data.classes[target] for target in targets)
    return Samples(batch, names, len(data.classes), data.mean, data.name)


def _found(data: Data, count: int) -> list[tuple[int, int, int, torch.Tensor, int]]:
    """(how many of its class came before, place, class, image, index) of the images looked at.

    Ends as soon as no later image could be chosen.
    """
    each, rest = divmod(count, len(data.classes))
    seen: Counter[int] = Counter()
    found: list[tuple[int, int, int, torch.Tensor, int]] = []
    for batch in data.train.first(max(LOOKED_AT, count)).batches(64):
        for image, target, index in zip(batch.images, batch.targets, batch.index, strict=True):
            label = int(target)
            if seen[label] < count:
                found.append((seen[label], len(found), label, image.cpu(), int(index)))
            seen[label] += 1
        full = [label for label in range(len(data.classes)) if seen[label] >= each]
        more = [label for label in full if seen[label] > each]
        if len(full) == len(data.classes) and len(more) >= rest:
            break
    return found

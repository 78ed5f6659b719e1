"""A smaller copy of a data set for searches: some images to train on, others to judge by, never those of the test."""

from dataclasses import replace

from compress_aug.data import Data
from compress_aug.errors import DataError


def reduced(data: Data, train: int | None, validation: int | None, *, is_sample: bool = False) -> Data:
    """The data set with at most so many images to train on, and so many others to judge by.

    train:      None for all
    validation: taken from the validation split or, where that has fewer, from the training images that are left; as
                many as there are. None for the whole validation split
    is_sample:  the numbers are for a larger data set, of which this is a part: where there is no validation split,
                some of the images are left to judge by

    Raises DataError if nothing is left to judge by.

    >>> from compress_aug.data import load_data
    >>> small = reduced(load_data("digits"), train=100, validation=200)
    >>> len(small.train), len(small.validation)
    (100, 200)

    Source: arXiv 1905.05393 trains on 4000 images of CIFAR-10, judges by others and leaves the test images alone.
    """
    if is_sample and train is not None and not len(data.validation):
        train = min(train, len(data.train) // 2)
    chosen = data.train.first(len(data.train) if train is None else train)
    held = data.validation
    if validation is not None:
        held = held.first(validation)
        # Parts cannot be joined: the larger of the two is taken.
        left = data.train.part(len(chosen), len(chosen) + validation)
        held = left if len(held) < min(validation, len(left)) else held
    if not len(held):
        raise DataError(
            "a search judges by images that it does not train on, and none are left: give the data set a validation "
            "share, such as {validation: 0.1}, or train on fewer images."
        )
    return replace(data, train=chosen, validation=held)

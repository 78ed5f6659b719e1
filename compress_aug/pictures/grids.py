"""What stands in a grid of images: rows of the same images under one operation, magnitude or epoch after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from compress_aug.augment import (
    LearnedAugment,
    Operation,
    Plan,
    RandAugment,
    apply_plan,
    check_magnitude,
    magnitude_arguments,
)
from compress_aug.augment.geometry import Interpolation
from compress_aug.augment.operations import RANDAUGMENT_OPERATIONS
from compress_aug.augment.rows import Fill
from compress_aug.pictures.samples import Samples
from compress_aug.pictures.words import argument_words, operation_name
from compress_aug.policies import OPERATIONS, Policy, PolicySchedule

MAGNITUDES = (0, 1, 5, 10, 14, 20, 25, 30)


@dataclass(frozen=True)
class Row:
    """One row of a grid: its name, what it does in words, and uint8 images (N, C, H, W)."""

    name: str
    words: str
    images: NDArray[np.uint8]


@dataclass(frozen=True)
class Grid:
    """Rows of the same images, the untouched ones first.

    columns: the class of each image; further lines say what is done to it in all rows
    """

    title: str
    note: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]


def operations_grid(
    samples: Samples, magnitude: int = 14, *, fill: Fill = 0, interpolation: Interpolation = "nearest"
) -> Grid:
    """Each of RandAugment's 14 operations alone, at one magnitude 0..30.

    Operations with two directions take them in turns: the first image, the third, ... the positive one.
    Raises RecipeError for a magnitude, fill or interpolation that is none.
    """
    check_magnitude(magnitude)
    images = samples.batch.images
    height, width = images.shape[2:]
    directions = np.arange(len(images)) % 2

    def row(operation: Operation) -> Row:
        arguments = magnitude_arguments(height, width)[operation, magnitude, directions][:, None]
        plan = Plan(np.full((len(images), 1), int(operation), dtype=np.int64), arguments)
        done = apply_plan(images, plan, fill=fill, interpolation=interpolation)
        words = argument_words(operation, magnitude, height=height, width=width)
        return Row(operation_name(operation), words, done.numpy())

    return Grid(
        f"RandAugment's {len(RANDAUGMENT_OPERATIONS)} operations at magnitude {magnitude}",
        f"{samples.describe()}. Where there are two directions, they alternate from column to column.",
        (_original(images, ""), *map(row, RANDAUGMENT_OPERATIONS)),
        samples.names,
    )


def magnitudes_grid(
    samples: Samples,
    magnitudes: Sequence[int] = MAGNITUDES,
    *,
    seed: int = 0,
    fill: Fill = 0,
    interpolation: Interpolation = "nearest",
) -> Grid:
    """RandAugment with two operations at several magnitudes 0..30, without crop and flip.

    An image's operations and directions are the same at every magnitude, so that rows can be compared.
    Raises RecipeError for a magnitude, fill or interpolation that is none.
    """
    augment = RandAugment(crop_padding=0, flip=False, fill=fill, interpolation=interpolation)
    batch = samples.batch
    rows = [Row(f"M = {level}", "", augment(batch, level, 0, seed).images.numpy()) for level in magnitudes]
    height, width = batch.images.shape[2:]
    drawn = augment.draw_operations(
        batch.index.numpy(), magnitudes[0], height=height, width=width, epoch=0, seed=seed
    )
    assert drawn is not None
    both = ["\n".join(operation_name(Operation(one)) for one in two) for two in drawn.operations.tolist()]
    return Grid(
        "RandAugment at rising magnitudes",
        f"{samples.describe()}. Each image has the same two operations in all rows; crop and flip are off.",
        (_original(batch.images, "no RandAugment"), *rows),
        tuple(f"{name}\n{operations}" for name, operations in zip(samples.names, both, strict=True)),
    )


def policy_grid(
    samples: Samples,
    schedule: PolicySchedule,
    *,
    name: str = "a learned policy",
    rows: int = 8,
    seed: int = 0,
    fill: Fill = 0,
    interpolation: Interpolation = "nearest",
) -> Grid:
    """What a learned schedule does to the images in some of its own epochs, without crop and flip.

    name: of the schedule, for the title
    rows: at most so many epochs, 2 or more; each is the first of its policy, and the first and last policy are there

    Raises RecipeError for a fill or interpolation that is none.
    """
    augment = LearnedAugment(
        schedule, schedule.epochs, crop_padding=0, flip=False, fill=fill, interpolation=interpolation
    )
    spans = policy_spans(schedule)
    chosen = [spans[place] for place in evenly(len(spans), rows)]
    drawn = [
        Row(
            f"epochs {first} to {last}" if last > first else f"epoch {first}",
            _strongest(policy),
            augment(samples.batch, None, first, seed).images.numpy(),
        )
        for first, last, policy in chosen
    ]
    which = f"{len(chosen)} of its {len(spans)}" if len(chosen) < len(spans) else f"all {len(spans)}"
    which = which[0].upper() + which[1:]
    note = f"{which} policies, each in its first epoch: up to two operations an image; crop and flip are off"
    return Grid(
        f"{name}: learned policies over {schedule.epochs} epochs",
        f"{samples.describe()}. {note}.",
        (_original(samples.batch.images, ""), *drawn),
        samples.names,
    )


def policy_spans(schedule: PolicySchedule) -> list[tuple[int, int, Policy]]:
    """(first epoch, last epoch, policy) of each policy that is ever in force; the same one twice in a row is one.

    >>> from compress_aug.policies import Segment
    >>> segments = (Segment(4, Policy.none()), Segment(0, Policy.none()), Segment(6, Policy.from_vector([1] * 60)))
    >>> [span[:2] for span in policy_spans(PolicySchedule(10, segments))]
    [(0, 3), (4, 9)]
    """
    spans, first = [], 0
    for policy, epochs in groupby(schedule.policies_by_epoch()):
        length = sum(1 for _ in epochs)
        spans.append((first, first + length - 1, policy))
        first += length
    return spans


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the places 0..count - 1, the first and the last among them.

    >>> evenly(17, 8), evenly(3, 8)
    ([0, 2, 5, 7, 9, 11, 14, 16], [0, 1, 2])
    """
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _original(images: Tensor, words: str) -> Row:
    return Row("original", words, images.numpy())


def _strongest(policy: Policy) -> str:
    """The operations that are likeliest in a policy, its two copies taken together."""
    half = len(OPERATIONS)
    pairs: Any = zip(policy.probabilities[:half], policy.probabilities[half:], strict=True)
    sums = {name: first + second for name, (first, second) in zip(OPERATIONS, pairs, strict=True)}
    likely = sorted((name for name in sums if sums[name]), key=lambda name: -sums[name])[:3]
    return f"mostly {', '.join(likely)}" if likely else "no operations"

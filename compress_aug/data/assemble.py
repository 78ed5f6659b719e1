"""From image items to a data set: split off the validation images, decode or stream, measure the colours."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from compress_aug.data.dataset import Data, Options, held_out, held_rows, measure_colours, split_rows
from compress_aug.data.images import ImageItems, Progress, read_all
from compress_aug.data.sources import MemorySource, Source, StreamedSource
from compress_aug.errors import DataError

# Sets that take less are decoded once and then cost nothing; larger ones are decoded in every epoch.
MEMORY_BYTES = 2**30


def assemble(
    name: str,
    classes: tuple[str, ...],
    *,
    train: ImageItems,
    test: ImageItems,
    validation: ImageItems | None = None,
    options: Options,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_memory: bool | None = None,
    workers: int | None = None,
    threads: int | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Data:
    """The `Data` of these items; only images that the options' limits leave in are ever read.

    validation: items that come as a part of their own; None = held out from the training items
    in_memory:  None = if all images take less than `MEMORY_BYTES`
    workers:    processes that decode streamed images; None = one a core, at most 8
    threads:    that decode into memory; None = one a core
    """
    parts = _rows(train, validation, test, options, seed)
    if in_memory is None:
        pixels = train.image_shape[0] * train.image_shape[1] * train.image_shape[2]
        in_memory = pixels * sum(len(rows) for _, rows in parts) < MEMORY_BYTES
    if in_memory:
        sources: list[Source] = [*_decoded(parts, threads or cores(), on_progress)]
    else:
        workers = min(cores(), 8) if workers is None else workers
        sources = [StreamedSource(items, rows, workers) for items, rows in parts]
    measured_mean, measured_std = measure_colours(sources[0]) if mean is None or std is None else ((), ())
    return Data(
        name=name,
        classes=classes,
        image_shape=train.image_shape,
        mean=_per_channel(mean, measured_mean, train.image_shape[0], "mean"),
        std=_per_channel(std, measured_std, train.image_shape[0], "std"),
        crop_padding=train.image_shape[1] // 8 if options.crop_padding is None else options.crop_padding,
        flip=True if options.flip is None else options.flip,
        train=sources[0],
        validation=sources[1],
        test=sources[2],
    )


def _rows(
    train: ImageItems, validation: ImageItems | None, test: ImageItems, options: Options, seed: int
) -> list[tuple[ImageItems, Tensor]]:
    """Training, validation and test: the items each is read from, and which of them, in order."""
    kept, held = split_rows(
        len(train), options if validation is None else replace(options, validation=0.0), seed
    )
    if validation is not None:
        held = held_rows(len(validation), held_out(len(train), len(validation), len(kept)))
    held_from = train if validation is None else validation
    return [(train, kept), (held_from, held), (test, held_rows(len(test), options.test))]


def _decoded(
    parts: list[tuple[ImageItems, Tensor]], threads: int, on_progress: Progress | None
) -> Iterator[MemorySource]:
    total, before = sum(len(rows) for _, rows in parts), 0
    for items, rows in parts:
        tell = None if on_progress is None else _counted_on(on_progress, before, total)
        yield MemorySource(*read_all(items, rows, threads, tell), rows)
        before += len(rows)


def _counted_on(on_progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: on_progress(before + done, total)


def _per_channel(
    given: Sequence[float] | None, measured: Sequence[float], channels: int, what: str
) -> tuple[float, ...]:
    values = tuple(map(float, measured if given is None else given))
    if len(values) != channels or (what == "std" and min(values) <= 0):
        raise DataError(
            f"{what} is {list(values)}: expected {channels} numbers for {channels} channels, std above 0."
        )
    return values


def cores() -> int:
    """How many cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

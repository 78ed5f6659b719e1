"""Where batches come from: images held in memory, or decoded on the way by workers."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress_aug.batch import Batch
from compress_aug.data.images import ImageItems
from compress_aug.errors import DataError


class Source(Protocol):
    """One part (training, validation, test) of a data set, as batches of raw images."""

    def __len__(self) -> int:
        """How many images."""

    def steps(self, batch_size: int, drop_last: bool = False, world: int = 1) -> int:
        """How many batches `batches` yields with these arguments (on rank 0, which gets the most)."""

    def batches(
        self,
        batch_size: int,
        *,
        order_seed: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """One pass over the images.

        batch_size: images in a batch of all processes together.
        order_seed: None keeps the order; a number shuffles, and the same number shuffles alike everywhere.
        drop_last:  leave out a last batch that is not full, so that every process makes the same number of
                    steps; a source smaller than one batch still yields its one small batch.
        rank:       this process, 0..world-1; it gets every world-th image of each batch.
        """

    def first(self, images: int) -> Self:
        """The part made of the first so many images (of all, if there are fewer)."""

    def part(self, start: int, stop: int) -> Self:
        """The part made of the images from place `start` up to `stop` (as many of them as there are)."""

    def to(self, device: torch.device) -> Self:
        """The same images, whose batches come on this device."""


@dataclass(frozen=True)
class MemorySource:
    """Images that lie decoded in memory, on any device.

    images:  uint8 (N, C, H, W), in the order in which batches without a shuffle come
    targets: int64 (N,)
    index:   int64 (N,), each image's position in the data set before shuffle or split

    >>> source = MemorySource(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.arange(5), torch.arange(5))
    >>> [len(batch) for batch in source.batches(2)]
    [2, 2, 1]
    """

    images: Tensor
    targets: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def steps(self, batch_size: int, drop_last: bool = False, world: int = 1) -> int:
        """How many batches `batches` yields."""
        return count_steps(len(self), batch_size, drop_last, world)

    def batches(
        self,
        batch_size: int,
        *,
        order_seed: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """One pass over the images; see `Source.batches`."""
        steps = self.steps(batch_size, drop_last, world)
        # One copy to the device for the whole pass, not one for each batch.
        order = order_of(len(self), order_seed)
        there = split_order(order.to(self.images.device), batch_size, steps, rank, world)
        here = split_order(order, batch_size, steps, rank, world)
        for rows, host_rows in zip(there, here, strict=True):
            # On a CPU five times faster than images[rows].
            images = self.images.index_select(0, rows)
            yield Batch(images, self.targets[rows], self.index[host_rows])

    def first(self, images: int) -> "MemorySource":
        """The first so many images; shares memory with this source."""
        return self.part(0, images)

    def part(self, start: int, stop: int) -> "MemorySource":
        """The images from `start` up to `stop`; shares memory with this source."""
        return MemorySource(self.images[start:stop], self.targets[start:stop], self.index[start:stop])

    def to(self, device: torch.device) -> "MemorySource":
        """The same images on another device; the index stays on the host, where draws are made from it."""
        return MemorySource(self.images.to(device), self.targets.to(device), self.index)


@dataclass(frozen=True)
class StreamedSource:
    """Images that are read and decoded when their turn comes, for sets that memory cannot hold.

    items:   a map-style data set of (uint8 tensor (C, H, W), class number), which may raise DataError
    index:   int64 (N,), which of the items belong to this source, in order
    workers: processes that decode; 0 decodes in this process
    device:  where the batches are sent
    """

    items: ImageItems
    index: Tensor
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.index)

    def steps(self, batch_size: int, drop_last: bool = False, world: int = 1) -> int:
        """How many batches `batches` yields."""
        return count_steps(len(self), batch_size, drop_last, world)

    def batches(
        self,
        batch_size: int,
        *,
        order_seed: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Batch]:
        """One pass over the images; see `Source.batches`."""
        steps = self.steps(batch_size, drop_last, world)
        order = self.index[order_of(len(self), order_seed)]
        parts = [rows.tolist() for rows in split_order(order, batch_size, steps, rank, world)]
        # Without a generator of its own a DataLoader draws from torch's global one, and merely reading the
        # validation images would change what the training draws next.
        loader: DataLoader[Any] = DataLoader(
            _Guarded(self.items),
            batch_sampler=parts,
            num_workers=min(self.workers, len(parts)),
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(0 if order_seed is None else order_seed),
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield Batch(*batch).to(self.device)

    def first(self, images: int) -> "StreamedSource":
        """The first so many images."""
        return self.part(0, images)

    def part(self, start: int, stop: int) -> "StreamedSource":
        """The images from `start` up to `stop`."""
        return replace(self, index=self.index[start:stop])

    def to(self, device: torch.device) -> "StreamedSource":
        """The same images, each batch of which goes to this device as it comes."""
        return replace(self, device=device)


def order_of(length: int, seed: int | None) -> Tensor:
    """int64 (length,): 0, 1, 2, ... or, with a seed, a permutation that depends on nothing else.

    >>> order_of(3, None)
    tensor([0, 1, 2])
    """
    if seed is None:
        return torch.arange(length)
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def count_steps(length: int, batch_size: int, drop_last: bool, world: int) -> int:
    """Batches in one pass over `length` images.

    Raises DataError if some process would be left without an image in a batch that all must train on.

    >>> count_steps(10, 4, drop_last=True, world=1), count_steps(10, 4, drop_last=False, world=1)
    (2, 3)
    >>> count_steps(3, 4, drop_last=True, world=1)
    1
    """
    if batch_size < world:
        raise DataError(
            f"A batch of {batch_size} cannot be shared by {world} processes: give a larger batch_size."
        )
    if not drop_last or length < batch_size:
        if drop_last and 0 < length < world:
            raise DataError(
                f"{length} images cannot be shared by {world} processes: train on fewer processes."
            )
        return -(-length // batch_size)
    return length // batch_size


def split_order(order: Tensor, batch_size: int, steps: int, rank: int, world: int) -> Iterator[Tensor]:
    """This process's share of each batch, as rows; a share without images is left out."""
    for step in range(steps):
        rows = order[step * batch_size : (step + 1) * batch_size][rank::world]
        if len(rows):
            yield rows


class _Guarded(Dataset[Any]):
    """Items that hand errors over instead of raising them.

    An error raised in a worker process reaches the user wrapped in that worker's traceback.
    """

    def __init__(self, items: ImageItems) -> None:
        self.items = items

    def __getitem__(self, item: int) -> tuple[Tensor, int, int] | DataError:
        try:
            image, target = self.items[item]
        except DataError as error:
            return error
        return image, target, item


def _collate(items: list[tuple[Tensor, int, int] | DataError]) -> tuple[Tensor, Tensor, Tensor] | DataError:
    images, targets, index = [], [], []
    for item in items:
        if isinstance(item, DataError):
            return item
        images.append(item[0])
        targets.append(item[1])
        index.append(item[2])
    return torch.stack(images), torch.tensor(targets), torch.tensor(index)

"""Random numbers that belong to an image: counter-based, keyed by seed, image, epoch and stream."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from compress_aug.errors import RecipeError

# Philox4x32-10 of J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): a block of four
# 32-bit words is a pure function of a counter (four words) and a key (two words). There is no state to keep,
# to save or to hand to workers, and a whole batch is drawn by a handful of numpy calls.
_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Stream(IntEnum):
    """What a block of words is for: different streams of one image and epoch are independent."""

    OPERATIONS = 0
    CROP_FLIP = 1
    POLICY = 2
    CUTOUT = 3
    MAGNITUDE = 4
    EPOCH = 5


def philox(counters: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """The Philox4x32-10 blocks of these counters.

    counters: (4, ...), each below 2**32
    key:      two numbers below 2**32

    Returns words of the same shape, each in 0..2**32-1.

    >>> [f"{word:08x}" for word in philox(np.zeros(4, dtype=np.uint64), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    shape = counters.shape
    words = counters.astype(np.uint64).reshape(4, -1)
    even, odd = words[0::2], words[1::2]
    step = np.array([[key[0]], [key[1]]], dtype=np.uint64)
    for _ in range(_ROUNDS):
        product = even * _MULTIPLIERS
        even = (product[::-1] >> _HALF) ^ odd ^ step
        odd = (product & _LOW)[::-1]
        step = (step + _KEY_STEPS) & _LOW
    return np.stack([even[0], odd[0], even[1], odd[1]]).reshape(shape)


def draw_words(
    index: NDArray[np.int64],
    *,
    epoch: int,
    seed: int,
    stream: Stream,
    candidate: int | NDArray[np.int64] = 0,
    block: int = 0,
) -> NDArray[np.uint64]:
    """Four random words for each image, whatever batch, worker or device it is in.

    index:     (N,), positions in the data set before any shuffle or split
    epoch:     0..2**32-1
    seed:      0..2**64-1
    stream:    what the words are for
    candidate: 0..65535, which of several augmentations of the same image in the same epoch, or (N,) of them
    block:     0..255, for more than four words

    Returns (4, N), each word in 0..2**32-1.

    Raises RecipeError if one of them is outside its range.

    >>> draw_words(np.array([7, 3]), epoch=0, seed=0, stream=Stream.CROP_FLIP).shape
    (4, 2)
    """
    candidates = np.asarray(candidate)
    limits = [("seed", seed, 64), ("epoch", epoch, 32), ("block", block, 8)]
    limits += [("candidate", int(end), 16) for end in (candidates.min(initial=0), candidates.max(initial=0))]
    for name, value, bits in limits:
        if not 0 <= value < 2**bits:
            raise RecipeError(f"the {name} of the augmentation must be in 0..2**{bits}-1, but it is {value}.")
    place = index.astype(np.int64, copy=False).view(np.uint64)
    counters = np.empty((4, len(place)), dtype=np.uint64)
    counters[0] = place & _LOW
    counters[1] = place >> _HALF
    counters[2] = epoch
    counters[3] = candidates << 8 | (stream | block << 24)
    return philox(counters, (seed & 0xFFFFFFFF, seed >> 32))


def below(words: NDArray[np.uint64], limit: int) -> NDArray[np.int64]:
    """Words turned into whole numbers in 0..limit-1, each equally likely to within limit / 2**32.

    >>> below(np.array([0, 2**31, 2**32 - 1], dtype=np.uint64), 14).tolist()
    [0, 7, 13]
    """
    return ((words * np.uint64(limit)) >> _HALF).astype(np.int64)

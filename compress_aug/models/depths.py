"""What a depth says of a net in three stages: how many blocks each has, and of which kind."""

from collections.abc import Callable
from itertools import count
from typing import NamedTuple

# Depths such as 56, 110 and 164 could be either; the papers' nets of 20 to 110 layers are made of basic blocks,
# those of 164 and more of bottlenecks.
_FIRST_BOTTLENECK = 164


class Blocks(NamedTuple):
    """How many blocks a stage has, and whether they are bottlenecks (three convolutions) or basic (two)."""

    number: int
    bottleneck: bool


def blocks_of(depth: int, bottleneck: bool | None = None) -> Blocks:
    """The blocks of each stage in a net of `depth` layers: a stem, three stages, a linear layer.

    bottleneck: True: the depth is 9n + 2. False: it is 6n + 2. None: what the depth allows; where it allows both,
                basic blocks below 164 and bottlenecks from there on, as in the papers

    Raises ValueError for another depth; the sentence names the nearest ones.

    >>> blocks_of(110), blocks_of(164)
    (Blocks(number=18, bottleneck=False), Blocks(number=18, bottleneck=True))
    >>> blocks_of(57)
    Traceback (most recent call last):
    ValueError: depth is 57: expected 6n + 2 or (with bottlenecks) 9n + 2, such as 56 or 62
    """
    basic, deep = _fits(depth, 6, 2), _fits(depth, 9, 2)
    if bottleneck is None:
        if not basic and not deep:
            expected = "6n + 2 or (with bottlenecks) 9n + 2"
            raise _wrong(depth, expected, lambda other: _fits(other, 6, 2) or _fits(other, 9, 2))
        bottleneck = deep and (depth >= _FIRST_BOTTLENECK or not basic)
    return Blocks(blocks_by(9 if bottleneck else 6, depth, 2), bottleneck)


def blocks_by(step: int, depth: int, rest: int) -> int:
    """n where depth = step * n + rest. Raises ValueError where there is no n above 0.

    >>> blocks_by(6, 28, rest=4)
    4
    """
    if not _fits(depth, step, rest):
        raise _wrong(depth, f"{step}n + {rest}", lambda other: _fits(other, step, rest))
    return (depth - rest) // step


def _fits(depth: int, step: int, rest: int) -> bool:
    return depth > rest and (depth - rest) % step == 0


def _wrong(depth: int, expected: str, fits: Callable[[int], bool]) -> ValueError:
    below = next((other for other in range(depth, 0, -1) if fits(other)), None)
    above = next(other for other in count(max(depth, 1)) if fits(other))
    near = f"{above}, the smallest" if below is None else f"{below} or {above}"
    return ValueError(f"depth is {depth}: expected {expected}, such as {near}")

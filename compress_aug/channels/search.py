"""How far to cut: the smallest share of channels that was seen to meet a goal."""

from collections.abc import Callable
from typing import NamedTuple

from compress_aug.errors import PruneError

Trials = Callable[[float], float]

# The shares that are tried first, where smaller need not be faster; and how finely the gap is searched then.
_GRID = [step / 8 for step in range(9)]
_FINEST_MEASURED = 1 / 64
_FINEST_COUNTED = 1 / 256


class OutOfReach(PruneError):
    """No share of channels that was tried meets the goal."""


class Trial(NamedTuple):
    """One cut that was tried: the share of channels cut, in [0, 1], and what it came to."""

    ratio: float
    value: float


class Found(NamedTuple):
    """Where a search ended: the share, what it came to, and the trials in the order in which they were made."""

    ratio: float
    value: float
    trials: list[Trial]


def counted(amount: Trials, goal: tuple[str, float]) -> Found:
    """Bisect for an amount that falls with every channel, such as parameters; to 1/256.

    amount: share of channels cut, in [0, 1] -> what is left
    goal:   what it is called and how much is left at most

    Raises OutOfReach with the least that was seen.
    """
    seen = _Seen(amount, goal)
    low, high = 0.0, 1.0
    if seen.meets(low):
        return seen.ended(low)
    if not seen.meets(high):
        raise seen.missed()
    return seen.ended(seen.narrowed(low, high, _FINEST_COUNTED))


def measured(amount: Trials, goal: tuple[str, float]) -> Found:
    """Search for an amount that is measured and need not fall with every channel, such as a latency.

    Goes up in eighths to the first share that meets the goal, then halves the gap below it, to 1/64. What it
    ends with was itself measured to meet the goal: nothing is inferred from neighbours.

    The arguments and errors are those of `counted`.
    """
    seen = _Seen(amount, goal)
    first = next((place for place, ratio in enumerate(_GRID) if seen.meets(ratio)), None)
    if first is None:
        raise seen.missed()
    if first == 0:
        return seen.ended(0.0)
    return seen.ended(seen.narrowed(_GRID[first - 1], _GRID[first], _FINEST_MEASURED))


class _Seen:
    """The trials so far; each share is tried once."""

    def __init__(self, amount: Trials, goal: tuple[str, float]) -> None:
        self._amount = amount
        self._what, self._limit = goal
        self._values: dict[float, float] = {}

    def meets(self, ratio: float) -> bool:
        if ratio not in self._values:
            self._values[ratio] = self._amount(ratio)
        return self._values[ratio] <= self._limit

    def narrowed(self, low: float, high: float, finest: float) -> float:
        while high - low > finest:
            middle = (low + high) / 2
            low, high = (low, middle) if self.meets(middle) else (middle, high)
        return high

    def ended(self, ratio: float) -> Found:
        return Found(ratio, self._values[ratio], [Trial(*pair) for pair in self._values.items()])

    def missed(self) -> OutOfReach:
        least = min(self._values.values())
        return OutOfReach(
            f"Cutting channels brings {self._what} down to {least:.3g} at the least, not to {self._limit:g}."
        )

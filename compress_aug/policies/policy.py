"""One learned augmentation policy: 30 entries of operation, probability and magnitude."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from compress_aug.errors import RecipeError
from compress_aug.policies.space import ENTRIES, MAX_MAGNITUDE, MAX_PROBABILITY, OPERATIONS


@dataclass(frozen=True)
class Policy:
    """What may happen to an image in one epoch. Entry j is about the operation ENTRIES[j].

    probabilities: 30 whole numbers 0..10, in tenths, in the order of ENTRIES
    magnitudes:    30 whole numbers 0..9, in the same order

    Two policies with equal numbers are equal, and have the same hash.
    Raises RecipeError for another count of numbers, or one out of its range.

    >>> policy = Policy.from_vector([3, 7] + [0] * 58)
    >>> policy.probabilities[:2], policy.magnitudes[:2]
    ((3, 0), (7, 0))

    Source: Population Based Augmentation (arXiv 1905.05393), with the steps of arXiv 2004.08861.
    """

    probabilities: tuple[int, ...]
    magnitudes: tuple[int, ...]

    def __post_init__(self) -> None:
        probabilities = _checked(self.probabilities, "probability", MAX_PROBABILITY, offset=0)
        magnitudes = _checked(self.magnitudes, "magnitude", MAX_MAGNITUDE, offset=1)
        object.__setattr__(self, "probabilities", probabilities)
        object.__setattr__(self, "magnitudes", magnitudes)

    @classmethod
    def from_vector(cls, vector: Sequence[int]) -> "Policy":
        """The policy of 60 whole numbers, in the order that `space` describes.

        Raises RecipeError for another count of numbers, or one out of its range.

        >>> Policy.from_vector([0] * 59)
        Traceback (most recent call last):
        compress_aug.errors.RecipeError: a policy is 60 whole numbers, found 59
        """
        expected = 2 * len(ENTRIES)
        if isinstance(vector, str | bytes) or not isinstance(vector, Sequence):
            raise RecipeError(f"a policy is {expected} whole numbers, found {_shown(vector)}")
        if len(vector) != expected:
            raise RecipeError(f"a policy is {expected} whole numbers, found {len(vector)}")
        return cls(tuple(vector[0::2]), tuple(vector[1::2]))

    @classmethod
    def none(cls) -> "Policy":
        """No augmentation: all 60 numbers are 0. A population search starts here.

        >>> Policy.none().is_none
        True
        """
        return cls((0,) * len(ENTRIES), (0,) * len(ENTRIES))

    @property
    def is_none(self) -> bool:
        """Whether no image is ever changed: every probability is 0, whatever the magnitudes are."""
        return not any(self.probabilities)

    def vector(self) -> list[int]:
        """The 60 whole numbers that `from_vector` reads."""
        pairs = zip(self.probabilities, self.magnitudes, strict=True)
        return [number for pair in pairs for number in pair]


def whole(value: Any) -> int | None:
    """The value as a plain int; None for what is no whole number: true, 3.0, "3"."""
    # YAML and JSON have true and false, which Python would take for 1 and 0.
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def _checked(numbers: Sequence[int], what: str, most: int, *, offset: int) -> tuple[int, ...]:
    """offset: of this kind of number within its pair of the vector, so that a mistake can be found there."""
    if len(numbers) != len(ENTRIES):
        kinds = {"probability": "probabilities", "magnitude": "magnitudes"}
        raise RecipeError(f"a policy has {len(ENTRIES)} {kinds[what]}, found {len(numbers)}")
    found = []
    for place, number in enumerate(numbers):
        value = whole(number)
        if value is None or not 0 <= value <= most:
            copy = "first" if place < len(OPERATIONS) else "second"
            unit = " (in tenths)" if what == "probability" else ""
            raise RecipeError(
                f"number {2 * place + offset} of the policy, the {what} of the {copy} {ENTRIES[place]}, "
                f"must be a whole number in 0..{most}{unit}, found {_shown(number)}"
            )
        found.append(value)
    return tuple(found)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."

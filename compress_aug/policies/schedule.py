"""Policies over epochs, and their replay over another number of epochs."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, NamedTuple, get_args

from compress_aug.errors import RecipeError, nearest
from compress_aug.policies.policy import Policy, whole
from compress_aug.policies.provenance import plain_mapping

Replay = Literal["proportional", "legacy", "flatten"]
"""How a schedule is stretched or shrunk; see `PolicySchedule`."""

# No training takes that long; a file that says more would fill the memory once it is spread out.
MAX_EPOCHS = 1_000_000


class Segment(NamedTuple):
    """A policy and how many epochs it is in force, 0 or more."""

    epochs: int
    policy: Policy


@dataclass(frozen=True)
class PolicySchedule:
    """Which policy is in force in which epoch.

    epochs:     how many epochs the schedule was learned over, 1..1,000,000
    segments:   (epochs, Policy) pairs in their order; their epochs add up to `epochs`
    provenance: where it comes from: a free mapping of plain values, which does not count in comparisons

    It can be replayed over any number of epochs E' in place of its own E, in three ways:
    "proportional": epoch e has the policy that was in force at floor(e * E / E'). This project's own rule, the
                    default: every policy keeps its share of the training, to within one epoch.
    "legacy":       each segment lasts int(its epochs * E' / E) epochs, and the last policy fills what is
                    missing at the end. The rule of Population Based Augmentation's code; where E' is smaller than
                    E, short segments vanish and the last policy gets too much.
    "flatten":      each image has the policy of an epoch drawn at random: draw from `policies_by_epoch()`.
    The first two are the same where E' is a multiple of E.

    Raises RecipeError if the epochs do not add up.

    >>> rotate = Policy.from_vector([10, 9] + [0] * 58)
    >>> schedule = PolicySchedule(10, (Segment(4, Policy.none()), Segment(6, rotate)))
    >>> schedule.at(2, 5) == rotate
    True

    Source: Population Based Augmentation (arXiv 1905.05393) and its code.
    """

    epochs: int
    segments: tuple[Segment, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "epochs", check_epochs(self.epochs))
        object.__setattr__(self, "segments", _segments(self.segments))
        object.__setattr__(self, "provenance", plain_mapping(self.provenance))
        total = sum(self.durations)
        if total != self.epochs:
            raise RecipeError(f"the epochs of the segments add up to {total}, but epochs is {self.epochs}")

    @property
    def durations(self) -> tuple[int, ...]:
        """The epochs of each segment."""
        return tuple(segment.epochs for segment in self.segments)

    def at(self, epoch: int, epochs: int, replay: Replay = "proportional") -> Policy:
        """The policy of one epoch of a training that takes `epochs` epochs.

        epoch:  0..epochs - 1, counted from the start of the training, also after it was resumed
        replay: "proportional" or "legacy"; see the class

        Raises RecipeError for an epoch outside of the training, and for "flatten", which has no policy of an
        epoch.
        """
        check_epochs(epochs)
        found = whole(epoch)
        if found is None or not 0 <= found < epochs:
            raise RecipeError(f"expected an epoch in 0..{epochs - 1}, found {epoch!r}")
        return self._in_force(found, epochs, self._ends(epochs, replay), replay)

    def expanded(self, epochs: int, replay: Replay = "proportional") -> tuple[Policy, ...]:
        """The policy of each of `epochs` epochs: `at` for 0..epochs - 1.

        Raises RecipeError for "flatten", as `at` does.

        >>> len(PolicySchedule(4, (Segment(4, Policy.none()),)).expanded(30, "legacy"))
        30
        """
        check_epochs(epochs)
        ends = self._ends(epochs, replay)
        return tuple(self._in_force(epoch, epochs, ends, replay) for epoch in range(epochs))

    def policies_by_epoch(self) -> tuple[Policy, ...]:
        """The policy of each of the schedule's own epochs: what "flatten" draws from, uniformly, for each image.

        Taken from the schedule's own epochs, each policy is drawn in its exact share whatever the length of the
        training. Population Based Augmentation's code draws from `expanded(epochs, "legacy")`, which is the
        same where `epochs` is a multiple of the schedule's.
        """
        return self.expanded(self.epochs)

    def describe(self) -> str:
        """The schedule in a few words, for a table.

        >>> PolicySchedule(4, (Segment(4, Policy.none()),)).describe()
        '1 policy over 4 epochs'
        """
        count = len(self.segments)
        policies = "policy" if count == 1 else "policies"
        return f"{count} {policies} over {self.epochs} epoch{'s' * (self.epochs != 1)}"

    def _ends(self, epochs: int, replay: Replay) -> list[int]:
        """The epoch before which each segment ends: of the schedule itself, or of the training for "legacy"."""
        check_replay(replay)
        if replay == "flatten":
            raise RecipeError(
                'replay "flatten" gives no policy to an epoch: draw one for each image from policies_by_epoch()'
            )
        if replay == "proportional":
            return list(accumulate(self.durations))
        # Floating point on purpose: the same rounding as in the code whose results are to be repeated.
        factor = epochs / self.epochs
        return list(accumulate(int(duration * factor) for duration in self.durations))

    def _in_force(self, epoch: int, epochs: int, ends: list[int], replay: Replay) -> Policy:
        place = epoch * self.epochs // epochs if replay == "proportional" else epoch
        return self.segments[min(bisect_right(ends, place), len(ends) - 1)].policy


def check_replay(replay: str) -> None:
    """Raises RecipeError for a word that names no way of replay."""
    known = get_args(Replay)
    if replay not in known:
        raise RecipeError(f'there is no replay "{replay}": {nearest(str(replay), known)}')


def check_epochs(epochs: Any) -> int:
    """The number of epochs as a plain int. Raises RecipeError for what is not in 1..1,000,000."""
    found = whole(epochs)
    if found is None or not 1 <= found <= MAX_EPOCHS:
        raise RecipeError(f"epochs: expected a whole number in 1..{MAX_EPOCHS}, found {epochs!r}")
    return found


def _segments(given: Any) -> tuple[Segment, ...]:
    found = []
    for number, (epochs, policy) in enumerate(given, 1):
        duration = whole(epochs)
        if duration is None or duration < 0:
            raise RecipeError(
                f"segment {number}: expected a whole number of epochs, at least 0, found {epochs!r}"
            )
        if not isinstance(policy, Policy):
            raise RecipeError(f"segment {number}: expected a Policy, found {type(policy).__name__}")
        found.append(Segment(duration, policy))
    if not found:
        raise RecipeError("a schedule needs at least one segment")
    return tuple(found)
